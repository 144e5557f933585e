//! A worker as the coordinator sees it from outside: a session, attempts, and what may happen to both.

use std::collections::BTreeMap;

use kiln_common::{AttemptId, BuildId, Timestamp};
use kiln_scheduler::{
    WorkerRecord,
    event::{AttemptOutcome, WorkerStats},
    record::WorkerFacts,
};

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
    /// The session that it believes it has.
    pub session: Option<u64>,
    pub jobs: BTreeMap<AttemptId, Job>,
    /// When its last message arrives: a session keeps its order.
    pub last_arrival: Timestamp,
}

#[derive(Debug)]
pub struct Job {
    pub build: BuildId,
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
            session: None,
            jobs: BTreeMap::new(),
            last_arrival: Timestamp::default(),
        }
    }

    pub fn stats(&self, now: Timestamp) -> WorkerStats {
        let disk = if now < self.full_until { 0 } else { 1 << 40 };
        WorkerStats { disk_available: Some(disk), throttled: self.throttled, ..WorkerStats::default() }
    }

    /// It can do nothing at this moment.
    pub fn is_still(&self, now: Timestamp) -> bool {
        !self.alive || now < self.hung_until
    }
}
