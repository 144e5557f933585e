//! What a worker needs of the engine beside it, as a trait, so that tests bring an engine of their own.
//!
//! [`engine::Engine`](crate::engine::Engine) through [`RealBuilder`](crate::real_builder::RealBuilder) is the one
//! that programs use.

use std::collections::BTreeMap;

use async_trait::async_trait;
use kiln_common::{Grade, Platform};
use kiln_proto::v1::{MachineInfo, WorkerStats};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{BuildError, BuildJob, BuildOutcome, EngineError, EngineFacts, EngineState, Progress},
    probe::FileSystem,
};

/// One attempt as an engine takes it.
pub type Job = BuildJob;

/// An engine and the machine it is on.
#[async_trait]
pub trait Builder: Send + Sync + 'static {
    /// Changes whenever the engine goes away or comes back.
    fn watch(&self) -> watch::Receiver<EngineState>;

    /// How well this engine runs which platforms.
    async fn platforms(&self, engine: &EngineFacts) -> BTreeMap<Platform, Grade>;

    /// The machine.
    fn machine(&self, engine: &EngineFacts) -> MachineInfo;

    /// What the machine measures now.
    fn stats(&self) -> WorkerStats;

    /// The file system that builds fill; `None` where it cannot be seen from here.
    fn disk(&self) -> Option<FileSystem>;

    /// Frees about `bytes` of the build cache, the longest unused first; what running builds use stays. Returns the size
    /// of what went, as the engine counts it.
    async fn prune(&self, bytes: u64) -> Result<u64, EngineError>;

    /// Builds and pushes by digest. Ends early once `stop` is cancelled; dropping the future stops the build, too.
    async fn build(&self, job: Job, progress: Progress, stop: CancellationToken) -> BuildOutcome;

    /// Builds and keeps nothing: what matters is how the last step ends and what it prints. Ends as `build` does.
    async fn run(&self, job: Job, progress: Progress, stop: CancellationToken) -> Result<(), BuildError>;
}
