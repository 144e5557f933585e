//! The workers and the indices over them: who knows a platform, who takes tasks, who is free right now.
//!
//! [`Farm::refresh`] brings one worker's place in the indices up to date; it costs a few bits per platform of the worker
//! and nothing when nothing changed.

pub(crate) mod bitset;
pub(crate) mod held;
pub(crate) mod selector;
pub(crate) mod strain;
pub(crate) mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kiln_common::{Grade, Platform, WorkerId};

use self::{
    bitset::WorkerSet,
    selector::Selectors,
    worker::{Condition, Standing, Table, Worker},
};
use crate::{
    ids::Ids,
    record::WorkerRecord,
    slab::{PlatformIx, Slab, WorkerIx},
};

pub(crate) const GRADES: [Grade; 3] = [Grade::Native, Grade::Compat, Grade::Emulated];

pub(crate) const fn grade_index(grade: Grade) -> usize {
    match grade {
        Grade::Native => 0,
        Grade::Compat => 1,
        Grade::Emulated => 2,
    }
}

/// The workers of one platform and grade.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    /// Registered, connected or not.
    pub(crate) known: WorkerSet,
    /// Taking tasks, now or when a slot is free.
    pub(crate) healthy: WorkerSet,
    /// Taking tasks as a last resort.
    pub(crate) strained: WorkerSet,
    /// Healthy, holding nothing.
    pub(crate) idle: WorkerSet,
    /// Healthy, holding something, with a slot free.
    pub(crate) partly: WorkerSet,
    /// Last resorts with a slot free.
    pub(crate) strained_free: WorkerSet,
    /// Quarantined and due for their canary.
    pub(crate) canary_free: WorkerSet,
    /// Slots of the healthy and the strained.
    pub(crate) slots: u64,
}

impl Pool {
    pub(crate) const fn has_free(&self) -> bool {
        !self.idle.is_empty()
            || !self.partly.is_empty()
            || !self.strained_free.is_empty()
            || !self.canary_free.is_empty()
    }

    /// The same workers, whatever room the sets have for more.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let sets = |pool: &Self| {
            [
                &pool.known,
                &pool.healthy,
                &pool.strained,
                &pool.idle,
                &pool.partly,
                &pool.strained_free,
                &pool.canary_free,
            ]
            .map(WorkerSet::clone)
        };
        let same = sets(self).iter().zip(&sets(other)).all(|(a, b)| a.len() == b.len() && a.common(b) == a.len());
        same && self.slots == other.slots
    }

    pub(crate) fn place(&mut self, at: WorkerIx, old: Standing, new: Standing) {
        let is_healthy = |condition: Condition| condition.ready && !condition.strained && !condition.canary;
        let condition = new.condition;
        let healthy = is_healthy(condition);
        if old.condition != condition {
            self.healthy.set(at, healthy);
            self.strained.set(at, condition.strained);
            self.slots = self.slots + condition.counted() - old.condition.counted();
        }
        self.idle.set(at, healthy && new.free && new.idle);
        self.partly.set(at, healthy && new.free && !new.idle);
        self.strained_free.set(at, condition.strained && new.free);
        self.canary_free.set(at, condition.canary && new.free);
    }
}

#[derive(Debug)]
pub(crate) struct PlatformEntry {
    pub(crate) platform: Platform,
    /// By grade.
    pub(crate) pools: [Pool; 3],
    /// Where the next search for a free worker starts, by grade, so that load spreads.
    pub(crate) cursors: [u32; 3],
    /// Live attempts by grade.
    pub(crate) live: [u64; 3],
}

