//! Placement alone: the scheduler with 10,000 workers and 100,000 waiting tasks, without wire and store.
//!
//! Steady state: each report of a finished attempt frees a slot, which takes the most urgent waiting task. Counted are
//! placements over the processor time spent in `handle`, reports, publishes and new submits included, and the longest single call.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use kiln_common::{
    BuildId, BuildSpec, Digest, EmulationPolicy, FeatureSet, Grade, Platform, Timestamp, WorkerId,
    context::{ChunkId, ContextDigest},
    spec::{Dockerfile, ImageDescriptor, PlatformRequest},
};
use kiln_scheduler::{
    Config, Effect, Event, Scheduler, WorkerRecord,
    effect::Dispatch,
    event::AttemptOutcome,
    record::{EngineFacts, MachineFacts, Published, WorkerFacts},
};
use uuid::Uuid;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub workers: usize,
    pub waiting: usize,
    pub placements: usize,
    pub per_second: f64,
    pub longest: Duration,
    /// 999 of 1,000 calls take at most this long.
    pub p999: Duration,
}

const PLATFORMS: [&str; 10] = [
    "linux/amd64",
    "linux/arm64",
    "linux/arm/v7",
    "linux/arm/v6",
    "linux/386",
    "linux/riscv64",
    "linux/ppc64le",
    "linux/s390x",
    "linux/mips64le",
    "linux/loong64",
];

/// Runs `placements` placements with so many workers and waiting tasks.
#[must_use]
pub fn run(workers: u64, waiting: u64, placements: usize) -> Figures {
    let mut bench = Bench::new(workers, waiting);
    bench.forget_calls();
    let before = bench.placed;
    while bench.placed - before < placements {
        bench.step();
    }
    let waiting = bench.scheduler.waiting_tasks();
    let mut calls = std::mem::take(&mut bench.calls);
    calls.sort_unstable();
    let total: Duration = calls.iter().sum();
    let placements = bench.placed - before;
    Figures {
        workers: usize::try_from(workers).unwrap_or(usize::MAX),
        waiting,
        placements,
        per_second: placements as f64 / total.as_secs_f64(),
        longest: calls.last().copied().unwrap_or_default(),
        p999: calls[calls.len() * 999 / 1_000],
    }
}

/// Time that this thread had a processor: what others do on the machine is none of the scheduler's.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

struct Bench {
    scheduler: Scheduler,
    now: u64,
    running: VecDeque<Dispatch>,
    jobs: VecDeque<(BuildId, u32)>,
    builds: u64,
    waiting: usize,
    placed: usize,
    calls: Vec<Duration>,
    effects: Vec<Effect>,
    specs: Vec<BuildSpec>,
}

impl Bench {
    fn new(workers: u64, waiting: u64) -> Self {
        // Nobody sends heartbeats here.
        let heartbeat_lease = Duration::from_secs(1_000_000);
        let config = Config { open_builds: usize::MAX, finals_kept: 1_000, heartbeat_lease, ..Config::default() };
        let mut bench = Self {
            scheduler: Scheduler::new(config, 1),
            now: 1_700_000_000_000,
            running: VecDeque::new(),
            jobs: VecDeque::new(),
            builds: 0,
            waiting: usize::try_from(waiting).unwrap_or(usize::MAX),
            placed: 0,
            calls: Vec::new(),
            effects: Vec::new(),
            specs: (0..200).map(spec).collect(),
        };
        for number in 0..workers {
            let (id, facts) = worker(number);
            let record = WorkerRecord {
                id,
                name: format!("board-{number:05}"),
                joined_at: Timestamp::from_millis(bench.now),
                facts: None,
                labels: BTreeMap::new(),
                slots: None,
                cordon: None,
                quarantine: None,
            };
            bench.handle(Event::WorkerEnrolled { worker: record });
            bench.handle(Event::WorkerConnected { worker: id, facts: Box::new(facts), attempts: Vec::new() });
        }
        while bench.scheduler.waiting_tasks() < bench.waiting {
            bench.submit();
        }
        bench
    }

    fn forget_calls(&mut self) {
        self.calls.clear();
    }

