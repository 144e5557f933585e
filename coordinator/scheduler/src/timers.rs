//! What is to happen when nothing else does: one ordered set of moments, each with what falls due.

use std::collections::BTreeSet;

use kiln_common::Timestamp;

use crate::slab::{BuildIx, TaskIx, WorkerIx};

/// What falls due. One that outlives its cause does nothing: whoever it is for looks whether this very moment is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The worker must have been heard of since.
    Lease(WorkerIx),
    /// The lost worker's attempts are given up.
    Grace(WorkerIx),
    /// The quarantined worker may get its canary.
    Canary(WorkerIx),
    /// The worker is told again what to stop.
    StopAgain(WorkerIx),
    /// The task waits again.
    Backoff(TaskIx),
    /// The task has waited long enough for a native worker.
    EmulationWait(TaskIx),
    /// The task has waited for a worker as long as it may.
    QueueTimeout(TaskIx),
    /// The build ran out of time.
    Timeout(BuildIx),
    /// The build waits no longer for its optional legs.
    OptionalPatience(BuildIx),
    /// Waiting tasks are compared with emulation anew.
    EmulationReview,
}

#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeSet<(Timestamp, Timer)>);

impl Timers {
    pub(crate) fn set(&mut self, at: Timestamp, timer: Timer) {
        self.0.insert((at, timer));
    }

    pub(crate) fn unset(&mut self, at: Timestamp, timer: Timer) {
        self.0.remove(&(at, timer));
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes the earliest timer that is due.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Option<(Timestamp, Timer)> {
        let first = *self.0.first()?;
        if first.0 > now {
            return None;
        }
        self.0.pop_first()
    }

    pub(crate) fn contains(&self, at: Timestamp, timer: Timer) -> bool {
        self.0.contains(&(at, timer))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
