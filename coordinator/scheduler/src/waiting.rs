//! How a task begins and ceases to wait.

use std::time::Duration;

use kiln_common::{EmulationPolicy, TaskId, Timestamp};

use crate::{
    entity::Ties,
    queue::lane::{LaneKey, Mode, Order},
    record::TaskState,
    scheduler::Scheduler,
    slab::TaskIx,
    timers::Timer,
};

impl Scheduler {
    /// The task waits from now on.
    pub(crate) fn begin_waiting(&mut self, at: TaskIx) {
        let now = self.now;
        self.tasks[at].record.state = TaskState::Waiting { since: now };
        self.changed_task(at);
        self.tie(at);
        self.join_queue(at);
        self.turn.fresh.push(at);
    }

    /// Puts a waiting task into its lane.
    pub(crate) fn join_queue(&mut self, at: TaskIx) {
        let task = &self.tasks[at];
        let build = &self.builds[task.build];
        let (Some(ties), Some(selector)) = (task.ties, build.selector) else { return };
        let since = match task.record.state {
            TaskState::Waiting { since } => since,
            TaskState::Assigned
            | TaskState::Running
            | TaskState::Backoff { .. }
            | TaskState::Succeeded { .. }
            | TaskState::Failed { .. }
            | TaskState::Cancelled => self.now,
        };
        let (mode, opens_at) = mode_of(build.record.spec.emulation, since, self.now);
        let key = LaneKey { selector, platform: task.platform, mode };
        let cost = self.history.native(ties.memory, task.platform);
        let sequence = self.queue.next_sequence();
        let order = Order::new(build.record.created_at.as_millis(), build.record.spec.priority, sequence, at);
        let id = task.record.id;
        self.tasks[at].spot = Some(self.queue.enqueue(key, ties.flow, order, cost, self.now));
        if let Some(moment) = opens_at {
            self.tasks[at].emulation_at = Some(moment);
            self.timers.set(moment, Timer::EmulationWait(id));
        }
        if mode == Mode::Auto {
            self.arm_review();
        }
    }

    /// Takes a task out of its lane: `served` when it goes to a worker, at that predicted cost.
    pub(crate) fn leave_queue(&mut self, at: TaskIx, served: Option<u64>) {
        let task = &mut self.tasks[at];
        if let Some(moment) = task.emulation_at.take() {
            self.timers.unset(moment, Timer::EmulationWait(task.record.id));
        }
        if let Some(spot) = task.spot.take() {
            self.queue.dequeue(&spot, served, self.now);
        }
    }

    pub(crate) fn on_emulation_wait_over(&mut self, id: TaskId, at: Timestamp) {
        let Some(&index) = self.task_ids.get(&id) else { return };
        if self.tasks[index].emulation_at != Some(at) || self.tasks[index].spot.is_none() {
            return;
        }
        self.leave_queue(index, None);
        self.join_queue(index);
        self.turn.fresh.push(index);
    }

    /// What a task that is not final refers to.
    pub(crate) fn tie(&mut self, at: TaskIx) {
        let task = &self.tasks[at];
        if task.ties.is_some() {
            return;
        }
        let (platform, build) = (task.platform, &self.builds[task.build]);
        let repository = build.record.spec.tags.first().map(|tag| tag.repository().to_string()).unwrap_or_default();
        let ties = Ties {
            flow: self.queue.flows.acquire(platform, &build.project),
            memory: self.history.acquire(&repository, platform),
        };
        self.tasks[at].ties = Some(ties);
    }

    pub(crate) fn untie(&mut self, at: TaskIx) {
        if let Some(ties) = self.tasks[at].ties.take() {
            self.queue.flows.release(ties.flow);
            self.history.release(ties.memory);
        }
    }
}

/// The lane's attitude to emulation now, and when it changes.
fn mode_of(policy: EmulationPolicy, since: Timestamp, now: Timestamp) -> (Mode, Option<Timestamp>) {
    match policy {
        EmulationPolicy::Auto => (Mode::Auto, None),
        EmulationPolicy::Never => (Mode::Closed, None),
        EmulationPolicy::Now => (Mode::Open, None),
        EmulationPolicy::Wait(Duration::ZERO) => (Mode::Open, None),
        EmulationPolicy::Wait(wait) if now >= since + wait => (Mode::Open, None),
        EmulationPolicy::Wait(wait) => (Mode::Closed, Some(since + wait)),
    }
}
