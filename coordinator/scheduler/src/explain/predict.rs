//! When a task is expected to start and finish, and whether emulated.

use std::time::Duration;

use kiln_common::{EmulationPolicy, Grade, Timestamp};

use crate::{
    entity::Place,
    farm::{bitset::WorkerSet, grade_index},
    record::TaskState,
    scheduler::Scheduler,
    slab::{PlatformIx, TaskIx, WorkerIx},
};

/// What is expected of a task that is not final.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Prediction {
    pub(super) start: Option<Timestamp>,
    pub(super) finish: Option<Timestamp>,
    pub(super) emulated: bool,
    /// In thousandths of the native time, where it is emulated.
    pub(super) slowdown: u64,
}

impl Scheduler {
    /// Place in the platform's queue, from 1; 0 for a task that is in none. An estimate: fairness decides with each slot.
    pub(super) fn queue_position(&self, at: TaskIx) -> usize {
        let task = &self.tasks[at];
        task.share().map_or(0, |share| self.queue.ahead_of(share, self.order_of(at), task.platform) + 1)
    }

    pub(super) fn predict(&self, at: TaskIx, now: Timestamp) -> Prediction {
        let task = &self.tasks[at];
        match (task.place, &task.record.state) {
            (Place::Behind(leader), _) => self.predict(leader, now),
            (Place::On(worker), _) => self.predict_running(at, worker, now),
            (Place::Queued(_), _) => self.predict_waiting(at, now),
            (Place::Nowhere, TaskState::Backoff { until, .. }) => self.predict_waiting(at, now.max(*until)),
            (Place::Nowhere, _) => Prediction::default(),
        }
    }

    fn predict_running(&self, at: TaskIx, worker: WorkerIx, now: Timestamp) -> Prediction {
        let Some(attempt) = &self.tasks[at].record.attempt else { return Prediction::default() };
        let start = attempt.started_at.unwrap_or(attempt.assigned_at);
        let finish = start + Duration::from_millis(self.predicted(at, worker, attempt.grade));
        Prediction {
            start: Some(start),
            finish: Some(finish.max(now)),
            emulated: attempt.grade.is_emulated(),
            slowdown: self.slowdown(at, worker),
        }
    }

    /// Natively or emulated, as placement would decide if nothing changed.
    fn predict_waiting(&self, at: TaskIx, from: Timestamp) -> Prediction {
        let native = self.predict_native(at, from);
        let emulated = self.predict_emulated(at, from);
        let (Some(native_finish), Some(emulated_finish)) = (native.finish, emulated.finish) else {
            return if native.finish.is_some() { native } else { emulated };
        };
        let takes = |finish: Timestamp| finish.since(from).as_millis();
        let is_emulated = match self.builds[self.tasks[at].build].spec.emulation {
            EmulationPolicy::Never => false,
            EmulationPolicy::Auto => takes(emulated_finish) * 6 / 5 < takes(native_finish),
            EmulationPolicy::Wait(_) | EmulationPolicy::Now => emulated.start < native.start,
        };
        if is_emulated { emulated } else { native }
    }

    fn predict_native(&self, at: TaskIx, from: Timestamp) -> Prediction {
        let task = &self.tasks[at];
        let Some(ties) = self.builds[task.build].ties else { return Prediction::default() };
        let members = &self.farm.selectors.get(ties.selector).members;
        let mean = self.history.mean(task.platform);
        let Some(wait) = self.wait_in_queue(at, &[Grade::Native, Grade::Compat], members, mean) else {
            return Prediction::default();
        };
        let start = from + Duration::from_millis(wait);
        let finish = start + Duration::from_millis(self.history.native(ties.repository, task.platform));
        Prediction { start: Some(start), finish: Some(finish), ..Prediction::default() }
    }

    fn predict_emulated(&self, at: TaskIx, from: Timestamp) -> Prediction {
        let task = &self.tasks[at];
        let build = &self.builds[task.build];
        let allowed = build.spec.emulation != EmulationPolicy::Never;
        let Some(ties) = build.ties.filter(|_| allowed) else { return Prediction::default() };
        let members = &self.farm.selectors.get(ties.selector).members;
        let pool = self.farm.pool(task.platform, Grade::Emulated);
        let first = |set: &WorkerSet| set.first_common(members, 0, |_| true);
        let Some(worker) = first(&pool.idle).or_else(|| first(&pool.healthy)).or_else(|| first(&pool.strained)) else {
            return Prediction::default();
        };
        let slowdown = self.slowdown(at, worker);
        let mean = self.history.mean(task.platform).saturating_mul(slowdown) / 1_000;
        let wait = self.wait_in_queue(at, &[Grade::Emulated], members, mean).unwrap_or(0);
        let start = self.emulation_opens_for(at).unwrap_or(from).max(from) + Duration::from_millis(wait);
        let finish = start + Duration::from_millis(self.predicted(at, worker, Grade::Emulated));
        Prediction { start: Some(start), finish: Some(finish), emulated: true, slowdown }
    }

    /// Milliseconds until what goes before the task has left the slots of these grades; `None` where nobody has any.
    fn wait_in_queue(&self, at: TaskIx, grades: &[Grade], members: &WorkerSet, mean: u64) -> Option<u64> {
        let platform = self.tasks[at].platform;
        let slots = grades.iter().map(|grade| self.able_slots(platform, *grade, members)).sum::<u64>();
        if slots == 0 {
            return None;
        }
        let is_free = grades.iter().any(|grade| {
            let pool = self.farm.pool(platform, *grade);
            pool.idle.meets(members) || pool.partly.meets(members)
        });
        let ahead = self.queue_position(at).saturating_sub(1) as u64;
        if is_free && ahead == 0 {
            return Some(0);
        }
        let live = grades.iter().map(|grade| self.farm.entry(platform).live[grade_index(*grade)]).sum::<u64>();
        // What runs is half done on average.
        Some((ahead.saturating_mul(mean) + live.min(slots).saturating_mul(mean) / 2) / slots)
    }

    /// Slots of the workers that take such tasks and are able to do this one, about.
    pub(crate) fn able_slots(&self, platform: PlatformIx, grade: Grade, members: &WorkerSet) -> u64 {
        let pool = self.farm.pool(platform, grade);
        let able = (pool.healthy.common(members) + pool.strained.common(members)) as u64;
        let all = (pool.healthy.len() + pool.strained.len()) as u64;
        if able == 0 { 0 } else { (pool.slots * able).div_ceil(all) }
    }
}
