//! One worker: its record, its session as far as it matters here, what it holds, and whether it takes more.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
};

use kiln_common::{AttemptId, Grade, Timestamp, WorkerId, limits};

use super::{
    held::Held,
    strain::{Strain, Strained},
};
use crate::{event::WorkerStats, record::WorkerRecord, slab::PlatformIx};

const MIB: u64 = 1024 * 1024;

/// The platforms that a worker runs, and how.
pub(crate) type Table = Arc<[(PlatformIx, Grade)]>;

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) name: Arc<str>,
    /// Whether it takes tasks, as of the last time that something about it changed.
    pub(crate) condition: Condition,
    /// As the indices know it.
    pub(crate) standing: Standing,
    /// Something about it changed, its slots in use apart.
    pub(crate) changed: bool,
    pub(crate) touched: bool,
    pub(crate) dirty: bool,
    /// Attempts that may complete their tasks.
    pub(crate) attempts: Held,
    /// Attempts that it was told to stop and still holds, with the moment when it is told again.
    pub(crate) stopping: BTreeMap<AttemptId, Timestamp>,
    pub(crate) canary: Option<AttemptId>,
    /// Holding more than its slots is no fault up to this: its slots shrank, or it came back with old attempts.
    pub(crate) excess: usize,
    /// Its platforms as the indices know them.
    pub(crate) table: Table,
    pub(crate) link: Link,
    /// It is quarantined, and its time for a canary has come.
    pub(crate) canary_due: bool,
    pub(crate) record: Box<WorkerRecord>,
    pub(crate) health: Box<Health>,
}

/// What was seen of a worker; apart from the rest, for placement looks at it only when it changes.
#[derive(Debug, Default)]
pub(crate) struct Health {
    pub(crate) last_seen: Option<Timestamp>,
    /// It said that it is about to stop, and why.
    pub(crate) leaving: Option<String>,
    pub(crate) stats: WorkerStats,
    pub(crate) strain: Strain,
    /// Its latest infrastructure failures.
    pub(crate) failures: VecDeque<Timestamp>,
    /// How many thousandths of the native time its emulation takes, per platform, measured.
    pub(crate) slowdown: BTreeMap<PlatformIx, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Offline,
    /// Its session ended; its attempts wait for it.
    Grace {
        until: Timestamp,
    },
    Online {
        lease: Timestamp,
        /// When the lease is looked at next; it may have been extended by then.
        check: Timestamp,
    },
}

/// What a worker is good for, whatever it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    /// It takes tasks, now or when a slot is free.
    pub(crate) ready: bool,
    /// It is the last resort, throttled or under pressure: a task goes to it only when no other ready worker can ever take
    /// it.
    pub(crate) strained: bool,
    /// It is quarantined and due for a canary: neither counted on nor passed over.
    pub(crate) canary: bool,
    /// Attempts that it may hold.
    pub(crate) room: u32,
}

impl Condition {
    /// Slots that count towards those of its pools: nobody counts on a canary.
    pub(crate) fn counted(self) -> u64 {
        if self.canary { 0 } else { u64::from(self.room) }
    }
}

/// How the indices know a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) condition: Condition,
    /// It has a free slot.
    pub(crate) free: bool,
    /// It holds nothing.
    pub(crate) idle: bool,
}

impl Worker {
    pub(crate) fn new(record: WorkerRecord) -> Self {
        Self {
            id: record.id,
            name: record.name.clone(),
            condition: Condition::default(),
            standing: Standing::default(),
            changed: false,
            touched: false,
            dirty: false,
            attempts: Held::default(),
            stopping: BTreeMap::new(),
            canary: None,
            excess: 0,
            table: Table::default(),
            link: Link::Offline,
            canary_due: false,
            record: Box::new(record),
            health: Box::default(),
        }
    }

    pub(crate) const fn is_online(&self) -> bool {
        match self.link {
            Link::Online { .. } => true,
            Link::Offline | Link::Grace { .. } => false,
        }
    }

    pub(crate) fn label(&self, key: &str) -> Option<&String> {
        let said = || self.record.facts.as_ref().and_then(|facts| facts.labels.get(key));
        self.record.labels.get(key).or_else(said)
    }

    /// The operator's word over the worker's own.
    pub(crate) fn slots(&self) -> u32 {
        let said = self.record.facts.as_ref().map_or(0, |facts| facts.slots);
        self.record.slots.unwrap_or(said).min(limits::WORKER_SLOTS)
    }

    /// Attempts that occupy a slot.
    pub(crate) fn held(&self) -> usize {
        self.attempts.len() + self.stopping.len()
    }

    pub(crate) fn free_slots(&self) -> usize {
        (self.condition.room as usize).saturating_sub(self.held())
    }

    /// What follows from all that is known of it.
    pub(crate) fn condition_now(&self) -> Condition {
        if self.unready().is_some() {
            return Condition::default();
        }
        let canary = self.record.quarantine.is_some();
        Condition {
            ready: true,
            strained: !canary && self.strained().is_some(),
            canary,
            room: if canary { 1 } else { self.slots() },
        }
    }

