//! What survives when the coordinator goes away, and what does not.

mod support;

use std::time::Duration;

use kiln_common::runtime::Shutdown;
use kiln_proto::{
    SESSION_PROTOCOLS,
    v1::{Grade, attempt_report::Outcome},
};
use kiln_worker::{Worker, enroll};
use support::{
    PATIENCE, assignment, config,
    coordinator::Coordinator,
    engine::{ScriptedEngine, platform},
    lines, worker, worker_with,
};

#[tokio::test]
async fn a_coordinator_s_restart_loses_and_doubles_no_line_and_no_report() {
    let (mut coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 2).await;
    let (gated, wire) = assignment(&coordinator, "gate");
    coordinator.assign(wire);
    coordinator.until("the first line", |seen| lines(&seen.log(gated)) == ["before"]).await;
    let (long, wire) = assignment(&coordinator, "lines 20000");
    coordinator.assign(wire);
    coordinator.until("some lines", |seen| seen.log(long).len() > 100).await;

    coordinator.kill();
    engine.gate.add_permits(1);
    engine.idle().await;
    coordinator.restart().await;

    assert!(matches!(coordinator.outcome(gated).await, Outcome::Succeeded(_)));
    let Outcome::Succeeded(report) = coordinator.outcome(long).await else { panic!("it succeeds") };
    let seen = coordinator.seen();
    assert_eq!(lines(&seen.log(gated)), ["before", "after"]);
    assert_eq!(lines(&seen.log(long)), (0..20_000).map(|number| format!("line {number}")).collect::<Vec<_>>());
    assert_eq!(report.log_entries, seen.log(long).len() as u64);
    assert_eq!((seen.finals(gated).count(), seen.finals(long).count()), (1, 1));
    assert_eq!(seen.hellos.len(), 2);
    assert_eq!(seen.hellos[0].instance_id, seen.hellos[1].instance_id);
}

#[tokio::test]
async fn a_report_is_repeated_until_it_is_acknowledged() {
    let (mut coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    coordinator.seen().acknowledges_reports = false;
    let (attempt, wire) = assignment(&coordinator, "lines 3");
    coordinator.assign(wire);
    coordinator.outcome(attempt).await;
    coordinator.kill();
    coordinator.seen().acknowledges_reports = true;
    coordinator.restart().await;
    coordinator.until("the report again", |seen| seen.finals(attempt).count() == 2).await;
    assert_eq!(coordinator.seen().hellos[1].attempt_ids, [attempt.to_string()]);
    coordinator.kill();
    coordinator.restart().await;
    coordinator.until("a third session", |seen| seen.hellos.len() == 3).await;
    assert!(coordinator.seen().hellos[2].attempt_ids.is_empty(), "acknowledged is forgotten");
}

#[tokio::test]
async fn an_attempt_that_is_not_adopted_stops_without_a_report() {
    let (mut coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    let (attempt, wire) = assignment(&coordinator, "hang");
    coordinator.assign(wire);
    coordinator.until("the start", |seen| !seen.reports.is_empty()).await;
    coordinator.kill();
    coordinator.seen().adopts = false;
    coordinator.restart().await;
    coordinator.until("the next session", |seen| seen.hellos.len() == 2).await;
    let (next, wire) = assignment(&coordinator, "lines 1");
    coordinator.assign(wire);
    assert!(matches!(coordinator.outcome(next).await, Outcome::Succeeded(_)), "its slot is free");
    engine.idle().await;
    assert!(coordinator.seen().outcome(attempt).is_none());
}

#[tokio::test]
async fn logs_that_find_no_taker_do_not_hold_the_report_for_ever() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    coordinator.seen().takes_logs = false;
    let (attempt, wire) = assignment(&coordinator, "lines 10");
    coordinator.assign(wire);
    assert!(matches!(coordinator.outcome(attempt).await, Outcome::Succeeded(_)));
}

#[tokio::test]
async fn a_worker_whose_engine_goes_away_runs_no_platform_until_it_is_back() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    assert_eq!(coordinator.seen().hellos[0].platforms.len(), 1);
    engine.go_away();
    coordinator.until("a Hello without platforms", |seen| seen.hellos.len() == 2).await;
    assert!(coordinator.seen().hellos[1].platforms.is_empty());
    engine.come_back();
    coordinator.until("a Hello with platforms", |seen| seen.hellos.len() == 3).await;
    assert_eq!(coordinator.seen().hellos[2].platforms.len(), 1);
}

