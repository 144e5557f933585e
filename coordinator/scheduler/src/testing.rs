//! A small farm for unit tests: a scheduler, a clock, and short words for what happens.

use std::{collections::BTreeMap, time::Duration};

use kiln_common::{
    AttemptId, BuildId, BuildSpec, Grade, Platform, Timestamp, WorkerId,
    context::{ChunkId, ContextDigest},
    spec::{Dockerfile, ImageDescriptor, PlatformRequest},
};
use uuid::Uuid;

use crate::{
    Config, Effect, Event, Scheduler,
    effect::{Dispatch, PublishJob},
    event::{AttemptOutcome, WorkerStats},
    invariants::check_all,
    record::{BuildRecord, BuildState, EngineFacts, MachineFacts, Published, TaskRecord, WorkerFacts, WorkerRecord},
};

pub(crate) const AMD64: &str = "linux/amd64";
pub(crate) const ARM64: &str = "linux/arm64";

pub(crate) struct Farm {
    pub(crate) scheduler: Scheduler,
    pub(crate) now: Timestamp,
    /// Effects of the last turn.
    pub(crate) effects: Vec<Effect>,
    /// All dispatches so far.
    pub(crate) dispatches: Vec<Dispatch>,
}

impl Farm {
    pub(crate) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(crate) fn with(config: Config) -> Self {
        let now = Timestamp::from_millis(1_700_000_000_000);
        Self { scheduler: Scheduler::new(config, 1), now, effects: Vec::new(), dispatches: Vec::new() }
    }

    pub(crate) fn event(&mut self, event: Event) -> &mut Self {
        self.effects = self.scheduler.handle(event, self.now);
        self.note();
        self
    }

    fn note(&mut self) {
        check_all(&self.scheduler).expect("the rules hold");
        let dispatches = self.effects.iter().filter_map(|effect| {
            if let Effect::Dispatch(dispatch) = effect { Some((**dispatch).clone()) } else { None }
        });
        self.dispatches.extend(dispatches);
    }

    /// Lets time pass; collects the effects of all that falls due on the way. Connected workers stay so.
    pub(crate) fn pass(&mut self, duration: Duration) -> &mut Self {
        let end = self.now + duration;
        let mut all = Vec::new();
        while self.now < end {
            self.now = end.min(self.now + Duration::from_secs(5));
            let online: Vec<_> = self.scheduler.workers().map(|view| (view.record.id, view.stats)).collect();
            for (worker, stats) in online {
                if self.scheduler.worker(worker).is_some_and(|view| view.state != crate::query::WorkerState::Offline) {
                    all.extend(self.scheduler.handle(Event::WorkerHeartbeat { worker, stats }, self.now));
                }
            }
            while self.scheduler.poll_deadline().is_some_and(|at| at <= self.now) {
                all.extend(self.scheduler.handle_deadline(self.now));
            }
        }
        self.effects = all;
        self.note();
        self
    }

    /// Lets time pass in silence.
    pub(crate) fn pass_silently(&mut self, duration: Duration) -> &mut Self {
        self.now = self.now + duration;
        let mut all = Vec::new();
        while self.scheduler.poll_deadline().is_some_and(|at| at <= self.now) {
            all.extend(self.scheduler.handle_deadline(self.now));
        }
        self.effects = all;
        self.note();
        self
    }

    pub(crate) fn enroll(&mut self, number: u64) -> &mut Self {
        self.event(Event::WorkerEnrolled { worker: worker_record(number) })
    }

    pub(crate) fn connect(&mut self, number: u64, facts: WorkerFacts) -> &mut Self {
        self.enroll(number);
        self.reconnect(number, facts, Vec::new())
    }

    pub(crate) fn reconnect(&mut self, number: u64, facts: WorkerFacts, attempts: Vec<AttemptId>) -> &mut Self {
        self.event(Event::WorkerConnected { worker: worker(number), facts: Box::new(facts), attempts })
    }

    /// A build unlike all others.
    pub(crate) fn submit(&mut self, number: u64, mut spec: BuildSpec) -> &mut Self {
        spec.build_args.insert("NUMBER".to_owned(), number.to_string());
        self.submit_as_is(number, spec)
    }

    pub(crate) fn submit_as_is(&mut self, number: u64, spec: BuildSpec) -> &mut Self {
        self.event(Event::Submit { build: build(number), request_id: None, spec: Box::new(spec), credentials: None })
    }

    pub(crate) fn report(&mut self, dispatch: &Dispatch, outcome: AttemptOutcome) -> &mut Self {
        self.event(Event::AttemptReported { worker: dispatch.worker, attempt: dispatch.attempt, outcome })
    }

