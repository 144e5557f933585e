//! The model farm: a queue of things to come, and what they happen to: the coordinator as scheduler and committed records,
//! workers, registry, users. What each of them does is in the modules beside this one.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hasher},
    time::Duration,
};

use kiln_common::{AttemptId, BuildId, Digest, Timestamp, WorkerId};
use kiln_scheduler::{
    Event, Scheduler,
    effect::{Dispatch, PublishJob},
    event::AttemptOutcome,
    mutation::Mutation,
};

use crate::{
    chance::Chance,
    model_worker::ModelWorker,
    oracle::{Heard, Made, Store},
    scenario,
};

/// Things go wrong for this long.
const STORM: Duration = Duration::from_secs(180);
/// Then every build must end within this time.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
/// More steps than any history of this length takes.
const STEPS: usize = 200_000;

#[derive(Debug)]
pub enum Action {
    Connect(WorkerId),
    /// A message of a worker's session arrives.
    Up(WorkerId, u64, Event),
    Down(WorkerId, u64, ToWorker),
    /// The coordinator notices that a session ended.
    SessionLost(WorkerId, u64),
    Beat(WorkerId, u64),
    JobEnds(WorkerId, AttemptId),
    JobStopped(WorkerId, AttemptId),
    /// The time that the attempt was given is over.
    JobRunsOut(WorkerId, AttemptId),
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
pub enum ToWorker {
    Run(Box<Dispatch>),
    Stop(AttemptId),
    Forget(AttemptId),
    Close,
}

pub struct World {
    pub chance: Chance,
    pub seed: u64,
    pub mutation: Mutation,
    pub now: Timestamp,
    pub end_of_storm: Timestamp,
    pub calm: bool,
    pub agenda: BTreeMap<(Timestamp, u64), Action>,
    pub sequence: u64,
    /// `None` while the coordinator is down.
    pub scheduler: Option<Scheduler>,
    /// Counts the coordinator's starts.
    pub generation: u64,
    pub store: Store,
    pub workers: BTreeMap<WorkerId, ModelWorker>,
    /// Sessions as the coordinator sees them.
    pub sessions: BTreeMap<WorkerId, u64>,
    pub last_down: BTreeMap<WorkerId, Timestamp>,
    /// Publishes that run.
    pub publishing: BTreeMap<BuildId, u32>,
    /// What the coordinator last heard from each worker, since it started.
    pub heard: BTreeMap<WorkerId, Heard>,
    /// For whom each image was made.
    pub made: BTreeMap<Digest, Made>,
    pub acknowledged: BTreeSet<BuildId>,
    pub moved: BTreeSet<BuildId>,
    pub builds: u64,
    pub images: u64,
    pub narrate: bool,
    pub trace: bool,
    pub hasher: DefaultHasher,
}

pub type Outcome = Result<(), String>;

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
            heard: BTreeMap::new(),
            made: BTreeMap::new(),
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

    pub fn start(&self) -> Timestamp {
        Timestamp::from_millis(self.end_of_storm.as_millis() - u64::try_from(STORM.as_millis()).unwrap_or(0))
    }

    pub fn step(&mut self) -> Outcome {
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

    pub fn perform(&mut self, action: Action) -> Outcome {
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
            Action::JobEnds(worker, attempt) => self.job_ends(worker, attempt),
            Action::JobStopped(worker, attempt) => {
                self.job_stopped(worker, attempt, AttemptOutcome::Cancelled);
                Ok(())
            }
            Action::JobRunsOut(worker, attempt) => {
                let message = "the build did not finish in its time".to_owned();
                self.job_stopped(worker, attempt, AttemptOutcome::BuildFailed { message });
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

    /// Every acknowledged build is final, and no worker holds anything any more.
    pub fn is_over(&self) -> bool {
        let settled = self.now > self.end_of_storm + Duration::from_secs(61);
        settled
            && self.acknowledged.iter().all(|id| self.store.builds.get(id).is_some_and(|build| build.state.is_final()))
            && self.workers.values().all(|worker| worker.jobs.is_empty())
    }

    pub fn unfinished(&self) -> String {
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
            held.map(|(attempt, job)| format!("{attempt} of build {}, {:?}", job.made.build, job.outcome)).collect();
        format!("faults have stopped long ago, and yet builds are open: {open:?}; workers hold attempts: {held:?}")
    }

    pub fn at(&mut self, at: Timestamp, action: Action) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), action);
    }

    pub fn soon(&mut self, least: u64, most: u64, action: Action) {
        let at = self.now + Duration::from_millis(self.chance.between(least, most));
        self.at(at, action);
    }
}
