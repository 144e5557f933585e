//! A worker as the coordinator sees it from outside: a session, attempts, and what may happen to both.

use std::collections::BTreeMap;

use kiln_common::{AttemptId, Timestamp};
use kiln_scheduler::{
    WorkerRecord,
    event::{AttemptOutcome, WorkerStats},
    record::WorkerFacts,
};

use crate::oracle::Made;

#[derive(Debug)]
pub struct ModelWorker {
    pub record: WorkerRecord,
    pub facts: WorkerFacts,
    /// Its process runs.
    pub alive: bool,
    /// Its process stands still until then.
    pub hung_until: Timestamp,
    /// Nothing gets through until then.
    pub cut_until: Timestamp,
    /// The disk is full until then.
    pub full_until: Timestamp,
    pub throttled: bool,
    /// Percent of the time that its tasks wait for memory and for the CPU.
    pub memory_pressure: f64,
    pub cpu_pressure: f64,
    /// The session that it believes it has.
    pub session: Option<u64>,
    /// When that began.
    pub session_since: Timestamp,
    pub jobs: BTreeMap<AttemptId, Job>,
    /// When its last message arrives: a session keeps its order.
    pub last_arrival: Timestamp,
}

#[derive(Debug)]
pub struct Job {
    pub made: Made,
    pub told_to_stop: bool,
    /// Set once it has ended, until the report is acknowledged.
    pub outcome: Option<AttemptOutcome>,
}

impl ModelWorker {
    pub fn new(record: WorkerRecord, facts: WorkerFacts) -> Self {
        Self {
            record,
            facts,
            alive: true,
            hung_until: Timestamp::default(),
            cut_until: Timestamp::default(),
            full_until: Timestamp::default(),
            throttled: false,
            memory_pressure: 0.0,
            cpu_pressure: 0.0,
            session: None,
            session_since: Timestamp::default(),
            jobs: BTreeMap::new(),
            last_arrival: Timestamp::default(),
        }
    }

    pub fn stats(&self, now: Timestamp) -> WorkerStats {
        let disk = if now < self.full_until { 0 } else { 1 << 40 };
        WorkerStats {
            disk_available: Some(disk),
            throttled: self.throttled,
            memory_pressure: Some(self.memory_pressure),
            cpu_pressure: Some(self.cpu_pressure),
            ..WorkerStats::default()
        }
    }

    /// It can do nothing at this moment.
    pub fn is_still(&self, now: Timestamp) -> bool {
        !self.alive || now < self.hung_until
    }
}
