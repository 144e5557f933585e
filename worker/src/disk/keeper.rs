//! Looks at the disk every few seconds and frees what is needed: first chunks of contexts, which the farm gives again,
//! then the engine's build cache, the longest unused first.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_common::limits;
use tokio::time::{MissedTickBehavior, interval};

use super::{DiskPolicy, Marks};
use crate::{builder::Builder, context::ContextStore, probe::FileSystem};

/// Prunes in a row: what records of a cache take is an estimate.
const ROUNDS: usize = 3;
/// After a prune that could not free enough the engine is left alone for this long: asking it is work, too.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(60);

/// Keeps one worker's disk free.
pub struct Keeper {
    policy: DiskPolicy,
    data_dir: PathBuf,
    builder: Arc<dyn Builder>,
    contexts: Arc<ContextStore>,
    /// Nothing more could be freed at that moment.
    exhausted: Option<Instant>,
}

impl Keeper {
    #[must_use]
    pub const fn new(
        policy: DiskPolicy,
        data_dir: PathBuf,
        builder: Arc<dyn Builder>,
        contexts: Arc<ContextStore>,
    ) -> Self {
        Self { policy, data_dir, builder, contexts, exhausted: None }
    }

    /// Never ends. Dropping it leaves the engine to finish a prune by itself.
    pub async fn run(mut self) -> Infallible {
        let mut ticks = interval(limits::DISK_CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.check(Instant::now()).await;
        }
    }

    async fn check(&mut self, now: Instant) {
        if let Some(own) = FileSystem::of(&self.data_dir)
            && let Some(needed) = self.marks(own).needed(own.available)
        {
            self.shrink_contexts(needed).await;
        }
        let Some(disk) = self.builder.disk() else { return };
        let marks = self.marks(disk);
        if marks.needed(disk.available).is_none() {
            self.exhausted = None;
        } else if self.exhausted.is_none_or(|since| now.duration_since(since) >= EXHAUSTED_PAUSE) {
            let enough = self.prune(disk, marks).await;
            self.exhausted = (!enough).then_some(now);
        }
    }

    fn marks(&self, disk: FileSystem) -> Marks {
        self.policy.marks(disk.total)
    }

    async fn shrink_contexts(&self, bytes: u64) {
        let freed = self.contexts.shrink(bytes).await;
        if freed > 0 {
            tracing::info!(freed, "the disk runs low: dropped chunks of contexts");
        }
    }

    /// True: enough is free now.
    async fn prune(&self, mut disk: FileSystem, marks: Marks) -> bool {
        for _ in 0..ROUNDS {
            let needed = marks.target.saturating_sub(disk.available);
            if needed == 0 {
                return true;
            }
            tracing::info!(
                free = disk.available,
                low = marks.low,
                target = marks.target,
                "the disk runs low: pruning the engine's build cache"
            );
            let freed = match self.builder.prune(needed).await {
                Ok(freed) => freed,
                Err(error) => {
                    tracing::warn!(%error, "the engine's build cache cannot be pruned");
                    return false;
                }
            };
            let Some(after) = self.builder.disk() else { return true };
            tracing::info!(records = freed, free = after.available, "pruned the engine's build cache");
            disk = after;
            if freed == 0 {
                break;
            }
        }
        let enough = marks.needed(disk.available).is_none();
        if !enough {
            tracing::warn!(
                free = disk.available,
                low = marks.low,
                min = marks.min,
                "the disk is low and the build cache holds nothing more to free; look for images, containers and files \
                 that nobody needs"
            );
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Mutex, atomic::AtomicU64, atomic::Ordering},
    };

