//! The model farm: a queue of things to come, the coordinator as scheduler and committed records, workers, registry, users.
//!
//! A turn is the driver's: one event, its effects, the commit, the acts. The coordinator may crash before the commit (the
//! turn never was) or after it (the acts never happen).

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hasher},
    time::Duration,
};

use kiln_common::{AttemptId, BuildId, Digest, Timestamp, WorkerId, spec::ImageDescriptor};
use kiln_scheduler::{
    Effect, Event, Scheduler,
    effect::{Dispatch, PublishJob},
    event::{AttemptOutcome, WorkerUpdate},
    invariants::check_all,
    mutation::Mutation,
    record::Published,
};
use uuid::Uuid;

use crate::{
    chance::Chance,
    model_worker::{Job, ModelWorker},
    oracle::{Store, check_dispatch, check_publish},
    scenario,
};

/// Things go wrong for this long.
const STORM: Duration = Duration::from_secs(180);
/// Then every build must end within this time.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
const BEAT: Duration = Duration::from_secs(8);
/// More steps than any history of this length takes.
const STEPS: usize = 200_000;
/// Slots that a worker has at most, whatever an operator sets.
const MOST_SLOTS: usize = 3;

#[derive(Debug)]
enum Action {
    Connect(WorkerId),
    /// A message of a worker's session arrives.
    Up(WorkerId, u64, Event),
    Down(WorkerId, u64, ToWorker),
    /// The coordinator notices that a session ended.
    SessionLost(WorkerId, u64),
    Beat(WorkerId, u64),
    JobEnds(WorkerId, AttemptId),
    JobStopped(WorkerId, AttemptId),
    Die(WorkerId),
    Revive(WorkerId),
    StartCoordinator,
    PublishEnds {
        generation: u64,
        job: Box<PublishJob>,
        abandoned: bool,
    },
    Trouble,
    Calm,
    Operate(Event),
}

#[derive(Debug)]
enum ToWorker {
    Run(Box<Dispatch>),
    Stop(AttemptId),
    Forget(AttemptId),
    Close,
}

pub struct World {
    chance: Chance,
    seed: u64,
    mutation: Mutation,
    now: Timestamp,
    end_of_storm: Timestamp,
    calm: bool,
    agenda: BTreeMap<(Timestamp, u64), Action>,
    sequence: u64,
    /// `None` while the coordinator is down.
    scheduler: Option<Scheduler>,
    /// Counts the coordinator's starts.
    generation: u64,
    store: Store,
    workers: BTreeMap<WorkerId, ModelWorker>,
    /// Sessions as the coordinator sees them.
    sessions: BTreeMap<WorkerId, u64>,
    last_down: BTreeMap<WorkerId, Timestamp>,
    /// Publishes that run.
    publishing: BTreeMap<BuildId, u32>,
    acknowledged: BTreeSet<BuildId>,
    moved: BTreeSet<BuildId>,
    builds: u64,
    images: u64,
    pub narrate: bool,
    pub trace: bool,
    hasher: DefaultHasher,
}

type Outcome = Result<(), String>;

impl World {
    pub fn new(seed: u64, mutation: Mutation) -> Self {
        let mut chance = Chance::new(seed);
        let workers = scenario::workers(&mut chance);
        let now = Timestamp::from_millis(1_700_000_000_000);
        let mut world = Self {
            chance,
            seed,
            mutation,
            now,
            end_of_storm: now + STORM,
            calm: false,
            agenda: BTreeMap::new(),
            sequence: 0,
            scheduler: Some(Scheduler::with_mutation(scenario::config(), seed, mutation)),
            generation: 0,
            store: Store::default(),
            workers: workers.into_iter().map(|(record, facts)| (record.id, ModelWorker::new(record, facts))).collect(),
            sessions: BTreeMap::new(),
            last_down: BTreeMap::new(),
            publishing: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            moved: BTreeSet::new(),
            builds: 0,
            images: 0,
            narrate: false,
            trace: false,
            hasher: DefaultHasher::new(),
        };
        for worker in world.workers.keys().copied().collect::<Vec<_>>() {
            world.soon(0, 2_000, Action::Connect(worker));
        }
        world.soon(3_000, 5_000, Action::Trouble);
        world.at(world.end_of_storm, Action::Calm);
        world
    }

