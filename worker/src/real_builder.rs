//! The container engine as a [`Builder`]: builds and prunes by [`Engine`], grades and figures from [`Probe`].

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use kiln_common::{Grade, Platform};
use kiln_proto::v1::{MachineInfo, WorkerStats};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    builder::{Builder, Job},
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
}

#[async_trait]
impl Builder for RealBuilder {
    fn watch(&self) -> watch::Receiver<EngineState> {
        self.engine.watch()
    }

    async fn platforms(&self, engine: &EngineFacts) -> BTreeMap<Platform, Grade> {
        self.probe.grades(&engine.platforms)
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
        self.engine.build(job, progress, stop).await
    }

    async fn run(&self, job: Job, progress: Progress, stop: CancellationToken) -> Result<(), BuildError> {
        self.engine.run(job, progress, stop).await
    }
}
