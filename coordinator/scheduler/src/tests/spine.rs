//! The way of a build, and what ends it.

use std::time::Duration;

use crate::{Effect, Event, event::AttemptOutcome, record::*, testing::*};

#[test]
fn a_build_goes_straight_through() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    let dispatch = farm.last_dispatch();
    assert_eq!(*farm.state(1), BuildState::Queued);
    farm.report(&dispatch, AttemptOutcome::Started);
    assert_eq!(*farm.state(1), BuildState::Running);
    farm.report(&dispatch, succeeded());
    assert!(farm.has(|effect| matches!(effect, Effect::AcknowledgeReport { .. })));
    let job = farm.job();
    assert_eq!((job.publish, job.legs.len()), (1, 1));
    farm.published(&job);
    assert_eq!(*farm.state(1), BuildState::Succeeded);
    assert!(farm.has(|effect| matches!(effect, Effect::Finished { .. })));
}

#[test]
fn records_come_before_acts() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    let is_record = |effect: &Effect| matches!(effect, Effect::PutBuild(_) | Effect::PutTask(_) | Effect::PutWorker(_));
    let first_act = farm.effects.iter().position(|effect| !is_record(effect)).expect("an act");
    assert!(first_act > 0 && !farm.effects[first_act..].iter().any(is_record));
}

#[test]
fn a_failed_required_leg_stops_the_others_and_fails_the_build() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).connect(2, native(ARM64, 1)).submit(1, spec(&[AMD64, ARM64]));
    let first = farm.dispatches[0].clone();
    farm.report(&first, AttemptOutcome::BuildFailed { message: "RUN make: exit code 2".into() });
    let BuildState::Failed { message } = farm.state(1) else { panic!("{:?}", farm.state(1)) };
    assert_eq!(message, "linux/amd64: RUN make: exit code 2");
    let second = farm.dispatches[1].attempt;
    assert!(farm.has(|effect| matches!(effect, Effect::CancelAttempt { attempt, .. } if *attempt == second)));
    assert_eq!(farm.tasks(1)[1].state, TaskState::Cancelled);
}

#[test]
fn a_failed_optional_leg_leaves_the_build_incomplete() {
    let mut farm = Farm::new();
    let mut spec = spec(&[AMD64, ARM64]);
    spec.platforms[1].required = false;
    farm.connect(1, native(AMD64, 1)).connect(2, native(ARM64, 1)).submit(1, spec);
    let (required, optional) = (farm.dispatches[0].clone(), farm.dispatches[1].clone());
    farm.report(&optional, AttemptOutcome::BuildFailed { message: "no".into() }).report(&required, succeeded());
    let job = farm.job();
    farm.published(&job);
    assert_eq!(*farm.state(1), BuildState::Incomplete);
}

#[test]
fn the_publish_waits_for_an_optional_leg_but_not_for_ever() {
    let mut farm = Farm::new();
    let mut spec = spec(&[AMD64, ARM64]);
    spec.platforms[1].required = false;
    farm.connect(1, native(AMD64, 1)).connect(2, native(ARM64, 1)).submit(1, spec);
    let required = farm.dispatches[0].clone();
    farm.report(&required, succeeded());
    assert!(!farm.has(|effect| matches!(effect, Effect::Publish(_))));
    farm.pass(Duration::from_secs(600));
    assert_eq!(farm.job().legs.len(), 1);
    assert!(farm.has(|effect| matches!(effect, Effect::CancelAttempt { .. })));
}

#[test]
fn a_cancelled_build_stops_its_attempts_and_keeps_the_slot_until_they_have_stopped() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64])).submit(2, spec(&[AMD64]));
    let first = farm.last_dispatch();
    farm.event(Event::Cancel { build: build(1), reason: "asked".into() });
    assert!(farm.has(|effect| matches!(effect, Effect::CancelAttempt { .. })));
    assert_eq!(farm.dispatches.len(), 1);
    farm.report(&first, AttemptOutcome::Cancelled);
    assert_eq!(farm.last_dispatch().build, build(2));
}

#[test]
fn a_worker_that_does_not_stop_is_told_again() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    farm.event(Event::Cancel { build: build(1), reason: "asked".into() }).pass(Duration::from_secs(35));
    assert!(farm.has(|effect| matches!(effect, Effect::CancelAttempt { .. })));
}

#[test]
fn a_final_build_is_not_cancelled() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    let dispatch = farm.last_dispatch();
    farm.report(&dispatch, AttemptOutcome::BuildFailed { message: "no".into() });
    farm.event(Event::Cancel { build: build(1), reason: "late".into() });
    assert!(farm.effects.is_empty() && matches!(farm.state(1), BuildState::Failed { .. }));
}

#[test]
fn a_build_that_takes_too_long_fails_and_its_attempts_are_stopped() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1));
    farm.submit(1, kiln_common::BuildSpec { timeout: Duration::from_secs(60), ..spec(&[AMD64]) });
    farm.pass(Duration::from_secs(61));
    let BuildState::Failed { message } = farm.state(1) else { panic!("{:?}", farm.state(1)) };
    assert_eq!(message, "the build did not finish within 1m");
    assert!(farm.has(|effect| matches!(effect, Effect::CancelAttempt { .. })));
}