    /// Runs the history to its end; gives the hash of all effects when they are traced.
    pub fn run(&mut self) -> Result<u64, String> {
        let horizon = self.end_of_storm + PATIENCE;
        for _ in 0..STEPS {
            if self.calm && self.is_over() {
                return Ok(self.hasher.finish());
            }
            if self.now > horizon {
                return Err(self.unfinished());
            }
            self.step().map_err(|message| format!("{message} (at {} ms)", self.now.since(self.start()).as_millis()))?;
        }
        Err(format!("no end after {STEPS} steps; {}", self.unfinished()))
    }

    fn start(&self) -> Timestamp {
        Timestamp::from_millis(self.end_of_storm.as_millis() - u64::try_from(STORM.as_millis()).unwrap_or(0))
    }

    fn step(&mut self) -> Outcome {
        let deadline = self.scheduler.as_ref().and_then(Scheduler::poll_deadline);
        let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
        if let Some(deadline) = deadline
            && next.is_none_or(|next| deadline <= next)
        {
            self.now = self.now.max(deadline);
            return self.turn(None);
        }
        let Some(((at, _), action)) = self.agenda.pop_first() else { return Err("nothing is left to happen".into()) };
        self.now = self.now.max(at);
        self.perform(action)
    }

    fn perform(&mut self, action: Action) -> Outcome {
        match action {
            Action::Connect(worker) => self.connect(worker),
            Action::Up(worker, session, event) => self.arrive(worker, session, event),
            Action::Down(worker, session, message) => self.deliver(worker, session, message),
            Action::SessionLost(worker, session) => {
                if self.sessions.get(&worker) == Some(&session) {
                    self.sessions.remove(&worker);
                    return self.event(Event::WorkerDisconnected { worker });
                }
                Ok(())
            }
            Action::Beat(worker, session) => {
                self.beat(worker, session);
                Ok(())
            }
            Action::JobEnds(worker, attempt) => {
                self.job_ends(worker, attempt);
                Ok(())
            }
            Action::JobStopped(worker, attempt) => {
                self.job_stopped(worker, attempt);
                Ok(())
            }
            Action::Die(worker) => {
                self.die(worker);
                Ok(())
            }
            Action::Revive(worker) => {
                if let Some(model) = self.workers.get_mut(&worker) {
                    model.alive = true;
                }
                self.connect(worker)
            }
            Action::StartCoordinator => self.start_coordinator(),
            Action::PublishEnds { generation, job, abandoned } => self.publish_ends(generation, &job, abandoned),
            Action::Trouble => self.trouble(),
            Action::Calm => self.calm_down(),
            Action::Operate(event) => self.event(event),
        }
    }

    // ----- the coordinator

    fn event(&mut self, event: Event) -> Outcome {
        self.turn(Some(event))
    }

