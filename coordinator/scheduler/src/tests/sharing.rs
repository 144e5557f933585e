//! Identical legs in flight: who follows whom, and what becomes of followers when their leader ends in any way.

use std::time::Duration;

use kiln_common::{BuildSpec, Grade, spec::ImageDescriptor};

use crate::{
    Effect, Event, Scheduler,
    effect::Dispatch,
    event::AttemptOutcome,
    record::{BuildState, CredentialsMark, TaskState},
    testing::*,
};

/// Two builds that ask for the same: the first has the farm's only worker, the second follows.
fn leader_and_follower() -> (Farm, Dispatch) {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 2)).submit_as_is(1, spec(&[AMD64])).submit_as_is(2, spec(&[AMD64]));
    let dispatch = farm.last_dispatch();
    (farm, dispatch)
}

fn submit_with(farm: &mut Farm, number: u64, mark: Option<&str>) {
    let credentials = mark.map(|mark| CredentialsMark(mark.into()));
    let spec = Box::new(spec(&[AMD64]));
    farm.event(Event::Submit { build: build(number), request_id: None, spec, credentials });
}

fn cancel(farm: &mut Farm, number: u64) {
    farm.event(Event::Cancel { build: build(number), reason: "asked".into() });
}

fn follows(farm: &Farm, number: u64, leader: u64) -> bool {
    farm.tasks(number)[0].state == TaskState::Shared { with: farm.record(leader).tasks[0], build: build(leader) }
}

fn image_of(farm: &Farm, number: u64) -> Option<ImageDescriptor> {
    match &farm.tasks(number)[0].state {
        TaskState::Succeeded { image } => Some((**image).clone()),
        TaskState::Waiting { .. }
        | TaskState::Assigned
        | TaskState::Running
        | TaskState::Shared { .. }
        | TaskState::Backoff { .. }
        | TaskState::Failed { .. }
        | TaskState::Cancelled => None,
    }
}

fn stops(effect: &Effect) -> bool {
    matches!(effect, Effect::CancelAttempt { .. })
}

#[test]
fn a_follower_takes_over_what_its_leader_gives_and_publishes_it_itself() {
    let (mut farm, dispatch) = leader_and_follower();
    assert!(farm.dispatches.len() == 1 && follows(&farm, 2, 1));
    farm.report(&dispatch, AttemptOutcome::Started);
    assert_eq!((farm.state(1), farm.state(2)), (&BuildState::Running, &BuildState::Running));
    farm.report(&dispatch, succeeded());
    assert_eq!(image_of(&farm, 1), image_of(&farm, 2));
    let jobs = farm.effects.iter().filter(|effect| matches!(effect, Effect::Publish(_))).count();
    assert_eq!((image_of(&farm, 2), jobs), (Some(image(1)), 2));
    let named = farm.tasks(2)[0].attempt.as_ref().map(|attempt| (attempt.id, attempt.began_for));
    assert_eq!(named, Some((dispatch.attempt, Some(build(1)))));
}

#[test]
fn a_leg_that_waits_follows_as_soon_as_its_twin_has_a_worker() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(9, spec(&[AMD64]));
    let busy = farm.last_dispatch();
    farm.submit_as_is(1, spec(&[AMD64])).submit_as_is(2, spec(&[AMD64]));
    assert_eq!(farm.scheduler.waiting_tasks(), 2, "what waits is not held together");
    farm.report(&busy, succeeded());
    assert!(farm.dispatches.len() == 2 && follows(&farm, 2, 1) && farm.scheduler.waiting_tasks() == 0);
}

#[test]
fn a_cancelled_leader_leaves_its_attempt_to_the_first_follower() {
    let (mut farm, dispatch) = leader_and_follower();
    farm.submit_as_is(3, spec(&[AMD64])).report(&dispatch, AttemptOutcome::Started);
    cancel(&mut farm, 1);
    assert!(!farm.has(stops), "the attempt goes on");
    let heirs = |effect: &Effect| matches!(effect, Effect::PassOn(on) if on.build == build(2) && on.attempt == dispatch.attempt);
    assert!(farm.has(heirs) && farm.tasks(2)[0].state == TaskState::Running && follows(&farm, 3, 2));
    farm.report(&dispatch, succeeded());
    assert_eq!((image_of(&farm, 2), image_of(&farm, 3)), (Some(image(1)), Some(image(1))));
    assert!(matches!(farm.state(1), BuildState::Cancelled { .. }));
    assert_eq!(farm.dispatches.len(), 1);
}

#[test]
fn an_attempt_is_stopped_when_nobody_wants_it_any_more() {
    let (mut farm, _) = leader_and_follower();
    cancel(&mut farm, 2);
    assert!(!farm.has(stops), "its leader still wants it");
    cancel(&mut farm, 1);
    assert!(farm.has(stops));
}

#[test]
fn the_user_s_own_failure_is_the_failure_of_all() {
    let (mut farm, dispatch) = leader_and_follower();
    farm.report(&dispatch, AttemptOutcome::BuildFailed { message: "RUN make: exit code 2".into() });
    for number in [1, 2] {
        assert!(matches!(farm.state(number), BuildState::Failed { message } if message.contains("exit code 2")));
    }
}

