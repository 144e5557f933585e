//! Lost workers, late reports, infrastructure failures, quarantine, restarts.

use std::time::Duration;

use crate::{Effect, Event, Scheduler, event::AttemptOutcome, query::WorkerState, record::*, testing::*};

fn two_workers() -> Farm {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64])).connect(2, native(AMD64, 1));
    farm
}

fn lost(farm: &mut Farm, number: u64) -> &mut Farm {
    farm.event(Event::WorkerDisconnected { worker: worker(number) })
}

#[test]
fn a_lost_worker_requeues_its_task_once_and_elsewhere() {
    let mut farm = two_workers();
    let first = farm.last_dispatch();
    lost(&mut farm, 1).pass(Duration::from_secs(29));
    assert_eq!(farm.dispatches.len(), 1);
    farm.pass(Duration::from_secs(60));
    let second = farm.last_dispatch();
    assert_eq!((farm.dispatches.len(), second.worker, farm.tasks(1)[0].attempts), (2, worker(2), 2));
    assert_ne!(first.attempt, second.attempt);
}

#[test]
fn a_worker_that_returns_within_the_grace_period_keeps_its_task() {
    let mut farm = two_workers();
    let first = farm.last_dispatch();
    lost(&mut farm, 1).pass(Duration::from_secs(20));
    farm.reconnect(1, native(AMD64, 1), vec![first.attempt]);
    assert!(farm.has(|effect| matches!(effect, Effect::Adopted { attempts, .. } if attempts == &[first.attempt])));
    farm.pass(Duration::from_secs(60)).report(&first, succeeded());
    assert_eq!((farm.dispatches.len(), farm.job().legs.len()), (1, 1));
}

#[test]
fn a_worker_that_returns_without_its_attempt_loses_the_task_at_once() {
    let mut farm = two_workers();
    lost(&mut farm, 1).reconnect(1, native(AMD64, 1), Vec::new());
    assert_eq!((farm.dispatches.len(), farm.last_dispatch().worker), (2, worker(2)));
}

#[test]
fn an_assignment_on_its_way_survives_a_second_hello_of_the_same_session() {
    let mut farm = two_workers();
    farm.reconnect(1, native(AMD64, 2), Vec::new());
    assert_eq!(farm.dispatches.len(), 1);
    let first = farm.last_dispatch();
    farm.report(&first, AttemptOutcome::Started).reconnect(1, native(AMD64, 2), Vec::new());
    assert_eq!(farm.dispatches.len(), 2, "a started attempt that is not announced is lost");
}

#[test]
fn a_late_report_of_a_superseded_attempt_changes_nothing_but_is_acknowledged() {
    let mut farm = two_workers();
    let first = farm.last_dispatch();
    lost(&mut farm, 1).pass(Duration::from_secs(31));
    farm.reconnect(1, native(AMD64, 1), vec![first.attempt]);
    assert!(farm.has(|effect| matches!(effect, Effect::CancelAttempt { attempt, .. } if *attempt == first.attempt)));
    farm.report(&first, succeeded());
    assert!(matches!(farm.effects[..], [Effect::AcknowledgeReport { .. }]), "{:?}", farm.effects);
    assert_eq!(farm.tasks(1)[0].state, TaskState::Assigned);
}

#[test]
fn a_report_from_another_worker_changes_nothing() {
    let mut farm = two_workers();
    let mut foreign = farm.last_dispatch();
    foreign.worker = worker(2);
    farm.report(&foreign, succeeded());
    assert_eq!(farm.tasks(1)[0].state, TaskState::Assigned);
}

#[test]
fn a_worker_that_falls_silent_is_lost_when_its_lease_ends() {
    let mut farm = two_workers();
    farm.pass_silently(Duration::from_secs(21));
    assert!(farm.has(|effect| matches!(effect, Effect::CloseSession { .. })));
    assert_eq!(farm.scheduler.worker(worker(1)).expect("known").state, WorkerState::Offline);
}

#[test]
fn a_heartbeat_of_a_worker_that_was_given_up_closes_its_session() {
    let mut farm = two_workers();
    farm.pass_silently(Duration::from_secs(21)).stats(1, Default::default());
    assert!(matches!(farm.effects[..], [Effect::CloseSession { .. }]));
}

