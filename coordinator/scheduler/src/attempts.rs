//! The life of an attempt: what its worker says, what its loss means, and when its task is tried again.
//!
//! The fence: a worker's `attempts` hold only those that may complete their tasks. A report on any other changes nothing;
//! it is acknowledged, so that the worker forgets the attempt.

use kiln_common::{AttemptId, TaskId, Timestamp, WorkerId, spec::ImageDescriptor};

use crate::{
    effect::Effect,
    event::AttemptOutcome,
    farm::grade_index,
    mutation::Mutation,
    record::{BuildState, TaskState},
    scheduler::Scheduler,
    slab::{TaskIx, WorkerIx},
};

impl Scheduler {
    pub(crate) fn on_report(&mut self, worker: WorkerId, attempt: AttemptId, outcome: AttemptOutcome) {
        let at = self.farm.find(worker);
        let current = at.and_then(|at| self.farm.workers[at].attempts.get(&attempt).copied());
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
            | AttemptOutcome::Cancelled => {
                if current.is_some() || self.mutation != Mutation::ForgetAcknowledge {
                    self.act(Effect::AcknowledgeReport { worker, attempt });
                }
                let Some(at) = at else { return };
                if self.farm.workers[at].stopping.remove(&attempt).is_some() {
                    self.farm.workers[at].settle_excess();
                    self.touch(at);
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
        let now = self.now;
        let task = &mut self.tasks[at];
        if task.record.state != TaskState::Assigned {
            return;
        }
        task.record.state = TaskState::Running;
        if let Some(attempt) = &mut task.record.attempt {
            attempt.started_at = Some(now);
        }
        let build = task.build;
        self.changed_task(at);
        let record = &mut self.builds[build].record;
        if record.state == BuildState::Queued {
            record.state = BuildState::Running;
            record.started_at.get_or_insert(now);
            self.changed_build(build);
        }
    }

    fn ended(&mut self, at: TaskIx, worker: WorkerIx, attempt: AttemptId, outcome: AttemptOutcome) {
        self.release(at);
        let was_canary = self.farm.workers[worker].canary.take_if(|canary| *canary == attempt).is_some();
        match outcome {
            AttemptOutcome::Started => {}
            AttemptOutcome::Succeeded { image } => {
                self.farm_did_well(worker, was_canary);
                self.learn(at, worker);
                self.succeed(at, image);
            }
            AttemptOutcome::BuildFailed { message } => {
                self.farm_did_well(worker, was_canary);
                self.end_task(at, TaskState::Failed { message });
            }
            AttemptOutcome::InfrastructureFailed { message } => {
                self.worker_failed(worker, was_canary, &message);
                self.try_again(at, worker, message, true);
            }
            // Nobody here asked for it: the worker itself was stopped.
            AttemptOutcome::Cancelled => {
                let name = self.farm.workers[worker].record.name.clone();
                self.try_again(at, worker, format!("worker `{name}` stopped the attempt"), false);
            }
        }
    }

    fn succeed(&mut self, at: TaskIx, image: ImageDescriptor) {
        self.end_task(at, TaskState::Succeeded { image });
    }

    fn learn(&mut self, at: TaskIx, worker: WorkerIx) {
        let task = &self.tasks[at];
        let (Some(ties), Some(attempt)) = (task.ties, &task.record.attempt) else { return };
        let began = attempt.started_at.unwrap_or(attempt.assigned_at);
        let took = self.now.as_millis().saturating_sub(began.as_millis());
        let (platform, id) = (task.platform, self.farm.workers[worker].record.id);
        let measured = self.history.learn(ties.memory, platform, (worker, id), attempt.grade.is_emulated(), took);
        if let Some(slowdown) = measured {
            let known = &mut self.farm.workers[worker].slowdown;
            let mean = crate::history::average(known.get(&platform).copied(), slowdown);
            known.insert(platform, mean);
        }
    }

    /// The task's attempt is over, whatever comes next: its worker has a slot more.
    pub(crate) fn release(&mut self, at: TaskIx) -> Option<WorkerIx> {
        let now = self.now;
        let task = &mut self.tasks[at];
        let worker = task.worker.take()?;
        let attempt = task.record.attempt.as_mut()?;
        attempt.finished_at = Some(now);
        let (id, grade, platform) = (attempt.id, attempt.grade, task.platform);
        self.farm.platforms[platform.0 as usize].live[grade_index(grade)] -= 1;
        let entry = &mut self.farm.workers[worker];
        entry.attempts.remove(&id);
        entry.settle_excess();
        self.touch(worker);
        self.changed_task(at);
        Some(worker)
    }

    /// The task is final.
    fn end_task(&mut self, at: TaskIx, state: TaskState) {
        self.leave_queue(at, None);
        self.tasks[at].record.state = state;
        self.changed_task(at);
        self.untie(at);
        let build = self.tasks[at].build;
        self.advance(build);
    }

    /// Ends a task whose build goes on without it or not at all. Its attempt keeps its slot until the worker has stopped it.
    pub(crate) fn cancel_task(&mut self, at: TaskIx, reason: &str) {
        self.leave_queue(at, None);
        let attempt = self.tasks[at].record.attempt.as_ref().map(|attempt| attempt.id);
        if let (Some(worker), Some(attempt)) = (self.release(at), attempt) {
            self.farm.workers[worker].canary.take_if(|canary| *canary == attempt);
            self.stop(worker, attempt, reason);
        }
        self.tasks[at].record.state = TaskState::Cancelled;
        self.changed_task(at);
        self.untie(at);
    }

    /// Tells a connected worker to stop an attempt; one that is away hears of it when it returns.
    pub(crate) fn stop(&mut self, at: WorkerIx, attempt: AttemptId, reason: &str) {
        if !self.farm.workers[at].is_online() {
            return;
        }
        let again = self.now + self.config.stop_again;
        let entry = &mut self.farm.workers[at];
        let worker = entry.record.id;
        entry.stopping.insert(attempt, again);
        // What is to stop was held already, if only by the worker itself.
        entry.excess = entry.excess.max(entry.held());
        self.timers.set(again, crate::timers::Timer::StopAgain(worker));
        if self.mutation != Mutation::ForgetCancel {
            self.act(Effect::CancelAttempt { worker, attempt, reason: reason.to_owned() });
        }
    }

    /// A worker runs something that is not its own any more.
    pub(crate) fn stop_stranger(&mut self, at: WorkerIx, attempt: AttemptId) {
        let entry = &mut self.farm.workers[at];
        if entry.is_online() && !entry.stopping.contains_key(&attempt) {
            self.stop(at, attempt, "the attempt was superseded or its build has ended");
            self.touch(at);
        }
    }

    pub(crate) fn on_stop_again(&mut self, id: WorkerId) {
        let Some(at) = self.farm.find(id) else { return };
        let now = self.now;
        let entry = &self.farm.workers[at];
        let due = entry.stopping.iter().filter(|(_, again)| **again <= now).map(|(attempt, _)| *attempt);
        for attempt in due.collect::<Vec<_>>() {
            self.stop(at, attempt, "the attempt is still not stopped");
        }
    }

    /// The farm failed the task: again elsewhere, later or at once, until its tries are used up.
    pub(crate) fn try_again(&mut self, at: TaskIx, worker: WorkerIx, message: String, back_off: bool) {
        let failed_on = self.farm.workers[worker].record.id;
        let record = &mut self.tasks[at].record;
        if !record.avoid.contains(&failed_on) {
            record.avoid.push(failed_on);
        }
        if record.attempts >= self.config.attempts_per_task {
            let message = format!("{message} (tried {} times)", record.attempts);
            return self.end_task(at, TaskState::Failed { message });
        }
        if !back_off {
            return self.begin_waiting(at);
        }
        let doubled = self.config.backoff_base.saturating_mul(1 << (record.attempts.max(1) - 1).min(16));
        let until = self.now + self.rng.jitter(doubled.min(self.config.backoff_most));
        let id = record.id;
        record.state = TaskState::Backoff { until, message };
        self.changed_task(at);
        self.timers.set(until, crate::timers::Timer::Backoff(id));
    }

    pub(crate) fn on_backoff_over(&mut self, id: TaskId, due: Timestamp) {
        let Some(&at) = self.task_ids.get(&id) else { return };
        let is_due = match &self.tasks[at].record.state {
            TaskState::Backoff { until, .. } => *until == due,
            TaskState::Waiting { .. }
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Succeeded { .. }
            | TaskState::Failed { .. }
            | TaskState::Cancelled => false,
        };
        if is_due {
            self.begin_waiting(at);
        }
    }
}
