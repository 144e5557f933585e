//! The attempts that this worker has, and the bound on how many: the one place that says what the coordinator must hear.
//!
//! The session reads it level-triggered (what is there, not what happened), so a report is never lost between two
//! connections. Invariant: an attempt stays here from its admission until its final report is acknowledged or the
//! coordinator says that it is no longer this worker's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use kiln_common::{AttemptId, limits};
use kiln_proto::v1::attempt_report::Outcome;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The table of attempts.
#[derive(Debug)]
pub struct Slots {
    table: Mutex<Table>,
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct Table {
    /// From the worker's own configuration.
    configured: u32,
    /// Set by an operator of the farm over it.
    set: Option<u32>,
    leaving: bool,
    attempts: BTreeMap<AttemptId, Entry>,
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    stop: CancellationToken,
    /// Why it is to stop, once it is.
    cause: Option<StopCause>,
}

#[derive(Debug)]
enum Phase {
    Preparing,
    Started,
    /// The engine is done; the rest of the log is on its way.
    Delivering,
    Finished(Outcome),
}

/// Why an attempt is stopped before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// The coordinator said so, for this reason.
    Told(String),
    /// The coordinator gave it to another worker: nobody is to hear of it any more.
    Orphaned,
    /// The worker's program ends.
    Exit,
}

/// Why an assignment is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    #[error("all {slots} slots of this worker are taken; the farm counts them differently")]
    Full { slots: u32 },
    #[error("this worker is about to stop and takes nothing new")]
    Leaving,
    #[error("this worker has the attempt already")]
    Known,
}

impl Slots {
    #[must_use]
    pub fn new(slots: u32) -> Self {
        let configured = slots.clamp(1, limits::WORKER_SLOTS);
        let table = Table { configured, set: None, leaving: false, attempts: BTreeMap::new() };
        Self { table: Mutex::new(table), version: watch::Sender::new(0) }
    }

