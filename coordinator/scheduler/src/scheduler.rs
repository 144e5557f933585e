//! The scheduler itself: what it holds, and how one turn goes. The rest of its behaviour is in the modules beside it, one
//! for each kind of event.
//!
//! A turn changes records and collects acts, then settles: touched workers are fed, fresh tasks placed, and each changed
//! record is given out once, before the acts.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use kiln_common::{BuildId, Timestamp, id::IdSource};

use crate::{
    config::Config,
    effect::Effect,
    entity::{Build, Task},
    event::Event,
    farm::Farm,
    history::History,
    mutation::Mutation,
    queue::Queue,
    record::TaskRecord,
    rng::Rng,
    sharing::alike::Alike,
    slab::{BuildIx, PlatformIx, Slab, TaskIx, WorkerIx},
    timers::{Timer, Timers},
};

/// The whole state of the farm. See the crate's documentation for how it is driven.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) mutation: Mutation,
    /// The latest moment handed in.
    pub(crate) now: Timestamp,
    pub(crate) ids: IdSource,
    pub(crate) rng: Rng,
    pub(crate) farm: Farm,
    pub(crate) queue: Queue,
    pub(crate) history: History,
    pub(crate) alike: Alike,
    pub(crate) builds: Slab<BuildIx, Build>,
    pub(crate) build_ids: BTreeMap<BuildId, BuildIx>,
    pub(crate) tasks: Slab<TaskIx, Task>,
    pub(crate) requests: BTreeMap<String, BuildId>,
    /// Request ids whose builds are forgotten, oldest first.
    pub(crate) old_requests: VecDeque<String>,
    /// Builds that are not final.
    pub(crate) open: usize,
    /// Builds that opened so far, some again.
    pub(crate) opened: u64,
    /// Final builds, in the order in which they became so.
    pub(crate) finals: VecDeque<(Timestamp, BuildId)>,
    pub(crate) timers: Timers,
    pub(crate) review_at: Option<Timestamp>,
    /// What almost every attempt's record gives as its reason, once for all of them.
    pub(crate) native_reason: Arc<str>,
    pub(crate) turn: Turn,
}

/// What one turn collects.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) builds: Vec<BuildIx>,
    pub(crate) tasks: Vec<TaskIx>,
    pub(crate) workers: Vec<WorkerIx>,
    pub(crate) acts: Vec<Effect>,
    /// Workers whose slots, state or description changed.
    pub(crate) touched: Vec<WorkerIx>,
    /// Tasks that wait since this turn.
    pub(crate) fresh: Vec<TaskIx>,
    /// Platforms that lost a worker: what waits for them may go elsewhere now.
    pub(crate) shaken: Vec<PlatformIx>,
}

