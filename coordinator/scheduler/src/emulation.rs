//! Whether a leg is better off emulated: predicted finish against predicted finish (DESIGN, "Platforms").
//!
//! natively: the platform's queue over its slots, then the leg's history. Emulated: history times the measured slowdown, eight
//! until measured. Native is preferred within 20 %.

use std::{sync::Arc, time::Duration};

use kiln_common::{Grade, emulation::format_duration};

use crate::{
    farm::{bitset::WorkerSet, grade_index},
    queue::lane::Mode,
    scheduler::Scheduler,
    slab::{PlatformIx, TaskIx, WorkerIx},
    timers::Timer,
};

impl Scheduler {
    /// How long the task is expected to take on the worker, in milliseconds.
    pub(crate) fn predicted(&self, at: TaskIx, worker: WorkerIx, grade: Grade) -> u64 {
        let task = &self.tasks[at];
        let Some(ties) = self.builds[task.build].ties else { return self.history.mean(task.platform) };
        let native = self.history.native(ties.repository, task.platform);
        if grade.is_emulated() { native.saturating_mul(self.slowdown(at, worker)) / 1_000 } else { native }
    }

    /// How many thousandths of the native time the task takes emulated on the worker.
    pub(crate) fn slowdown(&self, at: TaskIx, worker: WorkerIx) -> u64 {
        let task = &self.tasks[at];
        let (Some(entry), Some(ties)) = (self.farm.workers.get(worker), self.builds[task.build].ties) else {
            return crate::history::SLOWDOWN_UNMEASURED;
        };
        let of_worker = entry.health.slowdown.get(&task.platform).copied();
        self.history.slowdown(ties.repository, task.platform, entry.id, of_worker)
    }

    /// Whether the last of the queue finishes earlier on this emulated worker than natively, by more than 20 %.
    pub(crate) fn emulation_pays(&self, at: TaskIx, worker: WorkerIx) -> bool {
        let task = &self.tasks[at];
        let Some(ties) = self.builds[task.build].ties else { return false };
        let members = &self.farm.selectors.get(ties.selector).members;
        let own = self.cost_in_queue(at);
        let Some(wait) = self.native_wait(task.platform, members, own) else { return true };
        let native = wait.saturating_add(self.history.native(ties.repository, task.platform));
        self.predicted(at, worker, Grade::Emulated).saturating_mul(6) / 5 < native
    }

    /// What the task adds to its platform's queue, in milliseconds of native work.
    fn cost_in_queue(&self, at: TaskIx) -> u64 {
        let share = self.tasks[at].share().and_then(|share| self.queue.shares.get(share));
        share.and_then(|share| share.get(self.order_of(at))).map_or(0, |waiting| waiting.cost)
    }

    /// Milliseconds until a native slot is free for who queues last; `None` when no worker runs the platform natively now.
    pub(crate) fn native_wait(&self, platform: PlatformIx, members: &WorkerSet, own_cost: u64) -> Option<u64> {
        let (mut slots, mut live) = (0, 0);
        for grade in [Grade::Native, Grade::Compat] {
            let able = self.able_slots(platform, grade, members);
            slots += able;
            live += if able > 0 { self.farm.entry(platform).live[grade_index(grade)] } else { 0 };
        }
        if slots == 0 {
            return None;
        }
        let queued = self.queue.platform(platform).map_or(0, |queue| queue.cost.saturating_sub(own_cost));
        // What runs is half done on average, and what has kept everyone waiting longer than that may take as long again.
        let stuck = self.queue.platform(platform).map_or(0, |queue| queue.stuck(self.now));
        let rest = live.min(slots).saturating_mul((self.history.mean(platform) / 2).max(stuck));
        Some(queued.saturating_add(rest) / slots)
    }

    /// The decision in words, for the record; always there when the leg is emulated.
    pub(crate) fn reason_for(&self, at: TaskIx, worker: WorkerIx, grade: Grade, why: &str) -> Arc<str> {
        let task = &self.tasks[at];
        let reason = match grade {
            Grade::Native if why.is_empty() => return Arc::clone(&self.native_reason),
            Grade::Native => self.native_reason.to_string(),
            Grade::Compat => format!("runs {} in the CPU's 32-bit mode", task.record.platform),
            Grade::Emulated => self.reason_to_emulate(at, worker),
        };
        if why.is_empty() { reason.into() } else { format!("{reason}; {why}").into() }
    }

    fn reason_to_emulate(&self, at: TaskIx, worker: WorkerIx) -> String {
        let task = &self.tasks[at];
        let build = &self.builds[task.build];
        let (Some(share), Some(ties)) = (task.share(), build.ties) else { return "emulated".to_owned() };
        let slowdown = self.slowdown(at, worker);
        let times = format!("{}.{}", slowdown / 1_000, slowdown % 1_000 / 100);
        let policy = build.spec.emulation;
        let members = &self.farm.selectors.get(ties.selector).members;
        match (self.queue.mode(share), self.native_wait(task.platform, members, self.cost_in_queue(at))) {
            (Mode::Auto, None) => format!(
                "emulated, about {times} times slower: no worker that runs {} natively takes tasks now",
                task.record.platform
            ),
            (Mode::Auto, Some(wait)) => format!(
                "emulated, about {times} times slower: predicted to take {}, against a wait of {} for a native worker",
                seconds(self.predicted(at, worker, Grade::Emulated)),
                seconds(wait)
            ),
            (Mode::Open | Mode::Closed, _) => {
                format!("emulated, about {times} times slower: --emulation {policy} allows it")
            }
        }
    }

    /// Sees to it that waiting tasks are compared with emulation again although nothing happens.
    pub(crate) fn arm_review(&mut self) {
        if self.review_at.is_none() {
            let at = self.now + self.config.emulation_review;
            self.review_at = Some(at);
            self.timers.set(at, Timer::EmulationReview);
        }
    }

    /// More could be placed than one turn may do: the rest comes with the next.
    pub(crate) fn review_soon(&mut self) {
        if let Some(at) = self.review_at.replace(self.now) {
            self.timers.unset(at, Timer::EmulationReview);
        }
        self.timers.set(self.now, Timer::EmulationReview);
    }

    pub(crate) fn on_emulation_review(&mut self) {
        self.review_at = None;
        let mut waits = false;
        for at in 0..self.queue.platforms.len() {
            let platform = PlatformIx(u32::try_from(at).unwrap_or(u32::MAX));
            if self.queue.platforms[at].waiting == 0 || self.farm.platforms.len() <= at {
                continue;
            }
            waits = true;
            if self.farm.entry(platform).pools.iter().any(crate::farm::Pool::has_free) {
                self.place_waiting(platform);
            }
        }
        if waits {
            self.arm_review();
        }
    }
}

pub(crate) fn seconds(millis: u64) -> String {
    format_duration(Duration::from_secs(millis.div_ceil(1_000)))
}
