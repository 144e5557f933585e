//! A coordinator and six workers, each in a network namespace of its own, on real engines: workers are killed, frozen and
//! cut off in the middle of builds, the coordinator is killed, and every build ends right.
//!
//! What is asserted does not depend on chance: faults come once a build's output says that its steps run, and end once the
//! farm says that it noticed. `KILN_FARM_SOAK=SECONDS` goes on with faults at random for so long (12 in CI),
//! `KILN_FARM_SEED` replays which.

#[path = "../simulation/chance.rs"]
#[allow(dead_code, reason = "the simulation uses all of it")]
mod chance;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use chance::Chance;
use harness::{Bed, Cluster, bed::EngineKind, calls::Calls, network::Network, process, registry};
use kiln_proto::v1::{Build, BuildState, Task, TaskState, Worker, WorkerState};

const PLATFORMS: [&str; 3] = ["linux/amd64", "linux/arm64", "linux/arm/v7"];
/// Two workers each: what happens to one lane's worker is seen by that lane's builds alone.
const LANES: usize = 3;

struct Farm {
    cluster: Cluster,
    calls: Calls,
    /// In the names of everything that this run makes on the bed.
    stamp: String,
}

/// A build on its way.
struct Running {
    id: String,
    tag: String,
    stamp: String,
}

impl Farm {
    async fn start() -> Self {
        let docker = Bed.engine(EngineKind::Docker28).expect("docker 28");
        // Where the machine has a standalone BuildKit, the two workers of a lane have engines of different kinds.
        let other = Bed.engine(EngineKind::Buildkit).unwrap_or_else(|| docker.clone());
        let mut cluster = Cluster::start(Some(Network::create(2 * LANES)));
        for lane in 0..LANES {
            let label = format!("lane={lane}");
            for (letter, engine) in [("a", &docker), ("b", &other)] {
                cluster.join(&format!("lane-{lane}{letter}"), engine, &["--slots", "6", "--label", &label]);
            }
        }
        let calls = cluster.calls();
        let farm = Self { cluster, calls, stamp: format!("{:08x}", std::process::id()) };
        for number in 0..2 * LANES {
            farm.ready(number).await;
        }
        farm
    }

    fn network(&self) -> &Network {
        self.cluster.network.as_ref().expect("a network")
    }

    async fn ready(&self, number: usize) -> Worker {
        let name = self.cluster.name(number);
        self.calls.worker_until(name, "ready", |worker| worker.state() == WorkerState::Ready).await
    }

    async fn offline(&self, number: usize) {
        let name = self.cluster.name(number);
        self.calls.worker_until(name, "offline", |worker| worker.state() == WorkerState::Offline).await;
    }

    /// A build for three platforms whose steps say `begun-STAMP-PLATFORM`, sleep, and leave a file.
    fn submit(&self, lane: usize, name: &str, seconds: u64) -> Running {
        let stamp = format!("{}-{lane}-{name}", self.stamp);
        let dockerfile = format!(
            "FROM busybox\nARG TARGETPLATFORM\n\
             RUN echo begun-{stamp}-$TARGETPLATFORM && sleep {seconds} && echo $TARGETPLATFORM > /built-for\n"
        );
        let tag = format!("{}/e2e/farm-{stamp}:1", Bed.registry());
        let (platforms, lane) = (PLATFORMS.join(","), format!("lane={lane}"));
        let more = ["--platform", &platforms, "--require", &lane, "--emulation", "now"];
        Running { id: self.cluster.submit(&dockerfile, &tag, &more), tag, stamp }
    }

    /// Returns once the steps of all legs run, with the build as it is then.
    async fn begun(&self, running: &Running) -> Build {
        let wanted = PLATFORMS.map(|platform| format!("begun-{}-{platform}", running.stamp));
        self.calls.output_until(&running.id, wanted).await;
        let all_run = |build: &Build| build.tasks.iter().all(|task| task.state() == TaskState::Running);
        self.calls.build_until(&running.id, "running on all platforms", all_run).await
    }