    /// How many attempts run at once.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.table().capacity()
    }

    /// Takes an operator's bound, or with `None` the configured one again. Attempts beyond it go on to their end.
    pub fn resize(&self, slots: Option<u32>) {
        let mut table = self.table();
        table.set = slots.map(|slots| slots.clamp(1, limits::WORKER_SLOTS));
        self.changed(table);
    }

    /// Takes an attempt; the token ends when it is to stop.
    ///
    /// An attempt that is being stopped no longer counts: the coordinator may fill its slot before the engine has let go.
    ///
    /// # Errors
    /// [`NotAdmitted`] when every slot is taken, the worker is leaving or it has the attempt.
    pub fn admit(&self, attempt: AttemptId) -> Result<CancellationToken, NotAdmitted> {
        let mut table = self.table();
        if table.attempts.contains_key(&attempt) {
            return Err(NotAdmitted::Known);
        }
        if table.leaving {
            return Err(NotAdmitted::Leaving);
        }
        let slots = table.capacity();
        if table.attempts.values().filter(|entry| entry.holds_slot()).count() >= slots as usize {
            return Err(NotAdmitted::Full { slots });
        }
        let stop = CancellationToken::new();
        table.attempts.insert(attempt, Entry::new(Phase::Preparing, stop.clone()));
        Ok(stop)
    }

    /// Remembers the refusal of an attempt that was never admitted, to be reported like any other end.
    /// At most [`limits::WORKER_SLOTS`] ends wait for their acknowledgement; a flood beyond is not answered.
    pub fn refuse(&self, attempt: AttemptId, outcome: Outcome) -> bool {
        let mut table = self.table();
        let waiting = table.attempts.values().filter(|entry| entry.is_finished()).count();
        if waiting >= limits::WORKER_SLOTS as usize || table.attempts.contains_key(&attempt) {
            return false;
        }
        table.attempts.insert(attempt, Entry::new(Phase::Finished(outcome), CancellationToken::new()));
        self.changed(table);
        true
    }

    /// The engine has begun.
    pub fn started(&self, attempt: AttemptId) {
        let mut table = self.table();
        if let Some(entry) = table.attempts.get_mut(&attempt) {
            entry.phase = Phase::Started;
        }
        self.changed(table);
    }

    /// The engine is done with the attempt: its report waits for its log only.
    pub fn delivering(&self, attempt: AttemptId) {
        let mut table = self.table();
        if let Some(entry) = table.attempts.get_mut(&attempt) {
            entry.phase = Phase::Delivering;
        }
        self.changed(table);
    }

    /// The attempt ended: its slot is free, its report waits for the acknowledgement. An orphan is forgotten.
    pub fn finish(&self, attempt: AttemptId, outcome: Outcome) {
        let mut table = self.table();
        if let Some(entry) = table.attempts.get_mut(&attempt) {
            if entry.is_orphaned() {
                table.attempts.remove(&attempt);
            } else {
                entry.phase = Phase::Finished(outcome);
            }
        }
        self.changed(table);
    }

    /// Its final report is durable.
    pub fn acknowledge(&self, attempt: AttemptId) {
        let mut table = self.table();
        if table.attempts.get(&attempt).is_some_and(Entry::is_finished) {
            table.attempts.remove(&attempt);
        }
        self.changed(table);
    }

    /// Stops an attempt; its end is still reported. False: it is not here.
    pub fn stop(&self, attempt: AttemptId, reason: &str) -> bool {
        let mut table = self.table();
        let found =
            table.attempts.get_mut(&attempt).map(|entry| entry.stop_for(StopCause::Told(reason.to_owned()))).is_some();
        self.changed(table);
        found
    }

    /// Stops every attempt, because the program ends.
    pub fn stop_all(&self) {
        let mut table = self.table();
        table.attempts.values_mut().for_each(|entry| entry.stop_for(StopCause::Exit));
        self.changed(table);
    }

    /// Why the attempt was told to stop.
    #[must_use]
    pub fn stop_cause(&self, attempt: AttemptId) -> Option<StopCause> {
        self.table().attempts.get(&attempt).and_then(|entry| entry.cause.clone())
    }

    /// Takes the coordinator's answer to what was announced: what it did not adopt stops and is not reported.
    pub fn keep_adopted(&self, announced: &BTreeSet<AttemptId>, adopted: &BTreeSet<AttemptId>) -> Vec<AttemptId> {
        let mut table = self.table();
        let dropped: Vec<_> = announced.difference(adopted).copied().collect();
        for attempt in &dropped {
            let Some(entry) = table.attempts.get_mut(attempt) else { continue };
            entry.cause = Some(StopCause::Orphaned);
            entry.stop.cancel();
            if entry.is_finished() {
                table.attempts.remove(attempt);
            }
        }
        self.changed(table);
        dropped
    }

    /// Attempts to announce: running, or ended without an acknowledged report.
    #[must_use]
    pub fn announce(&self) -> BTreeSet<AttemptId> {
        self.table().attempts.iter().filter(|(_, entry)| !entry.is_orphaned()).map(|(attempt, _)| *attempt).collect()
    }

    /// What the coordinator must have heard of each attempt by now.
    #[must_use]
    pub fn reports(&self) -> BTreeMap<AttemptId, Outcome> {
        let table = self.table();
        let spoken = table.attempts.iter().filter(|(_, entry)| !entry.is_orphaned());
        spoken.filter_map(|(attempt, entry)| Some((*attempt, entry.phase.outcome()?))).collect()
    }

    /// Takes nothing new from now on.
    pub fn leave(&self) {
        let mut table = self.table();
        table.leaving = true;
        self.changed(table);
    }

    /// Ends when the engine has no attempt any more.
    pub async fn idle(&self) {
        self.until(|table| !table.attempts.values().any(Entry::is_in_engine)).await;
    }

    /// Ends when nothing runs and every report is acknowledged.
    pub async fn settled(&self) {
        self.until(|table| table.attempts.is_empty()).await;
    }

    /// Ends when the attempt is forgotten: acknowledged, or not this worker's any more.
    pub async fn forgotten(&self, attempt: AttemptId) {
        self.until(|table| !table.attempts.contains_key(&attempt)).await;
    }

    /// Counts up with every change; the session reads [`Self::reports`] again when it does.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    async fn until(&self, condition: impl Fn(&Table) -> bool) {
        let mut version = self.version.subscribe();
        while !condition(&self.table()) {
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    fn changed(&self, table: MutexGuard<'_, Table>) {
        drop(table);
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// No code panics while it holds the lock, so a poisoned table is still whole.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn capacity(&self) -> u32 {
        self.set.unwrap_or(self.configured)
    }
}

impl Entry {
    const fn new(phase: Phase, stop: CancellationToken) -> Self {
        Self { phase, stop, cause: None }
    }

