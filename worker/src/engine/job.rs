//! What `agent` hands to [`Engine::build`](super::Engine::build), and how a build can end otherwise than well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::Arc,
};

use async_trait::async_trait;
use kiln_common::{AttemptId, BuildSpec, Grade, Platform, spec::ImageDescriptor};
use kiln_proto::v1::ProgressEntry;
use zeroize::Zeroizing;

use super::transport::BoxedIo;
use crate::context::FileSyncService;

/// The directory names under which BuildKit asks the session's FileSync service for trees.
pub const CONTEXT_DIR: &str = "context";
pub const DOCKERFILE_DIR: &str = "dockerfile";

/// The directory name of the tree that `--build-context NAME=...` uploaded.
#[must_use]
pub fn named_dir(name: &str) -> String {
    format!("named-{name}")
}

/// One attempt: everything that the engine needs of it. Secrets and credentials live only as long as this does.
pub struct BuildJob {
    pub attempt: AttemptId,
    pub platform: Platform,
    pub grade: Grade,
    pub spec: Arc<BuildSpec>,
    /// By id, as `RUN --mount=type=secret,id=...` asks.
    pub secrets: BTreeMap<String, Zeroizing<Vec<u8>>>,
    /// By registry host as references write it (`docker.io`, `registry.example:5000`).
    pub credentials: BTreeMap<String, RegistryCredential>,
    /// `host[:port]` of registries that speak plain HTTP. Loopback hosts always may.
    pub insecure_registries: BTreeSet<String>,
    /// Serves [`CONTEXT_DIR`], [`DOCKERFILE_DIR`] and [`named_dir`]s.
    pub filesync: FileSyncService,
    pub agents: Arc<dyn AgentDialer>,
    /// The same for builds of the same context in its versions, so that the engine transfers only what changed. Versions
    /// of a file are told by size and modification time: trees whose times say nothing need a key of their own.
    pub shared_key: String,
    /// URI of this attempt for the provenance; empty leaves it to the engine.
    pub builder_id: String,
}

/// How one registry knows the user.
#[derive(Clone)]
pub enum RegistryCredential {
    Password {
        username: String,
        password: Zeroizing<String>,
    },
    /// An OAuth2 refresh token (distribution's "oauth2 token authentication").
    IdentityToken(Zeroizing<String>),
}

impl fmt::Debug for RegistryCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(hidden)",
            Self::IdentityToken(_) => "IdentityToken(hidden)",
        })
    }
}

/// Opens streams to the client's ssh agents.
#[async_trait]
pub trait AgentDialer: Send + Sync {
    /// A stream to the agent with this id, in the ssh agent protocol.
    async fn dial(&self, id: &str) -> io::Result<BoxedIo>;
}

/// For builds without ssh.
pub struct NoAgents;

#[async_trait]
impl AgentDialer for NoAgents {
    async fn dial(&self, id: &str) -> io::Result<BoxedIo> {
        Err(io::Error::new(io::ErrorKind::NotFound, format!("the build has no ssh agent `{id}`")))
    }
}

/// Takes what a build reports while it runs, in order. It must not wait.
pub type Progress = Arc<dyn Fn(ProgressEntry) + Send + Sync>;

/// A build that succeeded: its image is in every repository of the spec, by digest.
pub type BuildOutcome = Result<ImageDescriptor, BuildError>;

/// How a build ends without an image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The user's own: another worker would fail in the same way.
    #[error("{0}")]
    Build(String),
    /// The engine's, the machine's or its network's: another try may go well, best elsewhere.
    #[error("{0}")]
    Infrastructure(String),
    /// A registry's: another try may go well, and the worker is not to blame.
    #[error("{0}")]
    Registry(String),
    #[error("the build was cancelled")]
    Cancelled,
}
