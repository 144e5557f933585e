//! Who gets which task.

use std::{collections::BTreeMap, time::Duration};

use kiln_common::{BuildSpec, EmulationPolicy, Feature, Grade};

use crate::{
    Effect, Event,
    effect::Refusal,
    event::{WorkerStats, WorkerUpdate},
    record::*,
    testing::*,
};

fn refusal(farm: &Farm) -> Refusal {
    let refusals = farm.effects.iter();
    let mut refusals = refusals.filter_map(|effect| {
        if let Effect::Refused { refusal, .. } = effect { Some(Refusal::clone(refusal)) } else { None }
    });
    refusals.next().expect("a refusal")
}

#[test]
fn a_platform_that_no_worker_runs_is_refused_with_those_that_there_are() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&["windows/amd64"]));
    assert_eq!(refusal(&farm).to_string(), "no worker of this farm runs windows/amd64; it has linux/amd64");
}

#[test]
fn a_platform_of_an_offline_worker_is_accepted_and_waits() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).event(Event::WorkerDisconnected { worker: worker(1) });
    farm.submit(1, spec(&[AMD64]));
    assert!(farm.has(|effect| matches!(effect, Effect::Accepted { .. })) && farm.dispatches.is_empty());
    farm.reconnect(1, native(AMD64, 1), Vec::new());
    assert_eq!(farm.dispatches.len(), 1);
}

#[test]
fn a_feature_that_no_engine_has_is_refused_with_the_engines_that_lack_it() {
    let mut farm = Farm::new();
    let spec = BuildSpec { provenance: Some("mode=max".into()), ..spec(&[AMD64]) };
    farm.connect(1, native(AMD64, 1)).submit(1, spec);
    assert_eq!(
        refusal(&farm).to_string(),
        "no worker for linux/amd64 can do what --provenance or --sbom needs: `w1` (dockerd-classic 20.10.24) lacks attestations"
    );
}

#[test]
fn a_task_goes_to_a_worker_whose_engine_has_the_features() {
    let mut farm = Farm::new();
    let able = WorkerFacts { features: [Feature::Attestations].into(), ..native(AMD64, 1) };
    farm.connect(1, native(AMD64, 1)).connect(2, able);
    farm.submit(1, BuildSpec { provenance: Some("mode=max".into()), ..spec(&[AMD64]) });
    assert_eq!(farm.last_dispatch().worker, worker(2));
}

#[test]
fn required_labels_are_matched_and_what_nobody_carries_is_refused() {
    let mut farm = Farm::new();
    let zone = |zone: &str| BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
    farm.connect(1, native(AMD64, 1)).connect(2, WorkerFacts { labels: zone("b"), ..native(AMD64, 1) });
    farm.submit(1, BuildSpec { required_labels: zone("b"), ..spec(&[AMD64]) });
    assert_eq!(farm.last_dispatch().worker, worker(2));
    farm.submit(2, BuildSpec { required_labels: zone("c"), ..spec(&[AMD64]) });
    assert!(matches!(refusal(&farm), Refusal::NoWorkerWithLabels { .. }));
}

#[test]
fn a_feature_that_no_worker_with_the_labels_has_is_refused_by_the_feature() {
    let mut farm = Farm::new();
    let zone = BTreeMap::from([("zone".to_owned(), "b".to_owned())]);
    let able = WorkerFacts { features: [Feature::StepLimits].into(), ..native(AMD64, 1) };
    farm.connect(1, able).connect(2, WorkerFacts { labels: zone.clone(), ..native(AMD64, 1) });
    farm.submit(1, BuildSpec { required_labels: zone, shm_size: Some(1), ..spec(&[AMD64]) });
    let refusal = refusal(&farm).to_string();
    assert!(refusal.contains("`w2`") && refusal.contains("step-limits") && !refusal.contains("w1"), "{refusal}");
}

#[test]
fn a_relabelled_worker_takes_what_waited_for_the_label() {
    let mut farm = Farm::new();
    let zone = BTreeMap::from([("zone".to_owned(), "b".to_owned())]);
    farm.connect(1, WorkerFacts { labels: zone.clone(), ..native(AMD64, 1) }).connect(2, native(AMD64, 1));
    farm.submit(1, BuildSpec { required_labels: zone.clone(), ..spec(&[AMD64]) });
    farm.submit(2, BuildSpec { required_labels: zone, ..spec(&[AMD64]) });
    assert_eq!(farm.dispatches.len(), 1);
    let set = vec![("zone".to_owned(), "b".to_owned())];
    farm.event(Event::WorkerUpdated { worker: worker(2), update: WorkerUpdate::Labels { set, remove: Vec::new() } });
    assert_eq!(farm.last_dispatch().worker, worker(2));
}

