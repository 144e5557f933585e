//! What past attempts taught: how long a repository takes on a platform, natively and emulated, and where its cache is.
//!
//! Averages weigh the last run with a quarter. All times are milliseconds.

use std::collections::{BTreeMap, BTreeSet};

use kiln_common::WorkerId;

use crate::slab::{MemoryIx, PlatformIx, Slab, WorkerIx};

/// Without any history a leg is expected to take this long.
const UNKNOWN: u64 = 60_000;
/// Emulation is expected to take this many thousandths of the native time until it is measured.
pub(crate) const SLOWDOWN_UNMEASURED: u64 = 8_000;
/// Repositories and platforms remembered while no build refers to them.
const REMEMBERED: usize = 8_192;

/// One repository on one platform.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    key: (String, u32),
    users: usize,
    last_used: u64,
    native: Option<u64>,
    emulated: Option<u64>,
    /// Who built it last and has its layers.
    pub(crate) worker: Option<(WorkerIx, WorkerId)>,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    entries: Slab<MemoryIx, Memory>,
    by_key: BTreeMap<(String, u32), MemoryIx>,
    unused: BTreeSet<(u64, MemoryIx)>,
    uses: u64,
    /// Mean native time by platform.
    platforms: BTreeMap<PlatformIx, u64>,
}

impl History {
    pub(crate) fn acquire(&mut self, repository: &str, platform: PlatformIx) -> MemoryIx {
        let key = (repository.to_owned(), platform.0);
        let at = self.by_key.get(&key).copied().unwrap_or_else(|| {
            let at = self.entries.insert(Memory { key: key.clone(), ..Memory::default() });
            self.by_key.insert(key, at);
            at
        });
        let memory = &mut self.entries[at];
        if memory.users == 0 {
            self.unused.remove(&(memory.last_used, at));
        }
        memory.users += 1;
        at
    }

    pub(crate) fn release(&mut self, at: MemoryIx) {
        self.uses += 1;
        let memory = &mut self.entries[at];
        memory.users -= 1;
        memory.last_used = self.uses;
        if memory.users == 0 {
            self.unused.insert((self.uses, at));
        }
        if self.unused.len() > REMEMBERED
            && let Some((_, oldest)) = self.unused.pop_first()
            && let Some(memory) = self.entries.remove(oldest)
        {
            self.by_key.remove(&memory.key);
        }
    }

    pub(crate) fn get(&self, at: MemoryIx) -> &Memory {
        &self.entries[at]
    }

    /// An attempt succeeded. Gives the measured slowdown in thousandths where both times are known.
    pub(crate) fn learn(
        &mut self,
        at: MemoryIx,
        platform: PlatformIx,
        worker: (WorkerIx, WorkerId),
        emulated: bool,
        took: u64,
    ) -> Option<u64> {
        let memory = &mut self.entries[at];
        memory.worker = Some(worker);
        if emulated {
            memory.emulated = Some(average(memory.emulated, took));
            memory.native.map(|native| (took.saturating_mul(1_000) / native.max(1)).max(1_000))
        } else {
            memory.native = Some(average(memory.native, took));
            let mean = self.platforms.get(&platform).copied();
            self.platforms.insert(platform, average(mean, took));
            None
        }
    }

    /// How long a leg is expected to take natively.
    pub(crate) fn native(&self, at: MemoryIx, platform: PlatformIx) -> u64 {
        let memory = &self.entries[at];
        let from_emulated = || memory.emulated.map(|took| took.saturating_mul(1_000) / SLOWDOWN_UNMEASURED);
        memory.native.or_else(from_emulated).unwrap_or_else(|| self.mean(platform))
    }

    /// How many thousandths of the native time emulation takes: this repository's own measure, the worker's, or 8.
    pub(crate) fn slowdown(&self, at: MemoryIx, of_worker: Option<u64>) -> u64 {
        let memory = &self.entries[at];
        let own = memory
            .native
            .zip(memory.emulated)
            .map(|(native, emulated)| (emulated.saturating_mul(1_000) / native.max(1)).max(1_000));
        own.or(of_worker).unwrap_or(SLOWDOWN_UNMEASURED)
    }

    pub(crate) fn mean(&self, platform: PlatformIx) -> u64 {
        self.platforms.get(&platform).copied().unwrap_or(UNKNOWN)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

pub(crate) fn average(mean: Option<u64>, value: u64) -> u64 {
    mean.map_or(value, |mean| (mean.saturating_mul(3).saturating_add(value)) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PlatformIx = PlatformIx(0);
    const W: (WorkerIx, WorkerId) = (WorkerIx(0), WorkerId::from_uuid(uuid::Uuid::nil()));

    #[test]
    fn emulation_counts_as_eight_times_slower_until_both_are_measured() {
        let mut history = History::default();
        let at = history.acquire("r/app", P);
        assert_eq!(history.slowdown(at, None), 8_000);
        assert_eq!(history.slowdown(at, Some(12_000)), 12_000);
        history.learn(at, P, W, false, 10_000);
        assert_eq!(history.learn(at, P, W, true, 50_000), Some(5_000));
        assert_eq!(history.slowdown(at, Some(12_000)), 5_000);
        assert_eq!(history.native(at, P), 10_000);
    }

    #[test]
    fn an_unknown_repository_is_expected_to_take_what_the_platform_takes() {
        let mut history = History::default();
        let (known, unknown) = (history.acquire("r/a", P), history.acquire("r/b", P));
        assert_eq!(history.native(unknown, P), UNKNOWN);
        history.learn(known, P, W, false, 5_000);
        assert_eq!(history.native(unknown, P), 5_000);
    }

    #[test]
    fn what_no_build_refers_to_is_remembered_up_to_a_bound() {
        let mut history = History::default();
        for repository in 0..REMEMBERED + 100 {
            let at = history.acquire(&format!("r/{repository}"), P);
            history.release(at);
        }
        assert_eq!(history.len(), REMEMBERED);
    }
}
