//! How a task's state changes, and how it begins and ceases to wait.

use kiln_common::{EmulationPolicy, Timestamp, emulation::format_duration};

use crate::{
    entity::Place,
    mutation::Mutation,
    queue::lane::{LaneKey, Mode, Order, Waiting},
    record::{TaskRecord, TaskState},
    scheduler::Scheduler,
    slab::TaskIx,
    timers::Timer,
};

impl Scheduler {
    /// Every change of a task's state goes through here: its build's legs are counted. Gives its record, for what else changes.
    pub(crate) fn set_state(&mut self, at: TaskIx, state: TaskState) -> &mut TaskRecord {
        let task = &self.tasks[at];
        self.builds[task.build].legs.change(task.record.required, &task.record.state, &state);
        let record = self.change_task(at);
        record.state = state;
        record
    }

    /// The task waits from now on: for a worker, or for an identical leg that has one.
    pub(crate) fn begin_waiting(&mut self, at: TaskIx) {
        self.set_state(at, TaskState::Waiting { since: self.now });
        match self.leader_for(at) {
            Some(leader) => self.follow(at, leader),
            None => {
                self.join_queue(at);
                self.turn.fresh.push(at);
            }
        }
    }

    /// Puts a waiting task into its lane.
    pub(crate) fn join_queue(&mut self, at: TaskIx) {
        let task = &self.tasks[at];
        let (build, platform) = (&self.builds[task.build], task.platform);
        let spec = &build.spec;
        let Some(ties) = build.ties else { return };
        let since = waiting_since(&task.record.state).unwrap_or(self.now);
        let opens_at = emulation_opens_at(spec.emulation, since).filter(|at| *at > self.now);
        let mode = mode_of(spec.emulation, opens_at);
        let key = LaneKey { selector: ties.selector, platform, mode };
        let cost = self.history.native(ties.repository, platform);
        let waiting = Waiting { order: self.order_of(at), task: at, priority: spec.priority, cost };
        let expires_at = spec.queue_timeout.map(|wait| since + wait);
        let flow = self.queue.flows.of(ties.project, platform);
        let share = self.queue.enqueue(key, flow, waiting, self.now);
        self.tasks[at].place = Place::Queued(share);
        if let Some(moment) = opens_at {
            self.timers.set(moment, Timer::EmulationWait(at));
        }
        if let Some(moment) = expires_at {
            self.timers.set(moment, Timer::QueueTimeout(at));
        }
        if mode == Mode::Auto {
            self.arm_review();
        }
    }

    /// The task's place within its share: its build's, for a share has one task of a build.
    pub(crate) fn order_of(&self, at: TaskIx) -> Order {
        let build = &self.builds[self.tasks[at].build];
        Order { due: build.due, sequence: build.sequence }
    }

    /// Takes a task out of its lane: `served` when it goes to a worker, at that predicted cost.
    pub(crate) fn leave_queue(&mut self, at: TaskIx, served: Option<u64>) {
        let task = &self.tasks[at];
        let Some(share) = task.share() else { return };
        let build = &self.builds[task.build];
        if let (true, Some(since)) = (build.times_waits, waiting_since(&task.record.state)) {
            if let Some(moment) = emulation_opens_at(build.spec.emulation, since) {
                self.timers.unset(moment, Timer::EmulationWait(at));
            }
            if let Some(wait) = build.spec.queue_timeout {
                self.timers.unset(since + wait, Timer::QueueTimeout(at));
            }
        }
        self.queue.dequeue(share, self.order_of(at), served, self.now);
        self.tasks[at].place = Place::Nowhere;
    }

    pub(crate) fn on_emulation_wait_over(&mut self, at: TaskIx, due: Timestamp) {
        if self.emulation_opens_for(at) == Some(due) {
            self.leave_queue(at, None);
            self.join_queue(at);
            self.turn.fresh.push(at);
        }
    }

    /// When a task that waits may run emulated; `None` where that does not depend on time.
    pub(crate) fn emulation_opens_for(&self, at: TaskIx) -> Option<Timestamp> {
        let task = self.tasks.get(at).filter(|task| task.share().is_some())?;
        emulation_opens_at(self.builds[task.build].spec.emulation, waiting_since(&task.record.state)?)
    }

    /// No worker took the task in time.
    pub(crate) fn on_queue_timeout(&mut self, at: TaskIx, due: Timestamp) {
        let Some(task) = self.tasks.get(at).filter(|task| task.share().is_some()) else { return };
        if self.mutation == Mutation::ForgetQueueTimeout {
            return;
        }
        let wait = self.builds[task.build].spec.queue_timeout;
        let (Some(wait), Some(since)) = (wait, waiting_since(&task.record.state)) else { return };
        if since + wait == due {
            let (waited, cause) = (format_duration(wait), self.cause_of_waiting(at));
            let message = format!("no worker took it within {waited}, the most that --queue-timeout allows: {cause}");
            self.end_task(at, TaskState::Failed { message });
        }
    }
}

pub(crate) const fn waiting_since(state: &TaskState) -> Option<Timestamp> {
    match state {
        TaskState::Waiting { since } => Some(*since),
        TaskState::Assigned
        | TaskState::Running
        | TaskState::Shared { .. }
        | TaskState::Backoff { .. }
        | TaskState::Succeeded { .. }
        | TaskState::Failed { .. }
        | TaskState::Cancelled => None,
    }
}

fn emulation_opens_at(policy: EmulationPolicy, since: Timestamp) -> Option<Timestamp> {
    match policy {
        EmulationPolicy::Wait(wait) => Some(since + wait),
        EmulationPolicy::Auto | EmulationPolicy::Never | EmulationPolicy::Now => None,
    }
}

/// The attitude to emulation of a task that may run so only from `opens_at` on.
const fn mode_of(policy: EmulationPolicy, opens_at: Option<Timestamp>) -> Mode {
    match (policy, opens_at) {
        (EmulationPolicy::Auto, _) => Mode::Auto,
        (EmulationPolicy::Never, _) | (EmulationPolicy::Wait(_), Some(_)) => Mode::Closed,
        (EmulationPolicy::Now, _) | (EmulationPolicy::Wait(_), None) => Mode::Open,
    }
}