    use kiln_common::{Grade, Platform};
    use kiln_proto::v1::{MachineInfo, WorkerStats};
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        builder::Job,
        context::CacheConfig,
        engine::{BuildError, BuildOutcome, EngineError, EngineFacts, EngineState, Progress},
    };

    const GIB: u64 = 1 << 30;
    const TARGET: u64 = 2 * (16 * GIB / 10);

    /// An engine that is a disk of 16 GiB and a cache.
    struct Card {
        available: AtomicU64,
        prunable: AtomicU64,
        /// What it was asked to free.
        asked: Mutex<Vec<u64>>,
        /// Records are this many times as large as what deleting them frees.
        overstated: u64,
    }

    #[async_trait::async_trait]
    impl Builder for Card {
        fn watch(&self) -> watch::Receiver<EngineState> {
            unreachable!("the keeper follows no engine")
        }

        async fn platforms(&self, _: &EngineFacts) -> BTreeMap<Platform, Grade> {
            BTreeMap::new()
        }

        fn machine(&self, _: &EngineFacts) -> MachineInfo {
            MachineInfo::default()
        }

        fn stats(&self) -> WorkerStats {
            WorkerStats::default()
        }

        fn disk(&self) -> Option<FileSystem> {
            let available = self.available.load(Ordering::SeqCst);
            Some(FileSystem { device: 1, total: 16 * GIB, available })
        }

        async fn prune(&self, bytes: u64) -> Result<u64, EngineError> {
            self.asked.lock().unwrap().push(bytes);
            let counted = bytes.min(self.prunable.load(Ordering::SeqCst));
            self.prunable.fetch_sub(counted, Ordering::SeqCst);
            self.available.fetch_add(counted / self.overstated, Ordering::SeqCst);
            Ok(counted)
        }

        async fn build(&self, _: Job, _: Progress, _: CancellationToken) -> BuildOutcome {
            Err(BuildError::Cancelled)
        }

        async fn run(&self, _: Job, _: Progress, _: CancellationToken) -> Result<(), BuildError> {
            Err(BuildError::Cancelled)
        }
    }

    async fn keeper(available: u64, prunable: u64, overstated: u64) -> (Arc<Card>, Keeper, tempfile::TempDir) {
        let card = Card {
            available: AtomicU64::new(available),
            prunable: AtomicU64::new(prunable),
            asked: Mutex::default(),
            overstated,
        };
        let (card, folder) = (Arc::new(card), tempfile::tempdir().unwrap());
        let contexts = ContextStore::open(folder.path(), CacheConfig::default()).await.unwrap();
        let keeper = Keeper::new(DiskPolicy::default(), folder.path().to_owned(), card.clone(), contexts);
        (card, keeper, folder)
    }

    #[tokio::test]
    async fn a_low_disk_is_pruned_up_to_the_target_and_a_free_one_is_left_alone() {
        let (card, mut keeper, _folder) = keeper(2 * GIB, 10 * GIB, 1).await;
        keeper.check(Instant::now()).await;
        assert_eq!(*card.asked.lock().unwrap(), Vec::<u64>::new(), "2 of 16 GiB are enough");
        card.available.store(GIB, Ordering::SeqCst);
        keeper.check(Instant::now()).await;
        assert_eq!(*card.asked.lock().unwrap(), [TARGET - GIB]);
        assert_eq!(card.available.load(Ordering::SeqCst), TARGET);
        keeper.check(Instant::now()).await;
        assert_eq!(card.asked.lock().unwrap().len(), 1, "enough is free again");
    }

    #[tokio::test]
    async fn records_that_free_less_than_they_say_are_followed_by_more() {
        let (card, mut keeper, _folder) = keeper(GIB / 2, 15 * GIB, 2).await;
        keeper.check(Instant::now()).await;
        assert!(card.asked.lock().unwrap().len() > 1);
        assert!(card.available.load(Ordering::SeqCst) > TARGET - GIB / 2);
    }

    #[tokio::test]
    async fn an_engine_that_has_nothing_to_give_is_asked_once_a_minute() {
        let (card, mut keeper, _folder) = keeper(GIB, 0, 1).await;
        let start = Instant::now();
        for second in 0..120 {
            keeper.check(start + Duration::from_secs(second)).await;
        }
        assert_eq!(card.asked.lock().unwrap().len(), 2);
    }
}