    /// The build once it has succeeded, with its image as it should be and nothing left over.
    async fn finish(&self, running: &Running) -> Build {
        let build = self.calls.build_until(&running.id, "final", |build| build.finished_at.is_some()).await;
        assert_eq!(build.state(), BuildState::Succeeded, "{build:#?}");
        let index = registry::inspect_raw(&running.tag);
        assert_eq!(registry::platforms(&index), PLATFORMS, "{index}");
        let repository = running.tag.trim_end_matches(":1");
        for (entry, task) in index["manifests"].as_array().expect("entries").iter().zip(&build.tasks) {
            let digest = entry["digest"].as_str().expect("a digest");
            assert_eq!(digest, task.digest, "the index names what the record says");
            let config = registry::config(&format!("{repository}@{digest}"));
            assert_eq!(config["architecture"], entry["platform"]["architecture"], "{config}");
        }
        assert_eq!(registry::tags(repository), ["1"], "no tag but the one that was asked for");
        build
    }
}

/// The number of the worker that has the build's amd64 leg, and the legs that it has.
fn victim(farm: &Farm, build: &Build) -> (usize, Vec<String>) {
    let name = &build.tasks[0].worker_name;
    let legs = build.tasks.iter().filter(|task| task.worker_name == *name).map(|task| task.platform.clone());
    (farm.cluster.number(name), legs.collect())
}

fn was_moved(tasks: &[Task], legs: &[String], from: &str) -> bool {
    let moved = |task: &Task| task.attempts >= 2 && task.worker_name != from && !task.worker_name.is_empty();
    tasks.iter().filter(|task| legs.contains(&task.platform)).all(moved)
}

/// Legs of a lost worker were tried a second time, elsewhere; the others at once.
fn assert_tries(build: &Build, lost: &[String], from: &str) {
    for task in &build.tasks {
        let is_lost = lost.contains(&task.platform);
        assert_eq!(task.attempts, 1 + u32::from(is_lost), "{task:#?}");
        assert!(!is_lost || task.worker_name != from, "{task:#?}");
    }
}

/// A worker that is killed: its legs are built elsewhere once it has not come back in time.
async fn killed(farm: &Farm, lane: usize) {
    let running = farm.submit(lane, "killed", 4);
    let (victim, legs) = victim(farm, &farm.begun(&running).await);
    farm.cluster.worker(victim, process::Process::kill);
    let build = farm.finish(&running).await;
    assert_tries(&build, &legs, farm.cluster.name(victim));
    farm.cluster.start_worker(victim);
    farm.ready(victim).await;
}

/// A worker that is killed and comes back at once without its attempts: nobody waits for what is lost.
async fn killed_and_back(farm: &Farm, lane: usize) {
    let running = farm.submit(lane, "back", 4);
    let (victim, legs) = victim(farm, &farm.begun(&running).await);
    farm.cluster.worker(victim, process::Process::kill);
    farm.cluster.start_worker(victim);
    let build = farm.finish(&running).await;
    for task in &build.tasks {
        assert_eq!(task.attempts, 1 + u32::from(legs.contains(&task.platform)), "{task:#?}");
    }
}

/// A worker that stands still past lease and grace, and then goes on: its late reports change nothing.
async fn frozen_for_long(farm: &Farm, lane: usize) {
    let running = farm.submit(lane, "frozen", 4);
    let (victim, legs) = victim(farm, &farm.begun(&running).await);
    let name = farm.cluster.name(victim);
    farm.cluster.worker(victim, process::Process::freeze);
    let moved = |build: &Build| was_moved(&build.tasks, &legs, name);
    farm.calls.build_until(&running.id, "moved to another worker", moved).await;
    farm.cluster.worker(victim, process::Process::thaw);
    farm.ready(victim).await;
    let build = farm.finish(&running).await;
    assert_tries(&build, &legs, name);
}