#[test]
fn an_infrastructure_failure_backs_off_and_goes_elsewhere() {
    let mut farm = two_workers();
    let first = farm.last_dispatch();
    farm.report(&first, broken());
    assert!(matches!(farm.tasks(1)[0].state, TaskState::Backoff { .. }));
    farm.pass(Duration::from_secs(5));
    assert_eq!(farm.last_dispatch().worker, worker(2));
}

#[test]
fn the_only_worker_gets_the_task_again() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    let first = farm.last_dispatch();
    farm.report(&first, broken()).pass(Duration::from_secs(5));
    assert_eq!((farm.dispatches.len(), farm.last_dispatch().worker), (2, worker(1)));
}

#[test]
fn a_task_that_its_only_worker_is_quarantined_for_fails_and_does_not_wait_for_ever() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    for _ in 0..3 {
        assert!(!farm.state(1).is_final());
        let dispatch = farm.last_dispatch();
        farm.report(&dispatch, broken()).pass(Duration::from_secs(30));
    }
    let BuildState::Failed { message } = farm.state(1) else { panic!("{:?}", farm.state(1)) };
    assert_eq!(message, "linux/amd64: the engine does not answer (tried 3 times)");
}

#[test]
fn a_registry_that_does_not_answer_is_not_held_against_the_worker() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    for _ in 0..4 {
        let dispatch = farm.last_dispatch();
        farm.report(&dispatch, unpushed()).pass(Duration::from_secs(30));
    }
    let BuildState::Failed { message } = farm.state(1) else { panic!("{:?}", farm.state(1)) };
    assert_eq!(message, "linux/amd64: the registry does not answer (tried 4 times)");
    let before = farm.dispatches.len();
    farm.submit(2, spec(&[AMD64]));
    assert_eq!(farm.dispatches.len(), before + 1, "the next build waits for nothing");
}

#[test]
fn a_canary_that_no_registry_takes_says_nothing_of_the_worker() {
    let mut farm = quarantined();
    farm.submit(7, spec(&[AMD64])).pass(Duration::from_secs(300));
    let canary = farm.last_dispatch();
    farm.report(&canary, unpushed());
    farm.event(Event::Cancel { build: build(7), reason: String::new() });
    farm.submit(8, spec(&[AMD64]));
    let next = farm.last_dispatch();
    assert_ne!(next.attempt, canary.attempt, "another canary goes at once");
    farm.report(&next, succeeded());
    assert_eq!(farm.scheduler.worker(worker(1)).expect("known").state, WorkerState::Ready);
}

#[test]
fn a_task_waits_for_another_worker_that_could_take_it() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).connect(2, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    for _ in 0..3 {
        let dispatch = farm.last_dispatch();
        farm.report(&dispatch, broken()).pass(Duration::from_secs(30));
    }
    assert!(!farm.state(1).is_final(), "neither worker is quarantined");
}

#[test]
fn a_task_is_retried_three_times_and_then_fails_with_the_last_message() {
    let mut farm = Farm::new();
    (1..=4).for_each(|number| {
        farm.connect(number, native(AMD64, 1));
    });
    farm.submit(1, spec(&[AMD64]));
    for _ in 0..4 {
        assert!(!farm.state(1).is_final());
        let dispatch = farm.last_dispatch();
        farm.report(&dispatch, broken()).pass(Duration::from_secs(30));
    }
    let BuildState::Failed { message } = farm.state(1) else { panic!("{:?}", farm.state(1)) };
    assert_eq!(message, "linux/amd64: the engine does not answer (tried 4 times)");
    let workers: std::collections::BTreeSet<_> = farm.dispatches.iter().map(|dispatch| dispatch.worker).collect();
    assert_eq!(workers.len(), 4);
}

fn quarantined() -> Farm {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1));
    for number in 0..3 {
        farm.submit(number, spec(&[AMD64]));
        let dispatch = farm.last_dispatch();
        farm.report(&dispatch, broken());
        farm.event(Event::Cancel { build: build(number), reason: String::new() });
    }
    farm
}

