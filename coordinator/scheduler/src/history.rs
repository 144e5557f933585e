//! What past attempts taught: how long a repository takes on a platform, natively and emulated, and where its cache is.
//!
//! Averages weigh the last run with a quarter. All times are milliseconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kiln_common::WorkerId;

use crate::slab::{PlatformIx, RepositoryIx, Slab, WorkerIx};

/// Without any history a leg is expected to take this long.
const UNKNOWN: u64 = 60_000;
/// Emulation is expected to take this many thousandths of the native time until it is measured.
pub(crate) const SLOWDOWN_UNMEASURED: u64 = 8_000;
/// Repositories remembered while no build refers to them.
const REMEMBERED: usize = 4_096;
/// Workers whose emulation of one repository is remembered, the latest.
const EMULATORS: usize = 4;

#[derive(Debug, Default)]
struct Repository {
    name: Arc<str>,
    builds: usize,
    last_used: u64,
    memories: Vec<(PlatformIx, Memory)>,
}

/// One repository on one platform.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    native: Option<u64>,
    /// By worker, the latest last.
    emulated: Vec<(WorkerId, u64)>,
    /// Who built it last and has its layers.
    pub(crate) worker: Option<(WorkerIx, WorkerId)>,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    entries: Slab<RepositoryIx, Repository>,
    by_name: BTreeMap<Arc<str>, RepositoryIx>,
    unused: BTreeSet<(u64, RepositoryIx)>,
    uses: u64,
    /// Mean native time by platform.
    platforms: BTreeMap<PlatformIx, u64>,
}

