//! The life of an attempt: what its worker says, what its loss means, and when its task is tried again.
//!
//! The fence: a worker's `attempts` hold only those that may complete their tasks. A report on any other changes nothing;
//! it is acknowledged, so that the worker forgets the attempt.

use kiln_common::{AttemptId, EmulationPolicy, Timestamp, WorkerId};

use crate::{
    effect::Effect,
    entity::Place,
    event::AttemptOutcome,
    farm::{GRADES, grade_index, worker::Worker},
    mutation::Mutation,
    record::{BuildState, TaskState},
    scheduler::Scheduler,
    slab::{TaskIx, WorkerIx},
    timers::Timer,
};

impl Scheduler {
    pub(crate) fn on_report(&mut self, worker: WorkerId, attempt: AttemptId, outcome: AttemptOutcome) {
        let at = self.farm.find(worker);
        let current = at.and_then(|at| self.farm.workers[at].attempts.get(attempt));
        let current = current.or_else(|| self.unfenced(attempt));
        match outcome {
            AttemptOutcome::Started => match (current, at) {
                (Some(task), _) => self.started(task),
                (None, Some(at)) => self.stop_stranger(at, attempt),
                (None, None) => {}
            },
            AttemptOutcome::Succeeded { .. }
            | AttemptOutcome::BuildFailed { .. }
            | AttemptOutcome::InfrastructureFailed { .. }
            | AttemptOutcome::RegistryFailed { .. }
            | AttemptOutcome::Cancelled => {
                if current.is_some() || self.mutation != Mutation::ForgetAcknowledge {
                    self.act(Effect::AcknowledgeReport { worker, attempt });
                }
                let Some(at) = at else { return };
                if self.farm.workers[at].stopping.remove(&attempt).is_some() {
                    self.farm.workers[at].settle_excess();
                    self.freed(at);
                }
                if let Some(task) = current {
                    self.ended(task, at, attempt, outcome);
                }
            }
        }
    }

    /// The defect of a scheduler without the fence: any attempt of a task that is not final counts.
    fn unfenced(&self, attempt: AttemptId) -> Option<TaskIx> {
        if self.mutation != Mutation::DropFence {
            return None;
        }
        let open = self.tasks.iter().filter(|(_, task)| !task.record.state.is_final() && task.record.attempts > 1);
        open.map(|(at, _)| at).min_by_key(|at| (self.tasks[*at].record.id, attempt))
    }

    fn started(&mut self, at: TaskIx) {
        if self.tasks[at].record.state != TaskState::Assigned {
            return;
        }
        self.set_state(at, TaskState::Running);
        let now = self.now;
        for task in std::iter::once(at).chain(self.followers(at)) {
            if let Some(attempt) = &mut self.change_task(task).attempt {
                attempt.started_at = Some(now);
            }
            self.begin_build_of(task);
        }
    }

    /// A leg of the task's build has begun.
    pub(crate) fn begin_build_of(&mut self, at: TaskIx) {
        let (now, build) = (self.now, self.tasks[at].build);
        if self.builds[build].record.state == BuildState::Queued {
            let record = self.builds[build].record_mut();
            record.state = BuildState::Running;
            record.started_at.get_or_insert(now);
            self.changed_build(build);
        }
    }

    /// What comes of an attempt comes of its task and of those that follow it.
    fn ended(&mut self, at: TaskIx, worker: WorkerIx, attempt: AttemptId, outcome: AttemptOutcome) {
        let followers = self.followers(at);
        self.release(at);
        let was_canary = self.farm.workers[worker].canary.take_if(|canary| *canary == attempt).is_some();
        match &outcome {
            AttemptOutcome::Started | AttemptOutcome::RegistryFailed { .. } | AttemptOutcome::Cancelled => {}
            AttemptOutcome::Succeeded { .. } => {
                self.farm_did_well(worker, was_canary);
                self.learn(at, worker);
            }
            AttemptOutcome::BuildFailed { .. } => self.farm_did_well(worker, was_canary),
            AttemptOutcome::InfrastructureFailed { message } => self.worker_failed(worker, was_canary, message),
        }
        self.conclude(at, worker, &outcome);
        for follower in followers {
            if self.tasks[follower].follows(at) && self.mutation != Mutation::ForgetFollowers {
                self.unfollow(follower);
                self.conclude(follower, worker, &outcome);
            }
        }
    }