#[test]
fn three_infrastructure_failures_within_ten_minutes_quarantine_a_worker() {
    let mut farm = quarantined();
    let view = farm.scheduler.worker(worker(1)).expect("known");
    assert_eq!(view.state, WorkerState::Quarantined);
    assert!(view.reason.contains("the engine does not answer"), "{}", view.reason);
    farm.submit(7, spec(&[AMD64]));
    assert_eq!(farm.dispatches.len(), 3);
}

#[test]
fn a_canary_that_goes_well_ends_the_quarantine() {
    let mut farm = quarantined();
    farm.submit(7, spec(&[AMD64])).submit(8, spec(&[AMD64])).pass(Duration::from_secs(125));
    assert_eq!(farm.dispatches.len(), 4, "one canary and no more");
    let canary = farm.last_dispatch();
    farm.report(&canary, succeeded());
    assert_eq!(farm.scheduler.worker(worker(1)).expect("known").state, WorkerState::Ready);
    assert_eq!(farm.dispatches.len(), 5);
}

#[test]
fn a_canary_that_fails_doubles_the_wait() {
    let mut farm = quarantined();
    farm.submit(7, spec(&[AMD64])).pass(Duration::from_secs(125));
    let canary = farm.last_dispatch();
    farm.report(&canary, broken());
    let quarantine = farm.scheduler.worker(worker(1)).expect("known").record.quarantine.clone().expect("still");
    assert_eq!(quarantine.canary_at.since(farm.now), Duration::from_secs(240));
}

#[test]
fn an_operator_ends_a_quarantine() {
    let mut farm = quarantined();
    farm.event(Event::WorkerUpdated { worker: worker(1), update: crate::event::WorkerUpdate::Uncordon });
    farm.submit(7, spec(&[AMD64]));
    assert_eq!(farm.dispatches.len(), 4);
}

#[test]
fn a_removed_worker_s_tasks_go_elsewhere_at_once() {
    let mut farm = two_workers();
    farm.event(Event::WorkerRemoved { worker: worker(1) });
    assert!(farm.has(|effect| matches!(effect, Effect::DeleteWorker(_))));
    assert_eq!(farm.last_dispatch().worker, worker(2));
    assert!(farm.scheduler.worker(worker(1)).is_none());
}

/// A new scheduler from the records of the old one.
fn restart(farm: &mut Farm) {
    let builds = farm.scheduler.builds().map(|record| record.id).collect::<Vec<_>>();
    let builds = builds.into_iter().map(|id| {
        let tasks = farm.scheduler.tasks_of(id).cloned().collect();
        (farm.scheduler.build(id).expect("there").clone(), tasks)
    });
    let event = Event::Restore {
        builds: builds.collect(),
        workers: farm.scheduler.workers().map(|view| view.record.clone()).collect(),
    };
    farm.scheduler = Scheduler::new(crate::Config::default(), 2);
    farm.event(event);
}

#[test]
fn after_a_restart_a_running_attempt_is_adopted() {
    let mut farm = two_workers();
    let first = farm.last_dispatch();
    restart(&mut farm);
    farm.pass(Duration::from_secs(10)).reconnect(1, native(AMD64, 1), vec![first.attempt]);
    farm.report(&first, succeeded());
    assert_eq!((farm.dispatches.len(), farm.job().legs.len()), (1, 1));
}

#[test]
fn after_a_restart_an_attempt_whose_worker_stays_away_is_tried_elsewhere() {
    let mut farm = two_workers();
    restart(&mut farm);
    farm.reconnect(2, native(AMD64, 1), Vec::new()).pass(Duration::from_secs(31));
    assert_eq!((farm.dispatches.len(), farm.last_dispatch().worker), (2, worker(2)));
}

#[test]
fn after_a_restart_a_publish_goes_on() {
    let mut farm = two_workers();
    let first = farm.last_dispatch();
    farm.report(&first, succeeded());
    restart(&mut farm);
    let job = farm.job();
    farm.published(&job);
    assert_eq!(*farm.state(1), BuildState::Succeeded);
}

#[test]
fn after_a_restart_final_builds_are_finished_again() {
    let mut farm = two_workers();
    farm.event(Event::Cancel { build: build(1), reason: String::new() });
    restart(&mut farm);
    assert!(farm.has(|effect| matches!(effect, Effect::Finished { .. })));
}
