//! Workers that say they pushed what is not there.

use std::time::Duration;

use crate::{Effect, Event, query::WorkerState, record::*, testing::*};

fn missing(farm: &mut Farm, publish: u32, platforms: &[&str]) {
    let platforms = platforms.iter().map(|text| platform(text)).collect();
    farm.event(Event::LegsMissing { build: build(1), publish, platforms, message: "not in the registry".into() });
}

#[test]
fn a_leg_that_is_not_in_the_registry_is_built_again_elsewhere_and_the_others_stay() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).connect(2, native(ARM64, 1)).submit(1, spec(&[AMD64, ARM64]));
    let (first, other) = (farm.dispatches[0].clone(), farm.dispatches[1].clone());
    farm.report(&first, succeeded()).report(&other, succeeded()).connect(3, native(AMD64, 1));
    missing(&mut farm, 1, &[AMD64]);
    assert_eq!(*farm.state(1), BuildState::Running);
    assert!(matches!(farm.tasks(1)[0].state, TaskState::Backoff { .. }));
    farm.pass(Duration::from_secs(60));
    let again = farm.last_dispatch();
    assert_eq!((farm.dispatches.len(), again.task, again.worker), (3, first.task, worker(3)));
    farm.report(&again, succeeded());
    let job = farm.job();
    assert_eq!((job.publish, job.legs.len()), (2, 2));
    farm.published(&job);
    assert_eq!(*farm.state(1), BuildState::Succeeded);
}

#[test]
fn a_leg_that_nobody_pushes_fails_the_build_after_its_tries() {
    let mut farm = Farm::new();
    for number in 1..=5 {
        farm.connect(number, native(AMD64, 1));
    }
    farm.submit(1, spec(&[AMD64]));
    for publish in 1.. {
        let dispatch = farm.last_dispatch();
        farm.report(&dispatch, succeeded());
        missing(&mut farm, publish, &[AMD64]);
        if farm.state(1).is_final() {
            break;
        }
        farm.pass(Duration::from_secs(300));
        assert!(publish < 10, "{:?}", farm.tasks(1));
    }
    let BuildState::Failed { message } = farm.state(1) else { panic!("{:?}", farm.state(1)) };
    assert!(message.contains("not in the registry") && message.contains("tried"), "{message}");
}

#[test]
fn three_images_that_are_missing_quarantine_their_worker() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 3));
    for number in 1..=3 {
        farm.submit(number, spec(&[AMD64]));
        let dispatch = farm.last_dispatch();
        farm.report(&dispatch, succeeded());
        let (platforms, message) = (vec![platform(AMD64)], "not in the registry".to_owned());
        farm.event(Event::LegsMissing { build: build(number), publish: 1, platforms, message });
    }
    let view = farm.scheduler.worker(worker(1)).expect("known");
    assert_eq!(view.state, WorkerState::Quarantined);
    assert!(view.record.quarantine.as_ref().is_some_and(|why| why.reason.contains("not in the registry")));
}

#[test]
fn what_is_missing_of_an_earlier_publish_changes_nothing() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    let dispatch = farm.last_dispatch();
    farm.report(&dispatch, succeeded());
    missing(&mut farm, 7, &[AMD64]);
    assert!(farm.effects.is_empty());
    missing(&mut farm, 1, &[ARM64]);
    assert!(matches!(farm.state(1), BuildState::Failed { .. }), "a publisher that names no leg of the build");
    assert!(farm.has(|effect| matches!(effect, Effect::Finished { .. })));
}