#[test]
fn more_open_builds_than_the_farm_may_hold_are_refused() {
    let mut farm = Farm::with(crate::Config { open_builds: 1, ..Default::default() });
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64])).submit(2, spec(&[AMD64]));
    assert_eq!(refusal(&farm), Refusal::Overloaded { open: 1 });
}

#[test]
fn the_same_request_id_gives_the_same_build() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 2));
    for number in [1, 2] {
        let request_id = Some("ci-7".to_owned());
        farm.event(Event::Submit {
            build: build(number),
            request_id,
            spec: Box::new(spec(&[AMD64])),
            credentials: None,
        });
    }
    assert_eq!(farm.effects, [Effect::Accepted { build: build(1) }]);
    assert_eq!(farm.dispatches.len(), 1);
}

#[test]
fn variants_are_matched_exactly() {
    let mut farm = Farm::new();
    farm.connect(1, native("linux/arm/v7", 1)).submit(1, spec(&["linux/arm/v6"]));
    assert!(matches!(refusal(&farm), Refusal::NoWorkerForPlatform { .. }));
}

#[test]
fn native_goes_before_compat_and_compat_before_emulated() {
    let mut farm = Farm::new();
    for (number, grade) in [(1, Grade::Emulated), (2, Grade::Compat), (3, Grade::Native)] {
        farm.connect(number, facts(&[("linux/arm/v7", grade)], 1));
    }
    (1..=3).for_each(|number| {
        farm.submit(number, BuildSpec { emulation: EmulationPolicy::Now, ..spec(&["linux/arm/v7"]) });
    });
    let workers: Vec<_> = farm.dispatches.iter().map(|dispatch| dispatch.worker).collect();
    assert_eq!(workers, [worker(3), worker(2), worker(1)]);
}

fn with_emulation(policy: EmulationPolicy) -> Farm {
    let mut farm = Farm::new();
    farm.connect(1, native(ARM64, 1)).connect(2, facts(&[(ARM64, Grade::Emulated), (AMD64, Grade::Native)], 4));
    farm.submit(1, spec(&[ARM64]));
    farm.submit(2, BuildSpec { emulation: policy, ..spec(&[ARM64]) });
    farm
}

#[test]
fn never_waits_for_a_native_worker_and_is_refused_where_there_is_none() {
    let mut farm = with_emulation(EmulationPolicy::Never);
    farm.pass(Duration::from_secs(3600));
    assert_eq!(farm.dispatches.len(), 1);
    let mut farm = Farm::new();
    farm.connect(2, facts(&[(ARM64, Grade::Emulated)], 1));
    farm.submit(1, BuildSpec { emulation: EmulationPolicy::Never, ..spec(&[ARM64]) });
    assert!(matches!(refusal(&farm), Refusal::OnlyEmulated { .. }));
}

#[test]
fn now_emulates_as_soon_as_no_native_worker_is_free_and_says_so() {
    let farm = with_emulation(EmulationPolicy::Now);
    let dispatch = farm.last_dispatch();
    assert_eq!((dispatch.worker, dispatch.grade), (worker(2), Grade::Emulated));
    assert!(dispatch.reason.contains("--emulation now"), "{}", dispatch.reason);
}

#[test]
fn wait_emulates_once_the_time_is_over() {
    let mut farm = with_emulation(EmulationPolicy::Wait(Duration::from_secs(30)));
    farm.pass(Duration::from_secs(29));
    assert_eq!(farm.dispatches.len(), 1);
    farm.pass(Duration::from_secs(2));
    assert_eq!(farm.last_dispatch().grade, Grade::Emulated);
}

#[test]
fn auto_waits_for_a_native_worker_that_is_free_soon() {
    let farm = with_emulation(EmulationPolicy::Auto);
    assert_eq!(farm.dispatches.len(), 1);
}