    /// One attempt ends; what that leads to is done, and the queue filled up again.
    fn step(&mut self) {
        self.now += 1;
        let Some(dispatch) = self.running.pop_front() else { return self.submit() };
        let image = ImageDescriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: Digest::from_sha256([7; 32]),
            size: 1_000,
            bases: Vec::new(),
        };
        let outcome = AttemptOutcome::Succeeded { image };
        self.handle(Event::AttemptReported { worker: dispatch.worker, attempt: dispatch.attempt, outcome });
        while let Some((build, publish)) = self.jobs.pop_front() {
            let published = Published {
                digest: Digest::from_sha256([8; 32]),
                media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
                size: 1_000,
                tags: Vec::new(),
                platform_sizes: BTreeMap::new(),
                at: Timestamp::from_millis(self.now),
            };
            self.handle(Event::PublishSucceeded { build, publish, published });
        }
        while self.scheduler.waiting_tasks() < self.waiting {
            self.submit();
        }
        if self.scheduler.poll_deadline().is_some_and(|at| at.as_millis() <= self.now) {
            let started = cpu_time();
            self.scheduler.handle_deadline_into(Timestamp::from_millis(self.now), &mut self.effects);
            self.calls.push(cpu_time().saturating_sub(started));
            self.drain();
        }
    }

    fn submit(&mut self) {
        self.builds += 1;
        let build = BuildId::from_uuid(Uuid::from_u64_pair(self.now, self.builds));
        let spec = self.specs[usize::try_from(self.builds).unwrap_or(0) % self.specs.len()].clone();
        self.handle(Event::Submit { build, request_id: None, spec: Box::new(spec) });
    }

    fn handle(&mut self, event: Event) {
        let now = Timestamp::from_millis(self.now);
        let started = cpu_time();
        self.scheduler.handle_into(event, now, &mut self.effects);
        self.calls.push(cpu_time().saturating_sub(started));
        self.drain();
    }

    fn drain(&mut self) {
        for effect in self.effects.drain(..) {
            if let Effect::Dispatch(dispatch) = effect {
                self.placed += 1;
                self.running.push_back(*dispatch);
            } else if let Effect::Publish(job) = effect {
                self.jobs.push_back((job.build, job.publish));
            }
        }
    }
}

/// Boards of ten kinds: each runs one platform natively, two kinds another one in compat mode, half of them emulate one.
fn worker(number: u64) -> (WorkerId, WorkerFacts) {
    let kind = usize::try_from(number % 10).unwrap_or(0);
    let mut platforms = BTreeMap::from([(platform(PLATFORMS[kind]), Grade::Native)]);
    match kind {
        0 => drop(platforms.insert(platform("linux/386"), Grade::Compat)),
        1 => drop(platforms.insert(platform("linux/arm/v7"), Grade::Compat)),
        _ => {}
    }
    if kind < 5 {
        platforms.entry(platform(PLATFORMS[kind + 5])).or_insert(Grade::Emulated);
    }
    let facts = WorkerFacts {
        platforms,
        slots: 1,
        labels: BTreeMap::from([("zone".to_owned(), format!("z{}", number / 10 % 4))]),
        features: FeatureSet::new(),
        engine: EngineFacts::default(),
        machine: MachineFacts::default(),
    };
    (WorkerId::from_uuid(Uuid::from_u64_pair(1, number)), facts)
}

fn platform(text: &str) -> Platform {
    text.parse().expect("a platform")
}

fn spec(number: u64) -> BuildSpec {
    let request = |text: &&str| PlatformRequest { platform: platform(text), required: true };
    let labels = [("zone".to_owned(), format!("z{}", number % 4))];
    BuildSpec {
        platforms: PLATFORMS.iter().map(request).collect(),
        tags: vec![format!("registry.example/team/app-{number}:1.0").parse().expect("a tag")],
        build_args: BTreeMap::from([("VERSION".to_owned(), "1.0".to_owned())]),
        emulation: if number.is_multiple_of(3) { EmulationPolicy::Never } else { EmulationPolicy::Auto },
        required_labels: if number.is_multiple_of(5) { labels.into() } else { BTreeMap::new() },
        priority: i32::try_from(number % 3).unwrap_or(0) - 1,
        project: format!("team/app-{number}"),
        ..BuildSpec::bare(Dockerfile { tree: ContextDigest(ChunkId::of(b"tree")), filename: "Dockerfile".into() })
    }
}