impl PlatformEntry {
    pub(crate) fn is_known(&self, grade: Grade) -> bool {
        !self.pools[grade_index(grade)].known.is_empty()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Farm {
    pub(crate) workers: Slab<WorkerIx, Worker>,
    ids: Ids<WorkerId, WorkerIx>,
    pub(crate) platforms: Vec<PlatformEntry>,
    platform_ids: BTreeMap<Platform, PlatformIx>,
    /// Workers of one kind share their table.
    tables: BTreeSet<Table>,
    pub(crate) selectors: Selectors,
}

impl Farm {
    pub(crate) fn find(&self, id: WorkerId) -> Option<WorkerIx> {
        self.ids.get(id)
    }

    /// All workers, by id.
    pub(crate) fn by_id(&self) -> Vec<WorkerIx> {
        let mut all: Vec<_> = self.workers.iter().map(|(at, worker)| (worker.id, at)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, at)| at).collect()
    }

    /// A worker is new, or its record is replaced.
    pub(crate) fn enroll(&mut self, record: WorkerRecord) -> WorkerIx {
        let id = record.id;
        let at = match self.ids.get(id) {
            Some(at) => {
                let worker = &mut self.workers[at];
                worker.name = record.name.clone();
                *worker.record = record;
                at
            }
            None => {
                let at = self.workers.insert(Worker::new(record));
                self.ids.insert(id, at);
                at
            }
        };
        self.redescribe(at);
        at
    }

    pub(crate) fn remove(&mut self, at: WorkerIx) -> Option<Worker> {
        self.selectors.update(at, None);
        let worker = &mut self.workers[at];
        let (table, old) = (std::mem::take(&mut worker.table), std::mem::take(&mut worker.standing));
        self.unlist(at, &table, old);
        let worker = self.workers.remove(at)?;
        self.ids.remove(worker.id);
        Some(worker)
    }

    /// What the worker says of itself, its labels or its slots changed.
    pub(crate) fn redescribe(&mut self, at: WorkerIx) {
        self.selectors.update(at, Some(&self.workers[at]));
        let facts = self.workers[at].record.facts.as_ref();
        let platforms = facts.map(|facts| facts.platforms.clone()).unwrap_or_default();
        let table = platforms.into_iter().map(|(platform, grade)| (self.intern(&platform), grade)).collect();
        let table = self.shared(table);
        let worker = &mut self.workers[at];
        if worker.table != table {
            let old_table = std::mem::replace(&mut worker.table, Arc::clone(&table));
            let old = std::mem::take(&mut worker.standing);
            self.unlist(at, &old_table, old);
            for (platform, grade) in &*table {
                self.platforms[platform.0 as usize].pools[grade_index(*grade)].known.set(at, true);
            }
        }
        self.refresh(at);
    }

    fn shared(&mut self, table: Table) -> Table {
        if let Some(known) = self.tables.get(&table) {
            return Arc::clone(known);
        }
        self.tables.retain(|known| Arc::strong_count(known) > 1);
        self.tables.insert(Arc::clone(&table));
        table
    }

    /// Brings the worker's place in the indices up to date.
    pub(crate) fn refresh(&mut self, at: WorkerIx) {
        let worker = &mut self.workers[at];
        let (old, new) = (worker.standing, worker.standing_now());
        if old == new {
            return;
        }
        worker.standing = new;
        for (platform, grade) in &*worker.table {
            self.platforms[platform.0 as usize].pools[grade_index(*grade)].place(at, old, new);
        }
    }

    fn unlist(&mut self, at: WorkerIx, table: &[(PlatformIx, Grade)], old: Standing) {
        for (platform, grade) in table {
            let pool = &mut self.platforms[platform.0 as usize].pools[grade_index(*grade)];
            pool.known.set(at, false);
            pool.place(at, old, Standing::default());
        }
    }

    pub(crate) fn platform(&self, platform: &Platform) -> Option<PlatformIx> {
        self.platform_ids.get(platform).copied()
    }

    /// Platforms stay once known: only workers and restored tasks bring new ones.
    pub(crate) fn intern(&mut self, platform: &Platform) -> PlatformIx {
        if let Some(&at) = self.platform_ids.get(platform) {
            return at;
        }
        let at = PlatformIx(u32::try_from(self.platforms.len()).unwrap_or(u32::MAX));
        self.platforms.push(PlatformEntry {
            platform: platform.clone(),
            pools: Default::default(),
            cursors: [0; 3],
            live: [0; 3],
        });
        self.platform_ids.insert(platform.clone(), at);
        at
    }

    pub(crate) fn entry(&self, platform: PlatformIx) -> &PlatformEntry {
        &self.platforms[platform.0 as usize]
    }

    pub(crate) fn pool(&self, platform: PlatformIx, grade: Grade) -> &Pool {
        &self.platforms[platform.0 as usize].pools[grade_index(grade)]
    }

    /// Every platform that a registered worker runs in one of the grades, in order.
    pub(crate) fn available(&self, grades: &[Grade]) -> Vec<Platform> {
        let known = |at: &PlatformIx| grades.iter().any(|grade| self.entry(*at).is_known(*grade));
        self.platform_ids.iter().filter(|(_, at)| known(at)).map(|(platform, _)| platform.clone()).collect()
    }
}
