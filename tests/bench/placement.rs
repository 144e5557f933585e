//! Placement alone: the scheduler with 10,000 workers and 100,000 waiting tasks, without wire and store.
//!
//! Steady state: an attempt ends, and the slot goes to the most urgent waiting task. Two figures come of it:
//!
//! - placements a second: all that `handle` does from the report that frees a slot to the assignment that fills it, the
//!   records of both tasks given out included. Submits and publishes are handled in between and do not count.
//! - legs a second: the same steps with everything else that a leg costs the scheduler, which is a tenth of its build's
//!   submit (checked, ten legs queued), of its publish and of its leaving memory.
//!
//! Times are processor time of this thread. Batches are measured, not calls, for the clock costs a good part of a placement;
//! the longest call is found among other calls.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use kiln_common::{
    AttemptId, BuildId, BuildSpec, Digest, EmulationPolicy, FeatureSet, Grade, Platform, Timestamp, WorkerId,
    context::{ChunkId, ContextDigest},
    spec::{Dockerfile, ImageDescriptor, PlatformRequest},
};
use kiln_scheduler::{
    Config, Effect, Event, Scheduler, WorkerRecord,
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
    pub placements_per_second: f64,
    pub legs_per_second: f64,
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
    let placements_per_second = bench.placements_per_second(placements);
    let legs_per_second = bench.legs_per_second(placements / 2);
    let calls = bench.latencies(placements / 4);
    Figures {
        workers: usize::try_from(workers).unwrap_or(usize::MAX),
        waiting: bench.scheduler.waiting_tasks(),
        placements,
        placements_per_second,
        legs_per_second,
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
    running: VecDeque<(WorkerId, AttemptId)>,
    jobs: VecDeque<(BuildId, u32)>,
    builds: u64,
    waiting: usize,
    placed: usize,
    /// Time of each call, where calls are measured.
    calls: Option<Vec<Duration>>,
    effects: Vec<Effect>,
    specs: Vec<BuildSpec>,
    image: Arc<ImageDescriptor>,
    /// Submits made ready, for nobody but the bench pays for their making.
    #[expect(clippy::vec_box, reason = "an event takes the box; filling it is not what is measured")]
    ready: Vec<Box<BuildSpec>>,
}

/// Steps that are measured together.
const BATCH: usize = 1_000;

impl Bench {
    fn new(workers: u64, waiting: u64) -> Self {
        // Nobody sends heartbeats here.
        let heartbeat_lease = Duration::from_secs(1_000_000);
        let config = Config { open_builds: usize::MAX, heartbeat_lease, ..Config::default() };
        let mut bench = Self {
            scheduler: Scheduler::new(config, 1),
            now: 1_700_000_000_000,
            running: VecDeque::new(),
            jobs: VecDeque::new(),
            builds: 0,
            waiting: usize::try_from(waiting).unwrap_or(usize::MAX),
            placed: 0,
            calls: None,
            effects: Vec::new(),
            specs: (0..200).map(spec).collect(),
            image: Arc::new(ImageDescriptor {
                media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
                digest: Digest::from_sha256([7; 32]),
                size: 1_000,
                bases: Vec::new(),
            }),
            ready: Vec::new(),
        };
        for number in 0..workers {
            let (id, facts) = worker(number);
            let record = WorkerRecord {
                id,
                name: format!("board-{number:05}").into(),
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

    fn placements_per_second(&mut self, placements: usize) -> f64 {
        let (mut spent, mut placed) = (Duration::ZERO, 0);
        while placed < placements {
            let before = self.placed;
            let started = cpu_time();
            for _ in 0..BATCH {
                self.report();
            }
            spent += cpu_time().saturating_sub(started);
            placed += self.placed - before;
            self.catch_up();
        }
        placed as f64 / spent.as_secs_f64()
    }

    fn legs_per_second(&mut self, legs: usize) -> f64 {
        let (mut spent, before) = (Duration::ZERO, self.placed);
        while self.placed - before < legs {
            self.make_ready(BATCH);
            let started = cpu_time();
            for _ in 0..BATCH {
                self.report();
                self.catch_up();
            }
            spent += cpu_time().saturating_sub(started);
        }
        (self.placed - before) as f64 / spent.as_secs_f64()
    }

    /// Times of all calls of so many placements, shortest first.
    fn latencies(&mut self, placements: usize) -> Vec<Duration> {
        self.calls = Some(Vec::new());
        let before = self.placed;
        while self.placed - before < placements {
            self.report();
            self.catch_up();
        }
        let mut calls = self.calls.take().unwrap_or_default();
        calls.sort_unstable();
        calls
    }

    fn make_ready(&mut self, count: usize) {
        while self.ready.len() < count {
            let number = self.builds + self.ready.len() as u64;
            let mut spec = self.specs[usize::try_from(number).unwrap_or(0) % self.specs.len()].clone();
            // No two builds ask for the same: every leg is placed.
            spec.build_args.insert("REVISION".to_owned(), number.to_string());
            self.ready.push(Box::new(spec));
        }
    }

    /// One attempt ends.
    fn report(&mut self) {
        self.now += 1;
        let Some((worker, attempt)) = self.running.pop_front() else { return };
        let image = Arc::clone(&self.image);
        self.handle(Event::AttemptReported { worker, attempt, outcome: AttemptOutcome::Succeeded { image } });
    }

    /// What the reports led to is done, and the queue filled up again.
    fn catch_up(&mut self) {
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
        while self.scheduler.poll_deadline().is_some_and(|at| at.as_millis() <= self.now) {
            self.measure(|scheduler, now, effects| scheduler.handle_deadline_into(now, effects));
        }
    }

    fn submit(&mut self) {
        self.make_ready(1);
        let Some(spec) = self.ready.pop() else { return };
        self.builds += 1;
        let build = BuildId::from_uuid(Uuid::from_u64_pair(self.now, self.builds));
        self.handle(Event::Submit { build, request_id: None, spec, credentials: None });
    }

    fn handle(&mut self, event: Event) {
        self.measure(|scheduler, now, effects| scheduler.handle_into(event, now, effects));
    }

    fn measure(&mut self, call: impl FnOnce(&mut Scheduler, Timestamp, &mut Vec<Effect>)) {
        let now = Timestamp::from_millis(self.now);
        match &mut self.calls {
            Some(calls) => {
                let started = cpu_time();
                call(&mut self.scheduler, now, &mut self.effects);
                calls.push(cpu_time().saturating_sub(started));
            }
            None => call(&mut self.scheduler, now, &mut self.effects),
        }
        self.drain();
    }

    fn drain(&mut self) {
        for effect in self.effects.drain(..) {
            if let Effect::Dispatch(dispatch) = effect {
                self.placed += 1;
                self.running.push_back((dispatch.worker, dispatch.attempt));
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