#[test]
fn after_a_failure_of_the_farm_each_goes_on_by_itself_and_elsewhere() {
    let (mut farm, dispatch) = leader_and_follower();
    farm.report(&dispatch, broken()).connect(2, native(AMD64, 1)).pass(Duration::from_secs(30));
    assert_eq!((farm.tasks(1)[0].attempts, farm.tasks(2)[0].attempts), (2, 2), "a try of both");
    let again = farm.last_dispatch();
    assert_eq!((farm.dispatches.len(), again.worker), (2, worker(2)), "one more attempt for both, elsewhere");
    farm.report(&again, succeeded());
    assert_eq!((image_of(&farm, 1), image_of(&farm, 2)), (Some(image(1)), Some(image(1))));
}

#[test]
fn a_lost_worker_s_followers_are_tried_elsewhere_with_their_leader() {
    let (mut farm, _) = leader_and_follower();
    farm.connect(2, native(AMD64, 1)).event(Event::WorkerDisconnected { worker: worker(1) });
    farm.pass(Duration::from_secs(60));
    let again = farm.last_dispatch();
    assert_eq!((farm.dispatches.len(), again.worker), (2, worker(2)));
    farm.report(&again, succeeded());
    assert_eq!((image_of(&farm, 1), image_of(&farm, 2)), (Some(image(1)), Some(image(1))));
}

#[test]
fn a_build_with_more_time_goes_on_after_its_leader_s_ran_out() {
    let mut farm = Farm::new();
    let brief = BuildSpec { timeout: Duration::from_secs(60), ..spec(&[AMD64]) };
    farm.connect(1, native(AMD64, 1)).submit_as_is(1, brief).submit_as_is(2, spec(&[AMD64]));
    let first = farm.last_dispatch();
    farm.pass(Duration::from_secs(61));
    assert!(matches!(farm.state(1), BuildState::Failed { .. }) && farm.dispatches.len() == 1);
    farm.report(&first, AttemptOutcome::BuildFailed { message: "did not finish in its time".into() });
    let second = farm.last_dispatch();
    assert_eq!((farm.dispatches.len(), second.build), (2, build(2)), "the worker gave up for another's deadline");
    farm.report(&second, succeeded());
    assert_eq!(image_of(&farm, 2), Some(image(1)));
}

#[test]
fn builds_share_only_where_each_could_have_built_alone() {
    let private: [fn(&mut BuildSpec); 6] = [
        |spec| spec.secret_ids = vec!["token".into()],
        |spec| spec.ssh_ids = vec!["default".into()],
        |spec| spec.no_cache = true,
        |spec| spec.project = "another".into(),
        |spec| spec.tags = vec!["r.example/other:1".parse().expect("a tag")],
        |spec| spec.pull = true,
    ];
    for change in private {
        let mut farm = Farm::new();
        let mut other = spec(&[AMD64]);
        change(&mut other);
        farm.connect(1, native(AMD64, 2)).submit_as_is(1, spec(&[AMD64])).submit_as_is(2, other.clone());
        assert_eq!(farm.dispatches.len(), 2, "{other:?}");
    }
}

#[test]
fn a_build_never_gets_what_another_s_registry_credentials_opened() {
    for (first, second, dispatches) in [
        (Some("alice"), None, 2),
        (Some("alice"), Some("bob"), 2),
        (None, Some("bob"), 2),
        (Some("alice"), Some("alice"), 1),
    ] {
        let mut farm = Farm::new();
        farm.connect(1, native(AMD64, 2));
        submit_with(&mut farm, 1, first);
        submit_with(&mut farm, 2, second);
        assert_eq!(farm.dispatches.len(), dispatches, "{first:?} {second:?}");
    }
}

#[test]
fn a_retry_shares_by_the_credentials_that_it_brings_itself() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 2));
    submit_with(&mut farm, 1, Some("alice"));
    cancel(&mut farm, 1);
    let stopped = farm.last_dispatch();
    farm.report(&stopped, AttemptOutcome::Cancelled);
    submit_with(&mut farm, 2, Some("alice"));
    farm.event(Event::Retry { build: build(1), credentials: None });
    assert_eq!(farm.dispatches.len(), 3, "whoever retries has not shown that it is alice");
}

#[test]
fn a_restart_finds_leader_and_follower_as_they_were() {
    let (farm, dispatch) = leader_and_follower();
    let builds =
        [1, 2].map(|number| (farm.record(number).clone(), farm.tasks(number).into_iter().cloned().collect::<Vec<_>>()));
    let workers = farm.scheduler.workers().map(|view| view.record.clone()).collect();
    let mut later = Farm { scheduler: Scheduler::new(crate::Config::default(), 2), ..Farm::new() };
    later.now = farm.now;
    later.event(Event::Restore { builds: builds.into(), workers });
    assert!(follows(&later, 2, 1));
    later.reconnect(1, native(AMD64, 2), vec![dispatch.attempt]).report(&dispatch, succeeded());
    assert_eq!((image_of(&later, 1), image_of(&later, 2)), (Some(image(1)), Some(image(1))));
    assert!(later.dispatches.is_empty());
}

#[test]
fn legs_share_by_platform_and_the_rest_is_built() {
    let mut farm = Farm::new();
    let both = &[(AMD64, Grade::Native), (ARM64, Grade::Native)];
    farm.connect(1, facts(both, 4)).submit_as_is(1, spec(&[AMD64])).submit_as_is(2, spec(&[ARM64, AMD64]));
    let platforms: Vec<_> =
        farm.dispatches.iter().map(|dispatch| (dispatch.build, dispatch.platform.clone())).collect();
    assert_eq!(platforms, [(build(1), platform(AMD64)), (build(2), platform(ARM64))]);
}