#[test]
fn auto_emulates_the_last_of_a_long_queue() {
    let mut farm = with_emulation(EmulationPolicy::Auto);
    for number in 3..20 {
        farm.submit(number, spec(&[ARM64]));
    }
    let emulated = farm.dispatches.iter().filter(|dispatch| dispatch.grade.is_emulated()).count();
    assert!((1..=4).contains(&emulated), "{emulated}");
    assert!(farm.dispatches.iter().all(|dispatch| dispatch.build != build(2)), "the front waits for the native worker");
}

#[test]
fn auto_emulates_when_a_native_worker_takes_far_longer_than_expected() {
    let mut farm = with_emulation(EmulationPolicy::Auto);
    farm.pass(Duration::from_secs(1200));
    assert_eq!(farm.last_dispatch().grade, Grade::Emulated);
}

#[test]
fn auto_emulates_when_the_native_workers_are_gone() {
    let mut farm = with_emulation(EmulationPolicy::Auto);
    farm.event(Event::WorkerDisconnected { worker: worker(1) });
    assert_eq!(farm.last_dispatch().grade, Grade::Emulated);
    assert!(farm.last_dispatch().reason.contains("no worker that runs linux/arm64 natively takes tasks now"));
}

#[test]
fn a_cordoned_draining_or_leaving_worker_gets_nothing_new() {
    let reason = "maintenance".to_owned();
    for event in [
        Event::WorkerUpdated { worker: worker(1), update: WorkerUpdate::Cordon { reason: reason.clone() } },
        Event::WorkerUpdated { worker: worker(1), update: WorkerUpdate::Drain { reason: reason.clone() } },
        Event::WorkerLeaving { worker: worker(1), reason },
    ] {
        let mut farm = Farm::new();
        farm.connect(1, native(AMD64, 1)).event(event).submit(1, spec(&[AMD64]));
        assert!(farm.dispatches.is_empty());
        farm.event(Event::WorkerUpdated { worker: worker(1), update: WorkerUpdate::Uncordon });
        farm.reconnect(1, native(AMD64, 1), Vec::new());
        assert_eq!(farm.dispatches.len(), 1);
    }
}

#[test]
fn slots_change_without_a_restart() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1));
    (1..=3).for_each(|number| {
        farm.submit(number, spec(&[AMD64]));
    });
    farm.event(Event::WorkerUpdated { worker: worker(1), update: WorkerUpdate::Slots(2) });
    assert_eq!(farm.dispatches.len(), 2);
    farm.event(Event::WorkerUpdated { worker: worker(1), update: WorkerUpdate::Slots(1) });
    let first = farm.dispatches[0].clone();
    farm.report(&first, succeeded());
    assert_eq!(farm.dispatches.len(), 2, "it still holds one");
}

#[test]
fn a_throttled_board_takes_no_task_while_another_can() {
    let mut farm = Farm::new();
    let hot = WorkerStats { throttled: true, ..WorkerStats::default() };
    farm.connect(1, native(AMD64, 2)).connect(2, native(AMD64, 1)).stats(1, hot);
    farm.submit(1, spec(&[AMD64])).submit(2, spec(&[AMD64]));
    assert_eq!((farm.dispatches.len(), farm.last_dispatch().worker), (1, worker(2)));
    farm.event(Event::WorkerDisconnected { worker: worker(2) });
    assert_eq!((farm.dispatches.len(), farm.last_dispatch().worker), (2, worker(1)));
}

#[test]
fn a_worker_short_of_disk_gets_nothing_until_it_has_pruned() {
    let mut farm = Farm::new();
    let disk = |mib: u64| WorkerStats { disk_available: Some(mib * 1024 * 1024), ..WorkerStats::default() };
    farm.connect(1, native(AMD64, 1)).stats(1, disk(100)).submit(1, spec(&[AMD64]));
    assert!(farm.dispatches.is_empty());
    assert!(farm.scheduler.explain(build(1), farm.now)[0].verdicts[0].reason.contains("low disk: 100 MiB free"));
    farm.stats(1, disk(4000));
    assert_eq!(farm.dispatches.len(), 1);
}

#[test]
fn a_worker_keeps_as_much_disk_free_as_it_says() {
    let mut farm = Farm::new();
    let mut facts = native(AMD64, 1);
    facts.machine.disk_min = 8 << 30;
    let disk = |gib: u64| WorkerStats { disk_available: Some(gib << 30), ..WorkerStats::default() };
    farm.connect(1, facts).stats(1, disk(7)).submit(1, spec(&[AMD64]));
    assert!(farm.dispatches.is_empty());
    farm.stats(1, disk(9));
    assert_eq!(farm.dispatches.len(), 1);
}

