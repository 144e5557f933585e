//! What becomes of an attempt on a worker whose coordinator lives.

mod support;

use std::{sync::atomic::Ordering, time::Instant};

use kiln_proto::v1::{FailureKind, Grade, attempt_report::Outcome, progress_entry::Event};
use support::{assignment, coordinator::Coordinator, engine::ScriptedEngine, lines, worker};

#[tokio::test]
async fn an_assignment_gives_its_log_in_order_and_then_its_report() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let worker = worker(&coordinator, &engine, 2).await;
    let (attempt, wire) = assignment(&coordinator, "lines 5000");
    coordinator.assign(wire);
    let Outcome::Succeeded(report) = coordinator.outcome(attempt).await else { panic!("it succeeds") };
    let log = coordinator.seen().log(attempt);
    assert_eq!(lines(&log), (0..5000).map(|number| format!("line {number}")).collect::<Vec<_>>());
    assert_eq!(report.log_entries, log.len() as u64, "the report comes once its log is durable");
    assert!(report.context_bytes_fetched > 0);
    assert!(log.iter().any(|entry| matches!(&entry.event, Some(Event::Vertex(v)) if v.digest == "kiln:context")));
    assert!(matches!(coordinator.seen().reports[0].outcome, Some(Outcome::Started(_))));
    let spool = worker.data_dir.path().join("spool");
    assert_eq!(std::fs::read_dir(spool).expect("the spool folder").count(), 0);
}

#[tokio::test]
async fn a_line_arrives_while_the_build_goes_on() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    let (attempt, wire) = assignment(&coordinator, "gate");
    coordinator.assign(wire);
    coordinator.until("the first line", |seen| lines(&seen.log(attempt)) == ["before"]).await;
    assert!(coordinator.seen().outcome(attempt).is_none());
    engine.gate.add_permits(1);
    assert!(matches!(coordinator.outcome(attempt).await, Outcome::Succeeded(_)));
    assert_eq!(lines(&coordinator.seen().log(attempt)), ["before", "after"]);
}

#[tokio::test]
async fn a_cancel_stops_the_build_within_a_second_and_says_so() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    let (attempt, wire) = assignment(&coordinator, "hang");
    coordinator.assign(wire);
    coordinator.until("the start", |seen| !seen.reports.is_empty()).await;
    let told = Instant::now();
    coordinator.cancel(attempt);
    assert!(matches!(coordinator.outcome(attempt).await, Outcome::Cancelled(_)));
    assert!(told.elapsed().as_millis() < 1000, "{:?}", told.elapsed());
    assert_eq!(engine.running.load(Ordering::SeqCst), 0);
    assert_eq!(lines(&coordinator.seen().log(attempt)), ["cancelled: the user said so"]);
}

#[tokio::test]
async fn a_failure_is_the_user_s_and_a_panic_is_the_farm_s() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 2).await;
    let (failing, wire) = assignment(&coordinator, "fail RUN make: exit code 2");
    coordinator.assign(wire);
    let (panicking, wire) = assignment(&coordinator, "panic");
    coordinator.assign(wire);
    let Outcome::Failed(failure) = coordinator.outcome(failing).await else { panic!("it fails") };
    assert_eq!((failure.kind(), failure.message.as_str()), (FailureKind::Build, "RUN make: exit code 2"));
    let Outcome::Failed(failure) = coordinator.outcome(panicking).await else { panic!("it fails") };
    assert_eq!(failure.kind(), FailureKind::Infrastructure);
    assert!(failure.message.contains("the script says so"), "{}", failure.message);
    let (attempt, wire) = assignment(&coordinator, "lines 1");
    coordinator.assign(wire);
    assert!(matches!(coordinator.outcome(attempt).await, Outcome::Succeeded(_)), "the worker lives on");
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_fails_with_its_timeout() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    let (attempt, mut wire) = assignment(&coordinator, "hang");
    wire.timeout = Some(kiln_proto::convert::duration_to_wire(std::time::Duration::from_millis(100)));
    coordinator.assign(wire);
    let Outcome::Failed(failure) = coordinator.outcome(attempt).await else { panic!("it fails") };
    assert_eq!(failure.kind(), FailureKind::Build);
    assert!(failure.message.contains("--timeout"), "{}", failure.message);
}

#[tokio::test]
async fn secrets_never_reach_the_log_and_emulation_is_never_silent() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    let (attempt, mut wire) = assignment(&coordinator, "secrets");
    wire.secrets = [("npm".to_owned(), b"hunter22".to_vec())].into();
    wire.grade = Grade::Emulated.into();
    coordinator.assign(wire);
    coordinator.outcome(attempt).await;
    let log = coordinator.seen().log(attempt);
    assert_eq!(lines(&log), ["value: ***"]);
    let warning = log.iter().find_map(|entry| match &entry.event {
        Some(Event::Warning(warning)) => Some(warning.short.clone()),
        Some(Event::Vertex(_) | Event::Status(_) | Event::Line(_)) | None => None,
    });
    assert!(warning.is_some_and(|text| text.contains("linux/amd64 is emulated")));
}

#[tokio::test]
async fn a_flood_beyond_the_slots_is_refused_and_harms_nothing() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 2).await;
    let sent: Vec<_> = (0..50)
        .map(|_| {
            let (attempt, wire) = assignment(&coordinator, "gate");
            coordinator.assign(wire);
            attempt
        })
        .collect();
    for attempt in &sent[2..] {
        let Outcome::Failed(failure) = coordinator.outcome(*attempt).await else { panic!("it is refused") };
        assert_eq!(failure.kind(), FailureKind::Infrastructure);
        assert!(failure.message.contains("all 2 slots"), "{}", failure.message);
    }
    engine.gate.add_permits(2);
    for attempt in &sent[..2] {
        assert!(matches!(coordinator.outcome(*attempt).await, Outcome::Succeeded(_)));
    }
}

#[tokio::test]
async fn an_operator_changes_the_slots_without_a_restart() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    coordinator.set_slots(2);
    engine.gate.add_permits(2);
    for _ in 0..2 {
        coordinator.assign(assignment(&coordinator, "gate").1);
    }
    let succeeded = |report: &kiln_proto::v1::AttemptReport| matches!(report.outcome, Some(Outcome::Succeeded(_)));
    coordinator.until("both succeed", |seen| seen.reports.iter().filter(|report| succeeded(report)).count() == 2).await;
}

#[tokio::test]
async fn an_assignment_that_makes_no_sense_is_reported_as_such() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    let (attempt, mut wire) = assignment(&coordinator, "lines 1");
    wire.spec = None;
    coordinator.assign(wire);
    let Outcome::Failed(failure) = coordinator.outcome(attempt).await else { panic!("it is refused") };
    assert!(failure.message.contains("no spec"), "{}", failure.message);
}

#[tokio::test]
async fn a_step_reaches_the_client_s_ssh_agent() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    let (attempt, wire) = assignment(&coordinator, "ssh default sign-this");
    coordinator.assign(wire);
    coordinator.outcome(attempt).await;
    assert_eq!(lines(&coordinator.seen().log(attempt)), ["SIGN-THIS"]);
    assert_eq!(coordinator.seen().agent_calls, [(attempt.to_string(), "default".to_owned())]);
}
