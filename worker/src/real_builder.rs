//! The container engine as a [`Builder`]: builds by [`Engine`], grades and figures from
//! [`probe`].

use std::collections::BTreeMap;

use async_trait::async_trait;
use kiln_common::{Grade, Platform};
use kiln_proto::v1::{MachineInfo, WorkerStats};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    builder::{Builder, Job},
    engine::{BuildError, BuildOutcome, Engine, EngineFacts, EngineState, Progress},
    probe,
};

/// An engine and this machine.
pub struct RealBuilder {
    engine: Engine,
    /// Whether the engine runs on this machine, so that what is measured here holds for it.
    local: bool,
}

impl RealBuilder {
    #[must_use]
    pub const fn new(engine: Engine, local: bool) -> Self {
        Self { engine, local }
    }
}

#[async_trait]
impl Builder for RealBuilder {
    fn watch(&self) -> watch::Receiver<EngineState> {
        self.engine.watch()
    }

    async fn platforms(&self, engine: &EngineFacts) -> BTreeMap<Platform, Grade> {
        probe::platforms::grades(&engine.platforms, self.local)
    }

    fn machine(&self, engine: &EngineFacts) -> MachineInfo {
        probe::machine::machine(engine, self.local)
    }

    fn stats(&self) -> WorkerStats {
        probe::stats::stats(&self.engine.facts(), self.local)
    }

    async fn build(&self, job: Job, progress: Progress, stop: CancellationToken) -> BuildOutcome {
        self.engine.build(job, progress, stop).await
    }

    async fn run(&self, job: Job, progress: Progress, stop: CancellationToken) -> Result<(), BuildError> {
        self.engine.run(job, progress, stop).await
    }
}
