//! One container engine: what it is, and builds on it.
//!
//! `agent` calls [`Engine::connect`] once, reads [`Engine::facts`], follows [`Engine::watch`] and calls
//! [`Engine::build`] for every attempt. The three shapes of engines (see [`EngineKind`]) are told apart by asking and
//! differ only in how an image leaves them. In all three it is pushed by digest, and no tag is left behind.
//!
//! Invariants: a build that is cancelled or dropped is stopped in the engine; secrets and credentials are served
//! while their build runs, to sessions of builds with the very same ones; a failure is the user's own only where another worker would fail in the same way.

pub mod address;
mod build;
mod divided;
mod docker;
pub mod facts;
mod failure;
pub mod job;
mod lines;
mod monitor;
mod progress;
mod prune;
mod push;
mod request;
mod session;
mod solve;
mod transport;
mod trial;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use address::EngineAddress;
pub use facts::{EngineFacts, EngineKind};
pub use job::{AgentDialer, BuildError, BuildJob, BuildOutcome, NoAgents, Progress, RegistryCredential};
pub use monitor::EngineState;
pub use transport::BoxedIo;

use session::Sessions;

/// A connected engine. Dropping it ends the watch over the engine, not the builds.
pub struct Engine {
    dialer: transport::Dialer,
    sessions: Arc<Sessions>,
    state: watch::Receiver<EngineState>,
    _monitor: AbortOnDropHandle<()>,
}

impl Engine {
    /// Reaches the engine and asks it what it is.
    ///
    /// # Errors
    /// [`EngineError`] with what to do about it; a caller that can wait for the engine tries again.
    pub async fn connect(address: EngineAddress) -> Result<Self, EngineError> {
        let dialer = transport::Dialer::new(address)?;
        let (state, monitor) = monitor::start(dialer.clone()).await?;
        let sessions = Arc::new(Sessions::new(dialer.clone()));
        Ok(Self { dialer, sessions, state, _monitor: AbortOnDropHandle::new(tokio::spawn(monitor)) })
    }

    /// What the engine was when it was last up.
    #[must_use]
    pub fn facts(&self) -> EngineFacts {
        self.state.borrow().facts().clone()
    }

    /// Builds one attempt and pushes its image by digest to every repository of the spec.
    ///
    /// Ends early when `cancel` says so; then, and when the future is dropped, the build is stopped in the engine.
    ///
    /// # Errors
    /// [`BuildError`], which tells the user's failures from the farm's.
    pub async fn build(&self, job: BuildJob, progress: Progress, cancel: CancellationToken) -> BuildOutcome {
        let facts = self.facts();
        tokio::select! {
            // Each part ends in its own way on a cancel; this is for those that do not look.
            biased;
            outcome = build::run(&self.sessions, &facts, job, progress, &cancel) => outcome,
            () = cancelled_for_long(&cancel) => Err(BuildError::Cancelled),
        }
    }

    /// Runs the steps of one Dockerfile and exports nothing. Ends early as [`build`](Self::build) does.
    ///
    /// # Errors
    /// [`BuildError`], which tells the user's failures from the farm's.
    pub async fn run(&self, job: BuildJob, progress: Progress, cancel: CancellationToken) -> Result<(), BuildError> {
        let facts = self.facts();
        tokio::select! {
            biased;
            outcome = build::run_only(&self.sessions, &facts, job, progress, &cancel) => outcome,
            () = cancelled_for_long(&cancel) => Err(BuildError::Cancelled),
        }
    }

    /// Whether the engine's CPU itself runs this program, which no emulator takes for its own.
    ///
    /// # Errors
    /// [`EngineError`] when the engine is away.
    pub async fn runs(&self, program: &[u8]) -> Result<bool, EngineError> {
        let facts = self.facts();
        let no_platforms = || EngineError::NoPlatforms { address: self.dialer.address().to_string() };
        trial::runs(&self.dialer, facts.platforms.first().ok_or_else(no_platforms)?, program).await
    }

    /// Frees about `bytes` of the build cache, the longest unused first; what running builds use stays. Returns how large
    /// the removed records were.
    ///
    /// # Errors
    /// [`EngineError`] when the engine is away or refuses.
    pub async fn prune(&self, bytes: u64) -> Result<u64, EngineError> {
        prune::prune(&self.dialer, bytes).await
    }

    /// Changes whenever the engine goes away or comes back, then with fresh facts.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<EngineState> {
        self.state.clone()
    }
}

/// How long a cancelled build may take to end by itself.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

async fn cancelled_for_long(cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(CANCEL_PATIENCE).await;
}

/// Why an engine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Address(#[from] address::InvalidAddress),
    #[error("`{}` cannot be used for TLS to the engine: {problem}", file.display())]
    Tls { file: PathBuf, problem: String },
    #[error("the engine at {address} cannot be reached: {source}; is it running, and may this user open it")]
    Unreachable { address: String, source: io::Error },
    #[error("the engine at {address} accepts connections and does not answer")]
    Silent { address: String },
    #[error("the connection to the engine failed: {0}")]
    Transport(String),
    #[error(
        "the engine refuses a call to BuildKit: {0}; Docker Engine 20.10 or buildkitd 0.8 is the oldest that works"
    )]
    Call(String),
    #[error(transparent)]
    Docker(#[from] docker::DockerError),
    #[error("the engine has no BuildKit worker; look at its log")]
    NoBuilder,
    #[error("the engine at {address} lists no platform; look at its log")]
    NoPlatforms { address: String },
    #[error(
        "the engine at {address} has the classic image store, which pushes through its worker on the same machine; run \
         the worker there with --engine unix://..., or turn on the engine's containerd image store"
    )]
    ClassicStoreOverTcp { address: String },
}

impl EngineError {
    fn transport(error: tonic::transport::Error) -> Self {
        Self::Transport(causes(&error))
    }

    fn call(status: tonic::Status) -> Self {
        Self::Call(format!("{:?}: {}", status.code(), status.message()))
    }
}

/// An error with its causes, which `Display` of the transports leaves out.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