    fn conclude(&mut self, at: TaskIx, worker: WorkerIx, outcome: &AttemptOutcome) {
        match outcome {
            AttemptOutcome::Started => {}
            AttemptOutcome::Succeeded { image } => self.end_task(at, TaskState::Succeeded { image: image.clone() }),
            AttemptOutcome::BuildFailed { message } if self.ran_out_for_another(at) => {
                self.try_again(at, worker, message.clone(), false);
            }
            AttemptOutcome::BuildFailed { message } => {
                self.end_task(at, TaskState::Failed { message: message.clone() });
            }
            AttemptOutcome::InfrastructureFailed { message } | AttemptOutcome::RegistryFailed { message } => {
                self.try_again(at, worker, message.clone(), true);
            }
            // Nobody here asked for it: the worker itself was stopped.
            AttemptOutcome::Cancelled => {
                let message = format!("worker `{}` stopped the attempt", self.farm.workers[worker].name);
                self.try_again(at, worker, message, false);
            }
        }
    }

    /// The worker gave the attempt up when the build for which it began ran out of time, and this one has more.
    fn ran_out_for_another(&self, at: TaskIx) -> bool {
        let task = &self.tasks[at];
        let given_up = task.record.attempt.as_ref().and_then(|attempt| attempt.deadline);
        given_up.is_some_and(|at| at <= self.now) && self.builds[task.build].deadline > self.now
    }

    fn learn(&mut self, at: TaskIx, worker: WorkerIx) {
        let task = &self.tasks[at];
        let (Some(ties), Some(attempt)) = (self.builds[task.build].ties, &task.record.attempt) else { return };
        let began = attempt.started_at.unwrap_or(attempt.assigned_at);
        let took = self.now.as_millis().saturating_sub(began.as_millis());
        let (platform, id) = (task.platform, self.farm.workers[worker].id);
        let measured = self.history.learn(ties.repository, platform, (worker, id), attempt.grade.is_emulated(), took);
        if let Some(slowdown) = measured {
            let known = &mut self.farm.workers[worker].health.slowdown;
            let mean = crate::history::average(known.get(&platform).copied(), slowdown);
            known.insert(platform, mean);
        }
    }

    /// The task's attempt is over, whatever comes next: its worker has a slot more.
    pub(crate) fn release(&mut self, at: TaskIx) -> Option<WorkerIx> {
        let now = self.now;
        let task = &mut self.tasks[at];
        let (worker, platform) = (task.worker()?, task.platform);
        task.place = Place::Nowhere;
        let attempt = self.change_task(at).attempt.as_mut()?;
        attempt.finished_at = Some(now);
        let (id, grade) = (attempt.id, attempt.grade);
        self.farm.platforms[platform.0 as usize].live[grade_index(grade)] -= 1;
        let entry = &mut self.farm.workers[worker];
        entry.attempts.remove(id);
        entry.settle_excess();
        self.freed(worker);
        Some(worker)
    }

    /// The task is final.
    pub(crate) fn end_task(&mut self, at: TaskIx, state: TaskState) {
        self.leave_queue(at, None);
        self.set_state(at, state);
        self.advance(self.tasks[at].build);
    }

    /// Ends a task whose build goes on without it or not at all. Its attempt keeps its slot until the worker has stopped it,
    /// unless another build inherits it.
    pub(crate) fn cancel_task(&mut self, at: TaskIx, reason: &str) {
        self.leave_queue(at, None);
        self.unfollow(at);
        if !self.pass_on(at) {
            let attempt = self.tasks[at].record.attempt.as_ref().map(|attempt| attempt.id);
            if let (Some(worker), Some(attempt)) = (self.release(at), attempt) {
                self.farm.workers[worker].canary.take_if(|canary| *canary == attempt);
                self.stop(worker, attempt, reason);
            }
        }
        self.set_state(at, TaskState::Cancelled);
    }

    /// Tells a connected worker to stop an attempt; one that is away hears of it when it returns.
    pub(crate) fn stop(&mut self, at: WorkerIx, attempt: AttemptId, reason: &str) {
        if !self.farm.workers[at].is_online() {
            return;
        }
        let again = self.now + self.config.stop_again;
        let entry = &mut self.farm.workers[at];
        let worker = entry.id;
        entry.stopping.insert(attempt, again);
        // What is to stop was held already, if only by the worker itself.
        entry.excess = entry.excess.max(entry.held());
        self.timers.set(again, Timer::StopAgain(at));
        if self.mutation != Mutation::ForgetCancel {
            self.act(Effect::CancelAttempt { worker, attempt, reason: reason.to_owned() });
        }
    }

