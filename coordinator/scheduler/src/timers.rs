//! What is to happen when nothing else does: one ordered set of moments, each with what falls due.

use std::collections::BTreeSet;

use kiln_common::{BuildId, TaskId, Timestamp, WorkerId};

/// What falls due. Names entities by id: a timer that outlives its entity does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The worker must have been heard of since.
    Lease(WorkerId),
    /// The lost worker's attempts are given up.
    Grace(WorkerId),
    /// The quarantined worker may get its canary.
    Canary(WorkerId),
    /// The worker is told again what to stop.
    StopAgain(WorkerId),
    /// The task waits again.
    Backoff(TaskId),
    /// The task has waited long enough for a native worker.
    EmulationWait(TaskId),
    /// The build ran out of time.
    Timeout(BuildId),
    /// The build waits no longer for its optional legs.
    OptionalPatience(BuildId),
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