impl History {
    pub(crate) fn acquire(&mut self, name: &str) -> RepositoryIx {
        let at = self.by_name.get(name).copied().unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            let at = self.entries.insert(Repository { name: Arc::clone(&name), ..Repository::default() });
            self.by_name.insert(name, at);
            at
        });
        let repository = &mut self.entries[at];
        if repository.builds == 0 {
            self.unused.remove(&(repository.last_used, at));
        }
        repository.builds += 1;
        at
    }

    pub(crate) fn release(&mut self, at: RepositoryIx) {
        self.uses += 1;
        let repository = &mut self.entries[at];
        repository.builds -= 1;
        repository.last_used = self.uses;
        if repository.builds == 0 {
            self.unused.insert((self.uses, at));
        }
        if self.unused.len() > REMEMBERED
            && let Some((_, oldest)) = self.unused.pop_first()
            && let Some(repository) = self.entries.remove(oldest)
        {
            self.by_name.remove(&repository.name);
        }
    }

    pub(crate) fn get(&self, at: RepositoryIx, platform: PlatformIx) -> Option<&Memory> {
        self.entries[at].memories.iter().find(|(of, _)| *of == platform).map(|(_, memory)| memory)
    }

    /// An attempt succeeded. Gives the measured slowdown in thousandths where both times are known.
    pub(crate) fn learn(
        &mut self,
        at: RepositoryIx,
        platform: PlatformIx,
        worker: (WorkerIx, WorkerId),
        emulated: bool,
        took: u64,
    ) -> Option<u64> {
        let memories = &mut self.entries[at].memories;
        let known = memories.iter().position(|(of, _)| *of == platform);
        let known = known.unwrap_or_else(|| {
            memories.push((platform, Memory::default()));
            memories.len() - 1
        });
        let memory = &mut memories[known].1;
        memory.worker = Some(worker);
        if emulated {
            memory.learn_emulated(worker.1, took);
            return memory.native.map(|native| ratio(took, native));
        }
        memory.native = Some(average(memory.native, took));
        let mean = self.platforms.get(&platform).copied();
        self.platforms.insert(platform, average(mean, took));
        None
    }

    /// How long a leg is expected to take natively.
    pub(crate) fn native(&self, at: RepositoryIx, platform: PlatformIx) -> u64 {
        self.get(at, platform).and_then(Memory::native).unwrap_or_else(|| self.mean(platform))
    }

    /// How many thousandths of the native time emulation takes: what was measured of this repository on the worker, of the
    /// repository elsewhere, of the worker with others, or 8,000.
    pub(crate) fn slowdown(
        &self,
        at: RepositoryIx,
        platform: PlatformIx,
        worker: WorkerId,
        of_worker: Option<u64>,
    ) -> u64 {
        let own = self.get(at, platform).and_then(|memory| memory.slowdown(worker));
        own.or(of_worker).unwrap_or(SLOWDOWN_UNMEASURED)
    }

    pub(crate) fn mean(&self, platform: PlatformIx) -> u64 {
        self.platforms.get(&platform).copied().unwrap_or(UNKNOWN)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Memory {
    fn learn_emulated(&mut self, worker: WorkerId, took: u64) {
        let known = self.emulated.iter().position(|(of, _)| *of == worker).map(|at| self.emulated.remove(at).1);
        self.emulated.push((worker, average(known, took)));
        if self.emulated.len() > EMULATORS {
            self.emulated.remove(0);
        }
    }

    /// On the worker where it was measured there, otherwise where it was measured last.
    fn emulated(&self, worker: WorkerId) -> Option<u64> {
        let own = self.emulated.iter().find(|(of, _)| *of == worker);
        own.or(self.emulated.last()).map(|(_, took)| *took)
    }

    fn native(&self) -> Option<u64> {
        let from_emulated = || self.emulated.last().map(|(_, took)| took.saturating_mul(1_000) / SLOWDOWN_UNMEASURED);
        self.native.or_else(from_emulated)
    }

    fn slowdown(&self, worker: WorkerId) -> Option<u64> {
        Some(ratio(self.emulated(worker)?, self.native?))
    }
}

/// In thousandths, and never less than as fast.
fn ratio(emulated: u64, native: u64) -> u64 {
    (emulated.saturating_mul(1_000) / native.max(1)).max(1_000)
}

pub(crate) fn average(mean: Option<u64>, value: u64) -> u64 {
    mean.map_or(value, |mean| (mean.saturating_mul(3).saturating_add(value)) / 4)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const P: PlatformIx = PlatformIx(0);

    fn worker(number: u64) -> (WorkerIx, WorkerId) {
        (WorkerIx(0), WorkerId::from_uuid(Uuid::from_u64_pair(1, number)))
    }

    #[test]
    fn emulation_counts_as_eight_times_slower_until_both_are_measured() {
        let mut history = History::default();
        let (at, w) = (history.acquire("r/app"), worker(1));
        assert_eq!(history.slowdown(at, P, w.1, None), 8_000);
        assert_eq!(history.slowdown(at, P, w.1, Some(12_000)), 12_000);
        history.learn(at, P, w, false, 10_000);
        assert_eq!(history.learn(at, P, w, true, 50_000), Some(5_000));
        assert_eq!(history.slowdown(at, P, w.1, Some(12_000)), 5_000);
        assert_eq!(history.native(at, P), 10_000);
    }

    #[test]
    fn the_slowdown_is_measured_for_each_worker_and_repository() {
        let mut history = History::default();
        let (a, b) = (history.acquire("r/a"), history.acquire("r/b"));
        let (slow, fast, new) = (worker(1), worker(2), worker(3));
        for repository in [a, b] {
            history.learn(repository, P, slow, false, 10_000);
        }
        history.learn(a, P, slow, true, 200_000);
        history.learn(a, P, fast, true, 30_000);
        let of_a = [slow, fast, new].map(|worker| history.slowdown(a, P, worker.1, Some(9_000)));
        assert_eq!(of_a, [20_000, 3_000, 3_000], "elsewhere it was measured last on the fast one");
        assert_eq!(history.slowdown(b, P, slow.1, Some(9_000)), 9_000, "another repository goes by the worker's own");
    }

    #[test]
    fn an_unknown_repository_is_expected_to_take_what_the_platform_takes() {
        let mut history = History::default();
        let (known, unknown) = (history.acquire("r/a"), history.acquire("r/b"));
        assert_eq!(history.native(unknown, P), UNKNOWN);
        history.learn(known, P, worker(1), false, 5_000);
        assert_eq!(history.native(unknown, P), 5_000);
    }

    #[test]
    fn what_no_build_refers_to_is_remembered_up_to_a_bound() {
        let mut history = History::default();
        for repository in 0..REMEMBERED + 100 {
            let at = history.acquire(&format!("r/{repository}"));
            history.release(at);
        }
        assert_eq!(history.len(), REMEMBERED);
    }
}