    pub(crate) fn standing_now(&self) -> Standing {
        let (condition, held) = (self.condition, self.held());
        Standing { condition, free: held < condition.room as usize, idle: condition.ready && held == 0 }
    }

    /// Why it is the last resort, if it is.
    pub(crate) fn strained(&self) -> Option<Strained> {
        self.health.strain.last_resort(&self.health.stats)
    }

    /// After something that it held is gone, what it may hold beyond its slots shrinks with it.
    pub(crate) fn settle_excess(&mut self) {
        self.excess = self.excess.min(self.held());
    }

    pub(crate) fn grade_of(&self, platform: PlatformIx) -> Option<Grade> {
        self.table.iter().find(|(at, _)| *at == platform).map(|(_, grade)| *grade)
    }

    /// Why it takes no task at all, whatever the task.
    pub(crate) fn unready(&self) -> Option<Unready<'_>> {
        let cordon = self.record.cordon.as_ref();
        let quarantine = self.record.quarantine.as_ref().filter(|_| !self.canary_due);
        match (self.link, &self.health.leaving) {
            (Link::Offline, _) => Some(Unready::Offline),
            (Link::Grace { .. }, _) => Some(Unready::Lost),
            (Link::Online { .. }, Some(reason)) => Some(Unready::Leaving(reason)),
            (Link::Online { .. }, None) => None,
        }
        .or_else(|| cordon.map(|cordon| Unready::Cordoned { reason: &cordon.reason, draining: cordon.draining }))
        .or_else(|| quarantine.map(|quarantine| Unready::Quarantined(&quarantine.reason)))
        .or_else(|| self.short_of_disk())
        .or_else(|| self.short_of_memory())
        .or_else(|| {
            self.health
                .strain
                .memory
                .then(|| Unready::MemoryPressure(self.health.stats.memory_pressure.unwrap_or_default()))
        })
    }

    /// What the worker says is kept free, else a twentieth of the disk, at most 1 GiB: a card that is full breaks more than
    /// the build.
    fn short_of_disk(&self) -> Option<Unready<'_>> {
        let (size, said) =
            self.record.facts.as_ref().map_or((0, 0), |facts| (facts.machine.disk, facts.machine.disk_min));
        let least = match (said, size) {
            (0, 0) => 256 * MIB,
            (0, size) => (size / 20).min(1024 * MIB),
            (said, _) => said,
        };
        let available = self.health.stats.disk_available.filter(|available| *available < least)?;
        Some(Unready::LowDisk { available, least })
    }

    /// A tenth of the memory, at most 96 MiB, is kept free; a worker that already builds is judged by its slots.
    fn short_of_memory(&self) -> Option<Unready<'_>> {
        let size = self.record.facts.as_ref().map_or(0, |facts| facts.machine.memory);
        let least = if size == 0 { 32 * MIB } else { (size / 10).min(96 * MIB) };
        let available = self.health.stats.memory_available.filter(|available| *available < least)?;
        Some(Unready::LowMemory { available, least })
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Unready<'a> {
    Offline,
    Lost,
    Leaving(&'a str),
    Cordoned {
        reason: &'a str,
        draining: bool,
    },
    Quarantined(&'a str),
    LowDisk {
        available: u64,
        least: u64,
    },
    LowMemory {
        available: u64,
        least: u64,
    },
    /// In percent.
    MemoryPressure(f64),
}

impl Unready<'_> {
    /// The same for all workers that are so.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Offline | Self::Lost => "offline",
            Self::Leaving(_) => "about to stop",
            Self::Cordoned { draining: false, .. } => "cordoned",
            Self::Cordoned { draining: true, .. } => "draining",
            Self::Quarantined(_) => "quarantined",
            Self::LowDisk { .. } => "low disk",
            Self::LowMemory { .. } => "low memory",
            Self::MemoryPressure(_) => "memory pressure",
        }
    }
}

impl fmt::Display for Unready<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u64| format!("{} MiB", bytes / MIB);
        match self {
            Self::Offline => f.write_str("offline"),
            Self::Lost => f.write_str("lost a moment ago; its attempts wait for it to return"),
            Self::Leaving(reason) => write!(f, "about to stop: {reason}"),
            Self::Cordoned { reason, draining: false } => write!(f, "cordoned: {reason}"),
            Self::Cordoned { reason, draining: true } => write!(f, "draining: {reason}"),
            Self::Quarantined(reason) => write!(f, "quarantined: {reason}"),
            Self::LowDisk { available, least } => {
                write!(f, "low disk: {} free, {} are kept", size(*available), size(*least))
            }
            Self::LowMemory { available, least } => {
                write!(f, "low memory: {} free, {} are kept", size(*available), size(*least))
            }
            Self::MemoryPressure(percent) => write!(
                f,
                "memory pressure: its tasks wait for memory {percent:.0} % of the time, and less than {:.0} % is asked for",
                Strain::MEMORY_LOW
            ),
        }
    }
}