    /// The driver's turn: for an event, or because the scheduler's own deadline has come.
    fn turn(&mut self, input: Option<Event>) -> Outcome {
        let Some(scheduler) = self.scheduler.as_mut() else { return Ok(()) };
        // A clock that is set back for a moment must not matter.
        let back = if self.chance.percent(2) { self.chance.below(5_000) } else { 0 };
        let now = Timestamp::from_millis(self.now.as_millis() - back);
        if self.narrate
            && let Some(event) = &input
        {
            println!("{} > {}", self.now, short(event));
        }
        let effects = match input {
            Some(event) => scheduler.handle(event, now),
            None => scheduler.handle_deadline(self.now),
        };
        check_all(scheduler).map_err(|violation| violation.to_string())?;
        let crash = !self.calm && self.chance.below(300) == 0;
        if crash && self.chance.percent(50) {
            self.crash_coordinator();
            return Ok(());
        }
        let mut acts = Vec::new();
        for effect in effects {
            if self.narrate {
                println!("{}   < {}", self.now, short(&effect));
            }
            if self.trace {
                self.hasher.write(format!("{effect:?}").as_bytes());
            }
            match effect {
                Effect::PutBuild(build) => self.store.put_build(*build)?,
                Effect::PutTask(task) => self.store.put_task(*task)?,
                Effect::PutWorker(worker) => drop(self.store.workers.insert(worker.id, *worker)),
                Effect::DeleteWorker(worker) => drop(self.store.workers.remove(&worker)),
                act @ (Effect::Accepted { .. }
                | Effect::Refused { .. }
                | Effect::Dispatch(_)
                | Effect::CancelAttempt { .. }
                | Effect::AcknowledgeReport { .. }
                | Effect::Adopted { .. }
                | Effect::CloseSession { .. }
                | Effect::Publish(_)
                | Effect::AbandonPublish { .. }
                | Effect::Finished { .. }) => acts.push(act),
            }
        }
        if crash {
            self.crash_coordinator();
            return Ok(());
        }
        acts.into_iter().try_for_each(|act| self.act(act))
    }

    fn act(&mut self, effect: Effect) -> Outcome {
        match effect {
            Effect::Accepted { build } => {
                if !self.store.builds.contains_key(&build) {
                    return Err(format!("build {build} was acknowledged before it was durable"));
                }
                self.acknowledged.insert(build);
            }
            Effect::Dispatch(dispatch) => {
                check_dispatch(&self.store, &dispatch)?;
                self.send(dispatch.worker, ToWorker::Run(dispatch));
            }
            Effect::CancelAttempt { worker, attempt, .. } => self.send(worker, ToWorker::Stop(attempt)),
            Effect::AcknowledgeReport { worker, attempt } => self.send(worker, ToWorker::Forget(attempt)),
            Effect::CloseSession { worker, .. } => {
                self.send(worker, ToWorker::Close);
                self.sessions.remove(&worker);
            }
            Effect::Publish(job) => self.begin_publish(job)?,
            Effect::AbandonPublish { build } => drop(self.publishing.remove(&build)),
            Effect::Adopted { .. } | Effect::Refused { .. } | Effect::Finished { .. } => {}
            Effect::PutBuild(_) | Effect::PutTask(_) | Effect::PutWorker(_) | Effect::DeleteWorker(_) => {
                return Err("a record after an act".into());
            }
        }
        Ok(())
    }

