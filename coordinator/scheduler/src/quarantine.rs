//! Quarantine: a worker that fails the farm again and again gets nothing but a canary, one real task now and then, until one
//! goes well.

use std::time::Duration;

use kiln_common::{Timestamp, emulation::format_duration};

use crate::{record::Quarantine, scheduler::Scheduler, slab::WorkerIx, timers::Timer};

impl Scheduler {
    /// An attempt failed for infrastructure reasons, or the worker was lost with some.
    pub(crate) fn worker_failed(&mut self, at: WorkerIx, was_canary: bool, message: &str) {
        let now = self.now;
        let window = self.config.quarantine_window;
        let entry = &mut self.farm.workers[at];
        entry.health.failures.push_back(now);
        while entry.health.failures.front().is_some_and(|first| *first + window < now)
            || entry.health.failures.len() > self.config.quarantine_failures
        {
            entry.health.failures.pop_front();
        }
        let failures = entry.health.failures.len();
        match &entry.record.quarantine {
            Some(quarantine) if was_canary => {
                let failed = quarantine.failed_canaries + 1;
                self.quarantine(at, failed, format!("its canary task failed: {message}"));
            }
            Some(_) => {}
            None if failures >= self.config.quarantine_failures => {
                let within = format_duration(window);
                self.quarantine(
                    at,
                    0,
                    format!("{failures} infrastructure failures within {within}, the last: {message}"),
                );
            }
            None => {}
        }
    }

    fn quarantine(&mut self, at: WorkerIx, failed_canaries: u32, reason: String) {
        let wait =
            self.config.canary_wait.saturating_mul(1 << failed_canaries.min(16)).min(self.config.canary_wait_most);
        let (now, canary_at) = (self.now, self.now + wait.max(Duration::from_millis(1)));
        let entry = &mut self.farm.workers[at];
        let since = entry.record.quarantine.as_ref().map_or(now, |known| known.since);
        entry.record.quarantine = Some(Quarantine { reason, since, canary_at, failed_canaries });
        entry.canary_due = false;
        entry.health.failures.clear();
        self.timers.set(canary_at, Timer::Canary(at));
        self.changed_worker(at);
        self.touch(at);
    }

    pub(crate) fn on_canary_time(&mut self, at: WorkerIx, due: Timestamp) {
        let Some(entry) = self.farm.workers.get_mut(at) else { return };
        if entry.record.quarantine.as_ref().is_some_and(|quarantine| quarantine.canary_at == due) {
            entry.canary_due = true;
            self.touch(at);
        }
    }

    /// An attempt ended without the farm's fault.
    pub(crate) fn farm_did_well(&mut self, at: WorkerIx, was_canary: bool) {
        if was_canary {
            self.end_quarantine(at);
        }
    }

    pub(crate) fn end_quarantine(&mut self, at: WorkerIx) {
        let entry = &mut self.farm.workers[at];
        if entry.record.quarantine.take().is_some() {
            entry.canary_due = false;
            entry.canary = None;
            entry.health.failures.clear();
            self.changed_worker(at);
            self.touch(at);
            // What was a canary is an attempt like others now.
            for (_, task) in self.farm.workers[at].attempts.iter().collect::<Vec<_>>() {
                self.gather(task);
            }
        }
    }
}
