//! The container engine as a [`Builder`]: builds and prunes by [`Engine`], grades and figures from [`Probe`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use kiln_common::{Grade, Platform};
use kiln_proto::v1::{MachineInfo, WorkerStats};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    builder::{Builder, Job},
    disk,
    engine::{BuildError, BuildOutcome, Engine, EngineError, EngineFacts, EngineState, Progress},
    probe::{FileSystem, Probe},
};

/// An engine and this machine.
pub struct RealBuilder {
    engine: Engine,
    probe: Probe,
    /// Bytes of build cache that were pruned so far.
    pruned: AtomicU64,
}

impl RealBuilder {
    #[must_use]
    pub const fn new(engine: Engine, probe: Probe) -> Self {
        Self { engine, probe, pruned: AtomicU64::new(0) }
    }

    /// Passes progress on, and notes whether a step said that the disk is full while it was.
    fn watching_disk(&self, progress: Progress) -> (Progress, Arc<AtomicBool>) {
        let (probe, facts) = (self.probe.clone(), self.engine.facts());
        let full = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&full);
        let watching = Arc::new(move |entry| {
            if disk::says_full(&entry) && probe.engine_disk(&facts).is_some_and(|disk| disk::is_full(&disk)) {
                seen.store(true, Ordering::Relaxed);
            }
            progress(entry);
        });
        (watching, full)
    }
}

#[async_trait]
impl Builder for RealBuilder {
    fn watch(&self) -> watch::Receiver<EngineState> {
        self.engine.watch()
    }

    async fn platforms(&self, engine: &EngineFacts) -> BTreeMap<Platform, Grade> {
        let mut ran = BTreeSet::new();
        for (platform, program) in self.probe.trials(&engine.platforms) {
            match self.engine.runs(&program).await {
                Ok(true) => {
                    ran.insert(platform);
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%platform, %error, "the engine could not try the platform; it counts as emulated")
                }
            }
        }
        self.probe.grades(&engine.platforms, &ran)
    }

    fn machine(&self, engine: &EngineFacts) -> MachineInfo {
        self.probe.machine(engine)
    }

    fn stats(&self) -> WorkerStats {
        let pruned_bytes = self.pruned.load(Ordering::Relaxed);
        WorkerStats { pruned_bytes, ..self.probe.stats(&self.engine.facts()) }
    }

    fn disk(&self) -> Option<FileSystem> {
        self.probe.engine_disk(&self.engine.facts())
    }

    async fn prune(&self, bytes: u64) -> Result<u64, EngineError> {
        let freed = self.engine.prune(bytes).await?;
        self.pruned.fetch_add(freed, Ordering::Relaxed);
        Ok(freed)
    }

    async fn build(&self, job: Job, progress: Progress, stop: CancellationToken) -> BuildOutcome {
        let (progress, full) = self.watching_disk(progress);
        let outcome = self.engine.build(job, progress, stop).await;
        outcome.map_err(|error| disk::blame(error, full.load(Ordering::Relaxed)))
    }

    async fn run(&self, job: Job, progress: Progress, stop: CancellationToken) -> Result<(), BuildError> {
        let (progress, full) = self.watching_disk(progress);
        let outcome = self.engine.run(job, progress, stop).await;
        outcome.map_err(|error| disk::blame(error, full.load(Ordering::Relaxed)))
    }
}