#[test]
fn a_retry_runs_what_failed_and_keeps_the_digests() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).connect(2, native(ARM64, 1)).submit(1, spec(&[AMD64, ARM64]));
    let (first, second) = (farm.dispatches[0].clone(), farm.dispatches[1].clone());
    farm.report(&first, succeeded()).report(&second, AttemptOutcome::BuildFailed { message: "no".into() });
    farm.event(Event::Retry { build: build(1), credentials: None });
    assert!(farm.has(|effect| matches!(effect, Effect::Accepted { .. })));
    assert_eq!((farm.dispatches.len(), farm.last_dispatch().task), (3, second.task));
    let again = farm.last_dispatch();
    farm.report(&again, succeeded());
    assert_eq!(farm.job().legs.len(), 2);
}

#[test]
fn a_retry_after_a_failed_publish_only_publishes() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    let dispatch = farm.last_dispatch();
    farm.report(&dispatch, succeeded());
    farm.event(Event::PublishFailed { build: build(1), publish: 1, published: None, message: "503".into() });
    assert!(matches!(farm.state(1), BuildState::Failed { .. }));
    farm.event(Event::Retry { build: build(1), credentials: None });
    assert_eq!((farm.dispatches.len(), farm.job().publish), (1, 2));
}

#[test]
fn the_outcome_of_an_abandoned_publish_changes_nothing() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    let dispatch = farm.last_dispatch();
    farm.report(&dispatch, succeeded());
    farm.event(Event::Cancel { build: build(1), reason: String::new() });
    assert!(farm.has(|effect| matches!(effect, Effect::AbandonPublish { .. })));
    farm.event(Event::Retry { build: build(1), credentials: None });
    let job = farm.job();
    farm.event(Event::PublishFailed { build: build(1), publish: 1, published: None, message: "late".into() });
    assert!(farm.effects.is_empty());
    farm.published(&job);
    assert_eq!(*farm.state(1), BuildState::Succeeded);
}

#[test]
fn a_build_in_the_wrong_state_is_neither_retried_nor_backfilled() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    for event in [
        Event::Retry { build: build(1), credentials: None },
        Event::Backfill { build: build(1), credentials: None },
        Event::Retry { build: build(9), credentials: None },
    ] {
        farm.event(event);
        assert!(matches!(farm.effects[..], [Effect::Refused { .. }]), "{:?}", farm.effects);
    }
}

#[test]
fn a_backfill_adds_the_missing_leg() {
    let mut farm = Farm::new();
    let mut spec = spec(&[AMD64, ARM64]);
    spec.platforms[1].required = false;
    farm.connect(1, native(AMD64, 1)).connect(2, native(ARM64, 1)).submit(1, spec);
    let (required, optional) = (farm.dispatches[0].clone(), farm.dispatches[1].clone());
    farm.report(&optional, AttemptOutcome::BuildFailed { message: "no".into() }).report(&required, succeeded());
    let job = farm.job();
    farm.published(&job).pass(Duration::from_secs(1)).event(Event::Backfill { build: build(1), credentials: None });
    let again = farm.last_dispatch();
    assert_eq!(again.task, optional.task);
    farm.report(&again, succeeded());
    let job = farm.job();
    assert!(job.legs.len() == 2 && job.earlier.is_some());
    farm.published(&job);
    assert_eq!(*farm.state(1), BuildState::Succeeded);
}

#[test]
fn a_backfill_that_brings_nothing_leaves_the_tags_alone() {
    let mut farm = Farm::new();
    let mut spec = spec(&[AMD64, ARM64]);
    spec.platforms[1].required = false;
    farm.connect(1, native(AMD64, 1)).connect(2, native(ARM64, 1)).submit(1, spec);
    let (required, optional) = (farm.dispatches[0].clone(), farm.dispatches[1].clone());
    farm.report(&optional, AttemptOutcome::BuildFailed { message: "no".into() }).report(&required, succeeded());
    let job = farm.job();
    farm.published(&job).event(Event::Backfill { build: build(1), credentials: None });
    let again = farm.last_dispatch();
    farm.report(&again, AttemptOutcome::BuildFailed { message: "no".into() });
    assert!(!farm.has(|effect| matches!(effect, Effect::Publish(_))));
    assert_eq!(*farm.state(1), BuildState::Incomplete);
}

#[test]
fn final_builds_are_forgotten_and_can_be_recalled() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    let dispatch = farm.last_dispatch();
    farm.report(&dispatch, AttemptOutcome::BuildFailed { message: "no".into() });
    let (record, tasks) = (farm.record(1).clone(), farm.tasks(1).into_iter().cloned().collect::<Vec<_>>());
    farm.pass(Duration::from_secs(601));
    assert!(farm.scheduler.build(build(1)).is_none());
    farm.event(Event::Recall { build: Box::new(record), tasks })
        .event(Event::Retry { build: build(1), credentials: None });
    assert_eq!(farm.dispatches.len(), 2);
}

#[test]
fn memory_stays_bounded_over_many_builds() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 4));
    for number in 0..5_000 {
        farm.effects = farm.scheduler.handle(
            Event::Submit {
                build: build(number),
                request_id: Some(number.to_string()),
                spec: Box::new(spec(&[AMD64])),
                credentials: None,
            },
            farm.now,
        );
        let found = farm
            .effects
            .iter()
            .find_map(|effect| if let Effect::Dispatch(dispatch) = effect { Some((**dispatch).clone()) } else { None });
        let dispatch = found.expect("a dispatch");
        let outcome = AttemptOutcome::BuildFailed { message: "no".into() };
        farm.scheduler
            .handle(Event::AttemptReported { worker: dispatch.worker, attempt: dispatch.attempt, outcome }, farm.now);
        farm.scheduler.handle_deadline(farm.now);
    }
    let sizes = farm.scheduler.sizes();
    assert!(sizes["builds"] <= 2_000 && sizes["tasks"] <= 2_000 && sizes["timers"] < 10, "{sizes:?}");
}