impl Scheduler {
    /// `seed` decides ids and jitter: two schedulers with the same seed and events do the same.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        Self::with_mutation(config, seed, Mutation::None)
    }

    /// A scheduler with a known defect, for the tests of the simulation.
    #[doc(hidden)]
    #[must_use]
    pub fn with_mutation(config: Config, seed: u64, mutation: Mutation) -> Self {
        Self {
            config,
            mutation,
            now: Timestamp::default(),
            ids: IdSource::new(seed),
            rng: Rng::new(seed),
            farm: Farm::default(),
            queue: Queue::default(),
            history: History::default(),
            alike: Alike::default(),
            builds: Slab::default(),
            build_ids: BTreeMap::new(),
            tasks: Slab::default(),
            requests: BTreeMap::new(),
            old_requests: VecDeque::new(),
            open: 0,
            opened: 0,
            finals: VecDeque::new(),
            timers: Timers::default(),
            review_at: None,
            native_reason: "native worker".into(),
            turn: Turn::default(),
        }
    }

    /// Something happened. The records among the effects come first; they are to be durable before the others are acted on.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.handle_into(event, now, &mut effects);
        effects
    }

    /// As [`Self::handle`], into the caller's buffer.
    pub fn handle_into(&mut self, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
        self.now = if self.mutation == Mutation::TrustClock { now } else { self.now.max(now) };
        match event {
            Event::Restore { builds, workers } => self.on_restore(builds, workers),
            Event::Submit { build, request_id, spec, credentials } => {
                self.on_submit(build, request_id, *spec, credentials);
            }
            Event::Cancel { build, reason } => self.on_cancel(build, reason),
            Event::Recall { build, tasks } => self.on_recall(*build, tasks),
            Event::Retry { build, credentials } => self.on_retry(build, credentials),
            Event::Backfill { build, credentials } => self.on_backfill(build, credentials),
            Event::WorkerEnrolled { worker } => self.on_worker_enrolled(worker),
            Event::WorkerConnected { worker, facts, attempts } => self.on_worker_connected(worker, *facts, &attempts),
            Event::WorkerHeartbeat { worker, stats } => self.on_worker_heartbeat(worker, stats),
            Event::WorkerDisconnected { worker } => self.on_worker_disconnected(worker),
            Event::WorkerLeaving { worker, reason } => self.on_worker_leaving(worker, reason),
            Event::WorkerUpdated { worker, update } => self.on_worker_updated(worker, update),
            Event::WorkerRemoved { worker } => self.on_worker_removed(worker),
            Event::AttemptReported { worker, attempt, outcome } => self.on_report(worker, attempt, outcome),
            Event::PublishSucceeded { build, publish, published } => self.on_published(build, publish, published),
            Event::PublishFailed { build, publish, published, message } => {
                self.on_publish_failed(build, publish, published, message);
            }
            Event::LegsMissing { build, publish, platforms, message } => {
                self.on_legs_missing(build, publish, &platforms, &message);
            }
        }
        self.settle(effects);
    }

    /// When [`Self::handle_deadline`] is to be called although nothing happened.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Timestamp> {
        let too_many = self.finals.len() > self.config.finals_kept;
        let forget = self.finals.front().map(|(at, _)| if too_many { *at } else { *at + self.config.final_kept });
        [self.timers.next(), forget].into_iter().flatten().min()
    }

    /// That moment has come. Does a bounded part of what is due: [`Self::poll_deadline`] tells whether more is.
    pub fn handle_deadline(&mut self, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.handle_deadline_into(now, &mut effects);
        effects
    }

    /// As [`Self::handle_deadline`], into the caller's buffer.
    pub fn handle_deadline_into(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        let enough = effects.len() + self.config.effects_per_turn;
        let mut looks = 0;
        while looks < self.config.effects_per_turn && effects.len() < enough {
            let Some((at, timer)) = self.timers.take_due(self.now) else { break };
            looks += 1;
            self.on_timer(at, timer);
            self.settle(effects);
        }
        self.forget_old_builds();
    }

    fn on_timer(&mut self, at: Timestamp, timer: Timer) {
        match timer {
            Timer::Lease(worker) => self.on_lease(worker),
            Timer::Grace(worker) => self.on_grace_over(worker, at),
            Timer::Canary(worker) => self.on_canary_time(worker, at),
            Timer::StopAgain(worker) => self.on_stop_again(worker),
            Timer::Backoff(task) => self.on_backoff_over(task, at),
            Timer::EmulationWait(task) => self.on_emulation_wait_over(task, at),
            Timer::QueueTimeout(task) => self.on_queue_timeout(task, at),
            Timer::Timeout(build) => self.on_timeout(build, at),
            Timer::OptionalPatience(build) => self.on_optional_patience_over(build, at),
            Timer::EmulationReview => self.on_emulation_review(),
        }
    }

    /// Feeds workers, places tasks, gives out what changed.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        self.place();
        self.give_out(effects);
        debug_assert_eq!(self.check_quick(), Ok(()));
    }

    fn give_out(&mut self, effects: &mut Vec<Effect>) {
        for at in self.turn.builds.drain(..) {
            if let Some(build) = self.builds.get_mut(at) {
                build.dirty = false;
                build.record_mut().revision += 1;
                effects.push(Effect::PutBuild(Arc::clone(&build.record)));
            }
        }
        for at in self.turn.tasks.drain(..) {
            if let Some(task) = self.tasks.get_mut(at) {
                task.dirty = false;
                effects.push(Effect::PutTask(Arc::clone(&task.record)));
            }
        }
        for at in self.turn.workers.drain(..) {
            if let Some(worker) = self.farm.workers.get_mut(at) {
                worker.dirty = false;
                effects.push(Effect::PutWorker(worker.record.clone()));
            }
        }
        effects.append(&mut self.turn.acts);
    }

    pub(crate) fn act(&mut self, effect: Effect) {
        self.turn.acts.push(effect);
    }

    /// The build's record changed.
    pub(crate) fn changed_build(&mut self, at: BuildIx) {
        let build = &mut self.builds[at];
        if !build.dirty {
            build.dirty = true;
            self.turn.builds.push(at);
        }
    }

    /// The task's record, which is about to change: it is given out once the turn is over, under its next revision.
    pub(crate) fn change_task(&mut self, at: TaskIx) -> &mut TaskRecord {
        let task = &mut self.tasks[at];
        let record = Arc::make_mut(&mut task.record);
        if !std::mem::replace(&mut task.dirty, true) {
            record.revision += 1;
            self.turn.tasks.push(at);
        }
        record
    }

    /// The worker's record changed.
    pub(crate) fn changed_worker(&mut self, at: WorkerIx) {
        let worker = &mut self.farm.workers[at];
        if !worker.dirty {
            worker.dirty = true;
            self.turn.workers.push(at);
        }
    }

    /// What the worker is good for may have changed.
    pub(crate) fn touch(&mut self, at: WorkerIx) {
        self.farm.workers[at].changed = true;
        self.freed(at);
    }

    /// The worker may have room.
    pub(crate) fn freed(&mut self, at: WorkerIx) {
        let worker = &mut self.farm.workers[at];
        if !worker.touched {
            worker.touched = true;
            self.turn.touched.push(at);
        }
    }
}