#[tokio::test]
async fn an_engine_that_is_back_is_probed_anew() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let _worker = worker(&coordinator, &engine, 1).await;
    engine.go_away();
    coordinator.until("a Hello without platforms", |seen| seen.hellos.len() == 2).await;
    *engine.platforms.lock().unwrap() = platform("linux/arm64", kiln_common::Grade::Emulated);
    engine.come_back();
    coordinator.until("a Hello with platforms", |seen| seen.hellos.len() == 3).await;
    let found = coordinator.seen().hellos[2].platforms.clone();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].platform.as_str(), found[0].grade()), ("linux/arm64", Grade::Emulated));
}

#[tokio::test]
async fn platforms_that_an_operator_sets_go_over_those_that_a_probe_finds() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let set = platform("linux/riscv64", kiln_common::Grade::Native);
    let _worker = worker_with(&coordinator, &engine, 1, |config| config.platforms = set).await;
    let said = coordinator.seen().hellos[0].platforms.clone();
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].platform.as_str(), said[0].grade()), ("linux/riscv64", Grade::Native));
}

#[tokio::test]
async fn a_worker_follows_the_leader_and_sends_heartbeats() {
    let standby = Coordinator::start().await;
    let leader = Coordinator::start_with(&standby).await;
    standby.seen().leader_elsewhere = Some(leader.address());
    let folder = tempfile::tempdir().unwrap();
    let config = config(&standby, folder.path(), 1);
    let token = config.join_token.clone();
    let identity = enroll::identity(folder.path(), token.as_ref(), &config.coordinators, "w").await.unwrap();
    let worker = Worker::new(config, identity, ScriptedEngine::new()).await.unwrap();
    let running = tokio::spawn(worker.run(Shutdown::new()));
    leader.until("heartbeats at the leader", |seen| seen.heartbeats > 1).await;
    assert!(standby.seen().hellos.is_empty());
    running.abort();
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_ends() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let worker = worker(&coordinator, &engine, 2).await;
    let (attempt, wire) = assignment(&coordinator, "gate");
    coordinator.assign(wire);
    coordinator.until("the start", |seen| !seen.reports.is_empty()).await;
    worker.shutdown.drain();
    coordinator.until("Leaving", |seen| seen.leaving).await;
    let (late, wire) = assignment(&coordinator, "lines 1");
    coordinator.assign(wire);
    assert!(matches!(coordinator.outcome(late).await, Outcome::Failed(_)), "nothing new is taken");
    engine.gate.add_permits(1);
    assert!(matches!(coordinator.outcome(attempt).await, Outcome::Succeeded(_)));
    tokio::time::timeout(PATIENCE, worker.running).await.expect("it ends").unwrap().expect("well");
}

#[tokio::test]
async fn a_second_signal_stops_what_runs_as_the_farm_s_failure() {
    let (coordinator, engine) = (Coordinator::start().await, ScriptedEngine::new());
    let worker = worker(&coordinator, &engine, 1).await;
    let (attempt, wire) = assignment(&coordinator, "hang");
    coordinator.assign(wire);
    coordinator.until("the start", |seen| !seen.reports.is_empty()).await;
    worker.shutdown.drain();
    worker.shutdown.stop();
    let Outcome::Failed(failure) = coordinator.outcome(attempt).await else { panic!("it fails") };
    assert!(failure.message.contains("the worker was stopped"));
    tokio::time::timeout(Duration::from_secs(6), worker.running).await.expect("soon").unwrap().expect("well");
}

#[tokio::test]
async fn a_coordinator_of_a_distant_release_gets_no_session_until_it_is_updated() {
    let coordinator = Coordinator::start().await;
    coordinator.seen().protocol = SESSION_PROTOCOLS.newest + 1;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&coordinator, folder.path(), 1);
    let identity = enroll::identity(folder.path(), config.join_token.as_ref(), &[], "w").await.unwrap();
    let worker = Worker::new(config, identity, ScriptedEngine::new()).await.unwrap();
    let running = tokio::spawn(worker.run(Shutdown::new()));
    coordinator.until("two tries", |seen| seen.hellos.len() == 2).await;
    assert_eq!(coordinator.seen().heartbeats, 0);
    coordinator.seen().protocol = SESSION_PROTOCOLS.newest;
    coordinator.until("a session", |seen| seen.heartbeats > 0).await;
    running.abort();
}