/// A worker that stands still past its lease and is back in time keeps its attempts.
async fn frozen_for_a_moment(farm: &Farm, lane: usize) {
    let running = farm.submit(lane, "paused", 4);
    let (victim, _) = victim(farm, &farm.begun(&running).await);
    farm.cluster.worker(victim, process::Process::freeze);
    farm.offline(victim).await;
    farm.cluster.worker(victim, process::Process::thaw);
    let build = farm.finish(&running).await;
    assert_tries(&build, &[], "");
}

/// A worker whose link is cut past lease and grace: it builds to the end, and what it says once the link is mended
/// changes nothing.
async fn cut_off_for_long(farm: &Farm, lane: usize) {
    let running = farm.submit(lane, "cut", 4);
    let (victim, legs) = victim(farm, &farm.begun(&running).await);
    let name = farm.cluster.name(victim);
    farm.network().cut(victim);
    let moved = |build: &Build| was_moved(&build.tasks, &legs, name);
    farm.calls.build_until(&running.id, "moved to another worker", moved).await;
    farm.network().mend(victim);
    let build = farm.finish(&running).await;
    assert_tries(&build, &legs, name);
    farm.ready(victim).await;
}

/// A coordinator that is killed while every lane builds: workers go on, and are adopted when it is back.
async fn coordinator_killed(farm: &Farm) {
    let running: Vec<_> = (0..LANES).map(|lane| farm.submit(lane, "restart", 5)).collect();
    for running in &running {
        farm.begun(running).await;
    }
    farm.cluster.kill_coordinator();
    farm.cluster.start_coordinator();
    for running in &running {
        let build = farm.finish(running).await;
        assert_tries(&build, &[], "");
    }
}

/// Faults at random, one after the other, each shorter than the grace period, while builds come and go.
async fn anything_goes(farm: &Farm) {
    let variable =
        |name: &str, usual: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (seconds, seed) = (variable("KILN_FARM_SOAK", 12), variable("KILN_FARM_SEED", u64::from(std::process::id())));
    eprintln!("KILN_FARM_SEED={seed} KILN_FARM_SOAK={seconds}");
    let mut chance = Chance::new(seed);
    let (until, mut running) = (Instant::now() + Duration::from_secs(seconds), Vec::new());
    let mut number = 0;
    while Instant::now() < until {
        if number < 4 || chance.below(2) == 0 {
            running.push(farm.submit(number % LANES, &format!("any-{number}"), 1 + chance.below(3)));
            number += 1;
        }
        let worker = chance.below(2 * LANES as u64) as usize;
        let moment = Duration::from_millis(chance.between(200, 1700));
        match chance.below(5) {
            0 | 1 => {
                farm.cluster.worker(worker, process::Process::freeze);
                tokio::time::sleep(moment).await;
                farm.cluster.worker(worker, process::Process::thaw);
            }
            2 | 3 => {
                farm.network().cut(worker);
                tokio::time::sleep(moment).await;
                farm.network().mend(worker);
            }
            _ => {
                farm.cluster.kill_coordinator();
                tokio::time::sleep(moment / 2).await;
                farm.cluster.start_coordinator();
            }
        }
        // What is over need not be held up to the end.
        if running.len() > 30 {
            farm.finish(&running.remove(0)).await;
        }
    }
    for running in &running {
        farm.finish(running).await;
    }
}

/// Engines end their containers a moment after the farm knows that a build is over.
async fn no_container_is_left(stamp: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left: BTreeSet<u32> = process::that_say(&format!("begun-{stamp}")).into_iter().collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "processes {left:?} of this run's builds are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_build_ends_right_whatever_happens_to_workers_links_and_coordinator() {
    let farm = Farm::start().await;
    tokio::join!(killed(&farm, 0), frozen_for_long(&farm, 1), cut_off_for_long(&farm, 2));
    tokio::join!(killed_and_back(&farm, 0), frozen_for_a_moment(&farm, 1));
    coordinator_killed(&farm).await;
    anything_goes(&farm).await;
    no_container_is_left(&farm.stamp).await;
}
