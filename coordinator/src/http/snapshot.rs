//! The farm at one moment, in numbers alone: for the page and for the gauges.

use std::collections::BTreeMap;

use kiln_common::{Grade, Platform};
use kiln_scheduler::{BuildState, query::WorkerState};
use metrics::gauge;

use super::metrics as names;
use crate::driver::{Handle, Stopped};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub platforms: Vec<PlatformRow>,
    /// By state, every state there.
    pub workers: BTreeMap<&'static str, usize>,
    pub slots: u32,
    pub slots_used: usize,
    pub queued: usize,
    pub running: usize,
    pub publishing: usize,
    pub tasks_waiting: usize,
}

/// One platform and how many connected workers run it, by grade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlatformRow {
    pub platform: Platform,
    pub native: usize,
    pub compat: usize,
    pub emulated: usize,
}

impl Snapshot {
    /// # Errors
    /// When the driver has stopped.
    pub async fn take(driver: &Handle) -> Result<Self, Stopped> {
        driver.query(|scheduler, _| Self::of(scheduler)).await
    }

    fn of(scheduler: &kiln_scheduler::Scheduler) -> Self {
        let states = [
            WorkerState::Ready,
            WorkerState::Cordoned,
            WorkerState::Draining,
            WorkerState::Quarantined,
            WorkerState::Offline,
        ];
        let workers = states.map(|state| (state_name(state), 0)).into();
        let mut snapshot = Self { workers, tasks_waiting: scheduler.waiting_tasks(), ..Self::default() };
        let mut platforms: BTreeMap<Platform, PlatformRow> = BTreeMap::new();
        for worker in scheduler.workers() {
            *snapshot.workers.entry(state_name(worker.state)).or_default() += 1;
            if worker.state == WorkerState::Offline {
                continue;
            }
            snapshot.slots += worker.slots;
            snapshot.slots_used += worker.slots_used;
            for (platform, grade) in worker.record.facts.iter().flat_map(|facts| &facts.platforms) {
                let none = || PlatformRow { platform: platform.clone(), native: 0, compat: 0, emulated: 0 };
                let row = platforms.entry(platform.clone()).or_insert_with(none);
                match grade {
                    Grade::Native => row.native += 1,
                    Grade::Compat => row.compat += 1,
                    Grade::Emulated => row.emulated += 1,
                }
            }
        }
        for build in scheduler.builds() {
            match build.state {
                BuildState::Queued => snapshot.queued += 1,
                BuildState::Running => snapshot.running += 1,
                BuildState::Publishing { .. } => snapshot.publishing += 1,
                BuildState::Succeeded
                | BuildState::Incomplete
                | BuildState::Failed { .. }
                | BuildState::Cancelled { .. } => {}
            }
        }
        snapshot.platforms = platforms.into_values().collect();
        snapshot
    }

    /// Workers that are connected.
    pub fn online(&self) -> usize {
        self.workers.iter().filter(|(state, _)| **state != state_name(WorkerState::Offline)).map(|(_, n)| n).sum()
    }

    /// Sets the gauges.
    #[allow(clippy::cast_precision_loss)] // Gauges are floats; the counts are far below 2^52.
    pub fn record(&self) {
        for (state, count) in [("queued", self.queued), ("running", self.running), ("publishing", self.publishing)] {
            gauge!(names::BUILDS, "state" => state).set(count as f64);
        }
        for (state, count) in &self.workers {
            gauge!(names::WORKERS, "state" => *state).set(*count as f64);
        }
        gauge!(names::TASKS_WAITING).set(self.tasks_waiting as f64);
        gauge!(names::SLOTS).set(f64::from(self.slots));
        gauge!(names::SLOTS_USED).set(self.slots_used as f64);
        if let Some(bytes) = resident_bytes() {
            gauge!(names::PROCESS_RESIDENT).set(bytes as f64);
        }
    }
}

const fn state_name(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Ready => "ready",
        WorkerState::Cordoned => "cordoned",
        WorkerState::Draining => "draining",
        WorkerState::Offline => "offline",
        WorkerState::Quarantined => "quarantined",
    }
}

/// proc(5), `/proc/self/status`: `VmRSS` in kibibytes.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_farm_counts_nothing_and_names_every_state() {
        let snapshot = Snapshot::of(&kiln_scheduler::Scheduler::new(kiln_scheduler::Config::default(), 1));
        assert_eq!((snapshot.online(), snapshot.slots, snapshot.workers.len()), (0, 0, 5));
    }

    #[test]
    fn the_process_knows_its_memory() {
        assert!(resident_bytes().expect("linux") > 1024 * 1024);
    }
}