    fn crash_coordinator(&mut self) {
        self.scheduler = None;
        self.generation += 1;
        self.sessions.clear();
        self.publishing.clear();
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            let model = self.workers.get_mut(&worker).expect("a worker");
            if model.session.take().is_some() {
                self.soon(500, 40_000, Action::Connect(worker));
            }
        }
        self.soon(500, 15_000, Action::StartCoordinator);
    }

    fn start_coordinator(&mut self) -> Outcome {
        if self.scheduler.is_some() {
            return Ok(());
        }
        let seed = self.seed + self.generation;
        self.scheduler = Some(Scheduler::with_mutation(scenario::config(), seed, self.mutation));
        let recent =
            |finished: Option<Timestamp>| finished.is_none_or(|at| self.now.since(at) < scenario::config().final_kept);
        let builds = self.store.builds.values().filter(|build| recent(build.finished_at));
        let builds = builds.map(|build| (build.clone(), self.store.tasks_of(build))).collect();
        self.event(Event::Restore { builds, workers: self.store.workers.values().cloned().collect() })
    }

    // ----- sessions

    fn connect(&mut self, worker: WorkerId) -> Outcome {
        let Some(model) = self.workers.get(&worker) else { return Ok(()) };
        if !model.alive || model.session.is_some() {
            return Ok(());
        }
        let not_before = model.hung_until.max(model.cut_until);
        if self.scheduler.is_none() || not_before > self.now {
            let at = not_before.max(self.now + Duration::from_secs(2));
            self.at(at, Action::Connect(worker));
            return Ok(());
        }
        if self.sessions.remove(&worker).is_some() {
            self.event(Event::WorkerDisconnected { worker })?;
        }
        if !self.store.workers.contains_key(&worker) {
            let record = self.workers[&worker].record.clone();
            self.event(Event::WorkerEnrolled { worker: record })?;
        }
        if self.scheduler.is_none() || !self.store.workers.contains_key(&worker) {
            self.soon(1_000, 5_000, Action::Connect(worker));
            return Ok(());
        }
        self.sequence += 1;
        let session = self.sequence;
        self.sessions.insert(worker, session);
        let model = self.workers.get_mut(&worker).expect("a worker");
        model.session = Some(session);
        let (facts, attempts) = (Box::new(model.facts.clone()), model.jobs.keys().copied().collect());
        let ended: Vec<_> =
            model.jobs.iter().filter_map(|(attempt, job)| Some((*attempt, job.outcome.clone()?))).collect();
        self.event(Event::WorkerConnected { worker, facts, attempts })?;
        for (attempt, outcome) in ended {
            self.report(worker, attempt, outcome);
        }
        self.soon(0, 1_000, Action::Beat(worker, session));
        Ok(())
    }

    fn arrive(&mut self, worker: WorkerId, session: u64, event: Event) -> Outcome {
        let is_current = self.sessions.get(&worker) == Some(&session);
        // What a session's last messages said may be read after it ended.
        let is_late_report = matches!(event, Event::AttemptReported { .. }) && self.chance.percent(50);
        if is_current || is_late_report { self.event(event) } else { Ok(()) }
    }

    fn send(&mut self, worker: WorkerId, message: ToWorker) {
        if let Some(&session) = self.sessions.get(&worker) {
            let at = self.now + Duration::from_millis(self.chance.between(1, 400));
            let at = at.max(self.last_down.get(&worker).copied().unwrap_or_default());
            self.last_down.insert(worker, at);
            self.at(at, Action::Down(worker, session, message));
        }
    }

    /// From the worker, in the order of its session.
    fn up(&mut self, worker: WorkerId, event: Event) {
        let late = Duration::from_millis(self.chance.between(1, 400));
        let model = self.workers.get_mut(&worker).expect("a worker");
        let Some(session) = model.session else { return };
        model.last_arrival = model.last_arrival.max(self.now + late);
        let at = model.last_arrival;
        self.at(at, Action::Up(worker, session, event));
    }

    fn report(&mut self, worker: WorkerId, attempt: AttemptId, outcome: AttemptOutcome) {
        let twice = self.chance.percent(5);
        let event = Event::AttemptReported { worker, attempt, outcome };
        if twice {
            self.up(worker, event.clone());
        }
        self.up(worker, event);
    }

    fn beat(&mut self, worker: WorkerId, session: u64) {
        let model = &self.workers[&worker];
        if model.session != Some(session) || !model.alive {
            return;
        }
        if model.is_still(self.now) {
            let until = model.hung_until;
            return self.at(until, Action::Beat(worker, session));
        }
        let stats = model.stats(self.now);
        self.up(worker, Event::WorkerHeartbeat { worker, stats });
        self.at(self.now + BEAT, Action::Beat(worker, session));
    }

    // ----- a worker

    fn deliver(&mut self, worker: WorkerId, session: u64, message: ToWorker) -> Outcome {
        let now = self.now;
        let model = self.workers.get_mut(&worker).expect("a worker");
        if model.session != Some(session) || !model.alive {
            return Ok(());
        }
        if model.is_still(now) {
            let until = model.hung_until;
            self.at(until, Action::Down(worker, session, message));
            return Ok(());
        }
        match message {
            ToWorker::Run(dispatch) => return self.run_job(worker, *dispatch),
            ToWorker::Stop(attempt) => match model.jobs.get(&attempt).map(|job| job.outcome.is_some()) {
                Some(false) => self.soon(10, 3_000, Action::JobStopped(worker, attempt)),
                Some(true) => {}
                None => self.report(worker, attempt, AttemptOutcome::Cancelled),
            },
            ToWorker::Forget(attempt) => drop(model.jobs.remove(&attempt)),
            ToWorker::Close => {
                model.session = None;
                self.soon(500, 5_000, Action::Connect(worker));
            }
        }
        Ok(())
    }

    fn run_job(&mut self, worker: WorkerId, dispatch: Dispatch) -> Outcome {
        let attempt = dispatch.attempt;
        let emulated = dispatch.grade.is_emulated();
        let may_hang = dispatch.spec.timeout < Duration::from_secs(1_000) && self.chance.percent(25);
        let model = self.workers.get_mut(&worker).expect("a worker");
        if model.jobs.insert(attempt, Job { build: dispatch.build, outcome: None }).is_some() {
            return Err(format!("attempt {attempt} was dispatched twice"));
        }
        let running = model.jobs.values().filter(|job| job.outcome.is_none()).count();
        if running > MOST_SLOTS {
            return Err(format!("worker {worker} runs {running} attempts at once"));
        }
        self.report(worker, attempt, AttemptOutcome::Started);
        if !may_hang {
            let times = if emulated { 4 } else { 1 };
            self.soon(1_000, 15_000 * times, Action::JobEnds(worker, attempt));
        }
        Ok(())
    }

    fn job_ends(&mut self, worker: WorkerId, attempt: AttemptId) {
        let (now, calm, dice) = (self.now, self.calm, self.chance.below(100));
        let Some(model) = self.workers.get_mut(&worker) else { return };
        if model.is_still(now) {
            let until = model.hung_until;
            if model.alive {
                self.at(until, Action::JobEnds(worker, attempt));
            }
            return;
        }
        let is_full = now < model.full_until;
        let Some(job) = model.jobs.get_mut(&attempt).filter(|job| job.outcome.is_none()) else { return };
        self.images += 1;
        let outcome = match dice {
            _ if is_full => AttemptOutcome::InfrastructureFailed { message: "no space left on device".into() },
            0..5 => AttemptOutcome::BuildFailed { message: "RUN make: exit code 2".into() },
            5..20 if !calm => AttemptOutcome::InfrastructureFailed { message: "the engine does not answer".into() },
            20..22 if !calm => AttemptOutcome::Cancelled,
            _ => AttemptOutcome::Succeeded { image: image(self.images) },
        };
        job.outcome = Some(outcome.clone());
        self.report(worker, attempt, outcome);
    }

    fn job_stopped(&mut self, worker: WorkerId, attempt: AttemptId) {
        let Some(model) = self.workers.get_mut(&worker).filter(|model| model.alive) else { return };
        if let Some(job) = model.jobs.get_mut(&attempt).filter(|job| job.outcome.is_none()) {
            job.outcome = Some(AttemptOutcome::Cancelled);
            self.report(worker, attempt, AttemptOutcome::Cancelled);
        }
    }

    /// Its process ends, and everything in it.
    fn die(&mut self, worker: WorkerId) {
        let model = self.workers.get_mut(&worker).expect("a worker");
        model.alive = false;
        model.jobs.clear();
        self.drop_session(worker);
        self.soon(1_000, 70_000, Action::Revive(worker));
    }

    /// The worker's side of its session is gone; the coordinator notices soon, late or never.
    fn drop_session(&mut self, worker: WorkerId) {
        let model = self.workers.get_mut(&worker).expect("a worker");
        if let Some(session) = model.session.take()
            && self.chance.percent(60)
        {
            self.soon(1, 10_000, Action::SessionLost(worker, session));
        }
    }

    // ----- the registry

    fn begin_publish(&mut self, job: Box<PublishJob>) -> Outcome {
        check_publish(&self.store, &job)?;
        self.publishing.insert(job.build, job.publish);
        let generation = self.generation;
        // One that is abandoned may still say how it ended.
        let late = self.chance.percent(50);
        self.soon(500, 15_000, Action::PublishEnds { generation, job, abandoned: late });
        Ok(())
    }

    fn publish_ends(&mut self, generation: u64, job: &PublishJob, late: bool) -> Outcome {
        let (build, publish) = (job.build, job.publish);
        if generation != self.generation {
            return Ok(());
        }
        if self.publishing.get(&build) != Some(&publish) {
            let message = "abandoned".to_owned();
            let event = Event::PublishFailed { build, publish, published: None, message };
            return if late { self.event(event) } else { Ok(()) };
        }
        self.publishing.remove(&build);
        let mut published = Published {
            digest: image(self.images).digest,
            media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
            size: 1,
            tags: job.spec.tags.iter().map(ToString::to_string).collect(),
            platform_sizes: BTreeMap::new(),
            at: self.now,
        };
        if !self.calm && self.chance.percent(20) {
            published.tags.truncate(1);
            let published = self.chance.percent(30).then_some(published);
            let message = "503 for two minutes".to_owned();
            return self.event(Event::PublishFailed { build, publish, published, message });
        }
        check_publish(&self.store, job)?;
        self.moved.insert(build);
        self.event(Event::PublishSucceeded { build, publish, published })
    }

    // ----- users and trouble

    fn trouble(&mut self) -> Outcome {
        if self.calm {
            return Ok(());
        }
        self.soon(200, 9_000, Action::Trouble);
        let worker = *self.chance.pick(&self.workers.keys().copied().collect::<Vec<_>>());
        let for_a_while = self.now + Duration::from_millis(self.chance.between(1_000, 70_000));
        let model = self.workers.get_mut(&worker).expect("a worker");
        match self.chance.below(26) {
            0 => self.die(worker),
            1 | 2 => model.hung_until = for_a_while,
            3 | 4 => {
                model.cut_until = for_a_while;
                self.drop_session(worker);
                self.at(for_a_while, Action::Connect(worker));
            }
            5 => model.full_until = for_a_while,
            6 => model.throttled = !model.throttled,
            7 => {
                self.up(worker, Event::WorkerLeaving { worker, reason: "SIGTERM".into() });
                self.soon(500, 30_000, Action::Die(worker));
            }
            8 => {
                // It says anew what it is, within its session.
                if let Some(session) = model.session.filter(|_| !model.is_still(self.now)) {
                    model.facts.slots = 3 - model.facts.slots.min(2);
                    let facts = Box::new(model.facts.clone());
                    let attempts = model.jobs.keys().copied().collect();
                    if self.sessions.get(&worker) == Some(&session) {
                        self.up(worker, Event::WorkerConnected { worker, facts, attempts });
                    }
                }
            }
            9 => self.now = self.now + Duration::from_millis(self.chance.between(1_000, 40_000)),
            10..13 => return self.operate(worker),
            13 => return self.ask_about(|build| Event::Cancel { build, reason: "asked".into() }),
            14..16 => return self.ask_about(|build| Event::Retry { build }),
            16 => return self.ask_about(|build| Event::Backfill { build }),
            _ => return self.submit(),
        }
        Ok(())
    }

    fn operate(&mut self, worker: WorkerId) -> Outcome {
        let reason = "maintenance".to_owned();
        let update = match self.chance.below(8) {
            0 => WorkerUpdate::Cordon { reason },
            1 => WorkerUpdate::Drain { reason },
            2 | 3 => WorkerUpdate::Uncordon,
            4 | 5 => WorkerUpdate::Slots(u32::try_from(self.chance.between(1, 3)).unwrap_or(1)),
            6 => {
                let value = self.chance.pick(&["yes", "no"]).to_string();
                let zone = vec![(format!("z{}", self.chance.below(2)), value)];
                WorkerUpdate::Labels { set: zone, remove: Vec::new() }
            }
            _ => {
                self.event(Event::WorkerRemoved { worker })?;
                return Ok(());
            }
        };
        self.event(Event::WorkerUpdated { worker, update })
    }

    fn submit(&mut self) -> Outcome {
        self.builds += 1;
        let build = BuildId::from_uuid(Uuid::from_u64_pair(2, self.builds));
        let request_id = self.chance.percent(30).then(|| format!("ci-{}", self.chance.below(6)));
        let spec = Box::new(scenario::spec(&mut self.chance));
        self.event(Event::Submit { build, request_id, spec })
    }

    fn ask_about(&mut self, event: impl Fn(BuildId) -> Event) -> Outcome {
        let known: Vec<_> = self.acknowledged.iter().copied().collect();
        if known.is_empty() {
            return Ok(());
        }
        let build = *self.chance.pick(&known);
        let forgotten = self.scheduler.as_ref().is_some_and(|scheduler| scheduler.build(build).is_none());
        if forgotten && let Some(record) = self.store.builds.get(&build) {
            let tasks = self.store.tasks_of(record);
            self.event(Event::Recall { build: Box::new(record.clone()), tasks })?;
        }
        self.event(event(build))
    }

    // ----- the end

    /// All faults end, and what operators did is undone.
    fn calm_down(&mut self) -> Outcome {
        self.calm = true;
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            let model = self.workers.get_mut(&worker).expect("a worker");
            let (now, was_dead) = (self.now, !model.alive);
            model.hung_until = model.hung_until.min(now);
            model.cut_until = model.cut_until.min(now);
            model.full_until = model.full_until.min(now);
            model.throttled = false;
            if was_dead {
                self.soon(100, 5_000, Action::Revive(worker));
            } else {
                self.soon(100, 5_000, Action::Connect(worker));
            }
            let set = ["z0", "z1"].map(|zone| (zone.to_owned(), "yes".to_owned())).to_vec();
            let updates =
                [WorkerUpdate::Uncordon, WorkerUpdate::Slots(2), WorkerUpdate::Labels { set, remove: Vec::new() }];
            for update in updates {
                self.soon(60_000, 60_000, Action::Operate(Event::WorkerUpdated { worker, update }));
            }
        }
        Ok(())
    }

    /// Every acknowledged build is final, and no worker holds anything any more.
    fn is_over(&self) -> bool {
        let settled = self.now > self.end_of_storm + Duration::from_secs(61);
        settled
            && self.acknowledged.iter().all(|id| self.store.builds.get(id).is_some_and(|build| build.state.is_final()))
            && self.workers.values().all(|worker| worker.jobs.is_empty())
    }

    fn unfinished(&self) -> String {
        let open = self.acknowledged.iter().filter_map(|id| self.store.builds.get(id));
        let open: Vec<_> = open
            .filter(|build| !build.state.is_final())
            .map(|build| {
                let tasks: Vec<_> = self.store.tasks_of(build).into_iter().map(|task| task.state).collect();
                let why = self.scheduler.as_ref().map(|scheduler| scheduler.explain(build.id, self.now));
                let why: Vec<_> = why
                    .into_iter()
                    .flatten()
                    .map(|task| {
                        let verdicts = task.verdicts.iter();
                        let verdicts: Vec<_> =
                            verdicts.map(|verdict| format!("{}: {}", verdict.worker_name, verdict.reason)).collect();
                        format!("{}: {}", task.summary, verdicts.join(", "))
                    })
                    .collect();
                format!("{} is {:?} with {tasks:?}: {why:?}", build.id, build.state)
            })
            .collect();
        let held = self.workers.values().flat_map(|worker| &worker.jobs);
        let held: Vec<_> =
            held.map(|(attempt, job)| format!("{attempt} of build {}, {:?}", job.build, job.outcome)).collect();
        format!("faults have stopped long ago, and yet builds are open: {open:?}; workers hold attempts: {held:?}")
    }

    // ----- the agenda

    fn at(&mut self, at: Timestamp, action: Action) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), action);
    }

    fn soon(&mut self, least: u64, most: u64, action: Action) {
        let at = self.now + Duration::from_millis(self.chance.between(least, most));
        self.at(at, action);
    }
}

fn image(number: u64) -> ImageDescriptor {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    ImageDescriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        digest: Digest::from_sha256(bytes),
        size: number,
        bases: Vec::new(),
    }
}

fn short(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").chars().take(400).collect()
}