#[test]
fn a_repository_goes_back_to_the_worker_with_its_cache() {
    let mut farm = Farm::new();
    (1..=5).for_each(|number| {
        farm.connect(number, native(AMD64, 1));
    });
    farm.submit(1, spec(&[AMD64]));
    let first = farm.last_dispatch();
    farm.report(&first, succeeded());
    for number in 2..6 {
        farm.submit(number, spec(&[AMD64]));
        let again = farm.last_dispatch();
        assert_eq!(again.worker, first.worker);
        farm.report(&again, succeeded());
    }
}

/// Builds in the order in which one slot gets to them.
fn served(farm: &mut Farm, count: usize) -> Vec<kiln_common::BuildId> {
    let mut order = Vec::new();
    for _ in 0..count {
        let dispatch = farm.last_dispatch();
        order.push(dispatch.build);
        farm.report(&dispatch, succeeded());
    }
    order
}

fn of_project(project: &str) -> BuildSpec {
    let tags = vec![format!("r.example/{project}:1").parse().expect("a tag")];
    BuildSpec { project: project.into(), tags, ..spec(&[AMD64]) }
}

#[test]
fn a_project_that_queues_much_does_not_keep_another_waiting() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1));
    for number in 0..20 {
        farm.submit(number, of_project("greedy"));
    }
    for number in 20..23 {
        farm.submit(number, of_project("modest"));
    }
    let order = served(&mut farm, 10);
    let modest = order.iter().filter(|id| (20..23).any(|number| build(number) == **id)).count();
    assert_eq!(modest, 3, "{order:?}");
}

#[test]
fn a_higher_priority_goes_first() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1));
    for (number, priority) in [(1, 0), (2, 0), (3, -5), (4, 5)] {
        farm.submit(number, BuildSpec { priority, ..spec(&[AMD64]) });
    }
    assert_eq!(served(&mut farm, 4), [build(1), build(4), build(2), build(3)]);
}

#[test]
fn a_low_priority_that_waited_long_goes_before_a_new_high_one() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).submit(1, spec(&[AMD64]));
    farm.submit(2, BuildSpec { priority: -10, ..spec(&[AMD64]) });
    farm.pass(Duration::from_secs(101 * 60)).submit(3, BuildSpec { priority: 10, ..spec(&[AMD64]) });
    assert_eq!(served(&mut farm, 3), [build(1), build(2), build(3)]);
}

#[test]
fn one_worker_shares_itself_between_its_platforms() {
    let mut farm = Farm::new();
    farm.connect(1, facts(&[(AMD64, Grade::Native), ("linux/386", Grade::Compat)], 1));
    for number in 0..10 {
        farm.submit(number, spec(&[AMD64]));
    }
    for number in 10..20 {
        farm.submit(number, spec(&["linux/386"]));
    }
    let order = served(&mut farm, 10);
    let compat = order.iter().filter(|id| (10..20).any(|number| build(number) == **id)).count();
    assert!((4..=6).contains(&compat), "{order:?}");
}

#[test]
fn explain_names_each_worker_s_obstacle_and_the_place_in_the_queue() {
    let mut farm = Farm::new();
    farm.connect(1, native(AMD64, 1)).connect(2, native(ARM64, 1)).connect(3, native(AMD64, 1));
    farm.event(Event::WorkerDisconnected { worker: worker(3) });
    (1..=3).for_each(|number| {
        farm.submit(number, spec(&[AMD64]));
    });
    let explanation = &farm.scheduler.explain(build(3), farm.now)[0];
    let reasons: Vec<_> = explanation.verdicts.iter().map(|verdict| verdict.reason.as_str()).collect();
    assert_eq!(reasons, ["full: 1 of 1 slots in use", "offline", "does not run linux/amd64"]);
    assert_eq!(explanation.queue_position, 2);
    assert!(explanation.predicted_start.is_some() && !explanation.predicted_emulated);
    assert!(explanation.summary.contains("position 2"), "{}", explanation.summary);
    assert!(farm.scheduler.waiting_reason(farm.tasks(3)[0]).is_some());
}