    pub(crate) fn last_dispatch(&self) -> Dispatch {
        self.dispatches.last().expect("a dispatch").clone()
    }

    pub(crate) fn record(&self, number: u64) -> &BuildRecord {
        self.scheduler.build(build(number)).expect("the build")
    }

    pub(crate) fn state(&self, number: u64) -> &BuildState {
        &self.record(number).state
    }

    pub(crate) fn tasks(&self, number: u64) -> Vec<&TaskRecord> {
        self.scheduler.tasks_of(build(number)).collect()
    }

    pub(crate) fn stats(&mut self, number: u64, stats: WorkerStats) -> &mut Self {
        self.event(Event::WorkerHeartbeat { worker: worker(number), stats })
    }

    /// The publish job of the last turn.
    pub(crate) fn job(&self) -> PublishJob {
        let mut jobs = self
            .effects
            .iter()
            .filter_map(|effect| if let Effect::Publish(job) = effect { Some((**job).clone()) } else { None });
        jobs.next_back().expect("a publish job")
    }

    pub(crate) fn published(&mut self, job: &PublishJob) -> &mut Self {
        let published = published(job, self.now);
        self.event(Event::PublishSucceeded { build: job.build, publish: job.publish, published })
    }

    pub(crate) fn has(&self, effect: impl Fn(&Effect) -> bool) -> bool {
        self.effects.iter().any(effect)
    }
}

pub(crate) fn published(job: &PublishJob, at: Timestamp) -> Published {
    Published {
        digest: image(0).digest,
        media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
        size: 1,
        tags: job.spec.tags.iter().map(ToString::to_string).collect(),
        platform_sizes: BTreeMap::new(),
        at,
    }
}

pub(crate) fn worker(number: u64) -> WorkerId {
    WorkerId::from_uuid(Uuid::from_u64_pair(1, number))
}

pub(crate) fn build(number: u64) -> BuildId {
    BuildId::from_uuid(Uuid::from_u64_pair(2, number))
}

pub(crate) fn platform(text: &str) -> Platform {
    text.parse().expect("a platform")
}

pub(crate) fn worker_record(number: u64) -> WorkerRecord {
    WorkerRecord {
        id: worker(number),
        name: format!("w{number}").into(),
        joined_at: Timestamp::from_millis(1),
        facts: None,
        labels: BTreeMap::new(),
        slots: None,
        cordon: None,
        quarantine: None,
    }
}

pub(crate) fn facts(platforms: &[(&str, Grade)], slots: u32) -> WorkerFacts {
    WorkerFacts {
        platforms: platforms.iter().map(|(text, grade)| (platform(text), *grade)).collect(),
        slots,
        labels: BTreeMap::new(),
        features: kiln_common::FeatureSet::new(),
        engine: EngineFacts { kind: "dockerd-classic".into(), version: "20.10.24".into() },
        machine: MachineFacts::default(),
    }
}

pub(crate) fn native(text: &str, slots: u32) -> WorkerFacts {
    facts(&[(text, Grade::Native)], slots)
}

pub(crate) fn spec(platforms: &[&str]) -> BuildSpec {
    let required = platforms.iter().map(|text| PlatformRequest { platform: platform(text), required: true });
    BuildSpec {
        platforms: required.collect(),
        tags: vec!["r.example/app:1".parse().expect("a tag")],
        project: "r.example/app".into(),
        ..BuildSpec::bare(Dockerfile { tree: ContextDigest(ChunkId::of(b"tree")), filename: "Dockerfile".into() })
    }
}

/// A build as it is right after its submit.
pub(crate) fn submitted(spec: BuildSpec) -> BuildRecord {
    let now = Timestamp::from_millis(1_700_000_000_000);
    BuildRecord {
        id: build(1),
        request_id: None,
        credentials: None,
        deadline: now + spec.timeout,
        spec: spec.into(),
        state: BuildState::Queued,
        tasks: Vec::new(),
        created_at: now,
        started_at: None,
        finished_at: None,
        publishes: 0,
        published: None,
        revision: 1,
    }
}

pub(crate) fn image(number: u8) -> ImageDescriptor {
    ImageDescriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        digest: kiln_common::Digest::from_sha256([number; 32]),
        size: 1,
        bases: Vec::new(),
    }
}

pub(crate) fn succeeded() -> AttemptOutcome {
    AttemptOutcome::Succeeded { image: image(1).into() }
}

pub(crate) fn unpushed() -> AttemptOutcome {
    AttemptOutcome::RegistryFailed { message: "the registry does not answer".into() }
}

pub(crate) fn broken() -> AttemptOutcome {
    AttemptOutcome::InfrastructureFailed { message: "the engine does not answer".into() }
}