    const fn is_finished(&self) -> bool {
        match self.phase {
            Phase::Preparing | Phase::Started | Phase::Delivering => false,
            Phase::Finished(_) => true,
        }
    }

    const fn is_in_engine(&self) -> bool {
        match self.phase {
            Phase::Preparing | Phase::Started => true,
            Phase::Delivering | Phase::Finished(_) => false,
        }
    }

    fn holds_slot(&self) -> bool {
        !self.is_finished() && !self.stop.is_cancelled()
    }

    fn is_orphaned(&self) -> bool {
        self.cause == Some(StopCause::Orphaned)
    }

    fn stop_for(&mut self, cause: StopCause) {
        self.cause.get_or_insert(cause);
        self.stop.cancel();
    }
}

impl Phase {
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Preparing => None,
            Self::Started | Self::Delivering => Some(Outcome::Started(kiln_proto::v1::AttemptStarted {})),
            Self::Finished(outcome) => Some(outcome.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::v1::AttemptCancelled;

    use super::*;

    const ENDED: Outcome = Outcome::Cancelled(AttemptCancelled {});

    #[test]
    fn more_than_the_slots_are_refused_and_a_stopping_attempt_frees_its_slot() {
        let slots = Slots::new(1);
        let first = AttemptId::generate();
        slots.admit(first).expect("a free slot");
        assert_eq!(slots.admit(first).err(), Some(NotAdmitted::Known));
        assert_eq!(slots.admit(AttemptId::generate()).err(), Some(NotAdmitted::Full { slots: 1 }));
        assert!(slots.stop(first, "told so"));
        assert_eq!(slots.stop_cause(first), Some(StopCause::Told("told so".into())));
        assert!(slots.admit(AttemptId::generate()).is_ok());
    }

    #[test]
    fn an_operator_s_slots_go_over_the_configured_ones() {
        let slots = Slots::new(1);
        slots.admit(AttemptId::generate()).expect("a free slot");
        slots.resize(Some(2));
        slots.admit(AttemptId::generate()).expect("a second slot");
        slots.resize(None);
        assert_eq!(slots.admit(AttemptId::generate()).err(), Some(NotAdmitted::Full { slots: 1 }));
    }

    #[test]
    fn a_final_report_stays_until_it_is_acknowledged() {
        let slots = Slots::new(1);
        let attempt = AttemptId::generate();
        slots.admit(attempt).expect("a free slot");
        assert!(slots.reports().is_empty());
        slots.acknowledge(attempt);
        slots.finish(attempt, ENDED);
        assert_eq!(slots.reports().get(&attempt), Some(&ENDED));
        assert_eq!(slots.announce(), BTreeSet::from([attempt]));
        slots.acknowledge(attempt);
        assert!(slots.announce().is_empty());
    }

    #[test]
    fn an_attempt_that_was_not_adopted_stops_and_is_never_reported() {
        let slots = Slots::new(2);
        let (kept, lost) = (AttemptId::generate(), AttemptId::generate());
        let kept_token = slots.admit(kept).expect("a free slot");
        let lost_token = slots.admit(lost).expect("a free slot");
        slots.started(lost);
        let dropped = slots.keep_adopted(&slots.announce(), &BTreeSet::from([kept]));
        assert_eq!(dropped, [lost]);
        assert!(lost_token.is_cancelled() && !kept_token.is_cancelled());
        assert!(!slots.reports().contains_key(&lost));
        slots.finish(lost, ENDED);
        assert_eq!(slots.announce(), BTreeSet::from([kept]));
    }

    #[test]
    fn an_assignment_that_came_after_the_announcement_is_kept() {
        let slots = Slots::new(1);
        let announced = slots.announce();
        let token = slots.admit(AttemptId::generate()).expect("a free slot");
        slots.keep_adopted(&announced, &BTreeSet::new());
        assert!(!token.is_cancelled());
    }

    #[test]
    fn a_leaving_worker_takes_nothing_new() {
        let slots = Slots::new(1);
        slots.leave();
        assert_eq!(slots.admit(AttemptId::generate()).err(), Some(NotAdmitted::Leaving));
    }

    #[test]
    fn a_flood_of_refusals_is_bounded() {
        let slots = Slots::new(1);
        let taken = (0..10_000).filter(|_| slots.refuse(AttemptId::generate(), ENDED)).count();
        assert_eq!(taken, limits::WORKER_SLOTS as usize);
    }
}