    /// A worker runs something that is not its own any more.
    pub(crate) fn stop_stranger(&mut self, at: WorkerIx, attempt: AttemptId) {
        let entry = &mut self.farm.workers[at];
        if entry.is_online() && !entry.stopping.contains_key(&attempt) {
            self.stop(at, attempt, "the attempt was superseded or its build has ended");
            self.freed(at);
        }
    }

    pub(crate) fn on_stop_again(&mut self, at: WorkerIx) {
        let Some(entry) = self.farm.workers.get(at) else { return };
        let now = self.now;
        let due = entry.stopping.iter().filter(|(_, again)| **again <= now).map(|(attempt, _)| *attempt);
        for attempt in due.collect::<Vec<_>>() {
            self.stop(at, attempt, "the attempt is still not stopped");
        }
    }

    /// The worker does not have the attempt any more: the task goes elsewhere at once, for it has waited enough, and those
    /// that followed it with it.
    pub(crate) fn lose(&mut self, at: TaskIx, message: &str) {
        let followers = self.followers(at);
        let Some(worker) = self.release(at) else { return };
        let attempt = self.tasks[at].record.attempt.as_ref().map(|attempt| attempt.id);
        self.farm.workers[worker].canary.take_if(|canary| Some(*canary) == attempt);
        self.try_again(at, worker, message.to_owned(), false);
        for follower in followers {
            self.unfollow(follower);
            self.try_again(follower, worker, message.to_owned(), false);
        }
    }

    /// The farm failed the task: again elsewhere, later or at once, until its retries are used up.
    pub(crate) fn try_again(&mut self, at: TaskIx, worker: WorkerIx, message: String, back_off: bool) {
        let failed_on = self.farm.workers[worker].id;
        self.tasks[at].tried = true;
        let record = self.change_task(at);
        if !record.avoid.contains(&failed_on) {
            record.avoid.push(failed_on);
        }
        let tries = record.attempts;
        if tries > self.config.retries_per_task || self.is_out_of_workers(at) {
            return self.give_up(at, &message);
        }
        if !back_off {
            return self.begin_waiting(at);
        }
        let doubled = self.config.backoff_base.saturating_mul(1 << (tries.max(1) - 1).min(16));
        let until = self.now + self.rng.jitter(doubled.min(self.config.backoff_most));
        self.set_state(at, TaskState::Backoff { until, message });
        self.timers.set(until, Timer::Backoff(at));
    }

    /// Whether the task failed on every worker that could ever take it, and none of them is trusted any more: it would wait
    /// for ever, for a canary is a first try.
    fn is_out_of_workers(&self, at: TaskIx) -> bool {
        let task = &self.tasks[at];
        let build = &self.builds[task.build];
        let Some(ties) = build.ties else { return false };
        let members = &self.farm.selectors.get(ties.selector).members;
        let (emulates, avoid) = (build.spec.emulation != EmulationPolicy::Never, &task.record.avoid);
        let is_spent = |worker: &Worker| worker.record.quarantine.is_some() && avoid.contains(&worker.id);
        let grades = GRADES.into_iter().filter(|grade| emulates || !grade.is_emulated());
        let mut able =
            grades.map(|grade| &self.farm.pool(task.platform, grade).known).filter(|known| known.meets(members));
        able.clone().next().is_some()
            && able
                .all(|known| known.first_common(members, 0, |worker| !is_spent(&self.farm.workers[worker])).is_none())
    }

    fn give_up(&mut self, at: TaskIx, message: &str) {
        let message = format!("{message} (tried {} times)", self.tasks[at].record.attempts);
        self.end_task(at, TaskState::Failed { message });
    }

    pub(crate) fn on_backoff_over(&mut self, at: TaskIx, due: Timestamp) {
        let Some(task) = self.tasks.get(at) else { return };
        let is_due = match &task.record.state {
            TaskState::Backoff { until, message } if *until == due && self.is_out_of_workers(at) => {
                let message = message.clone();
                return self.give_up(at, &message);
            }
            TaskState::Backoff { until, .. } => *until == due,
            TaskState::Waiting { .. }
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Shared { .. }
            | TaskState::Succeeded { .. }
            | TaskState::Failed { .. }
            | TaskState::Cancelled => false,
        };
        if is_due {
            self.begin_waiting(at);
        }
    }
}
