//! The test bed: engines and registries that `tests/run.sh` started, named by the environment.

/// One kind of engine in the bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// Debian 12's Docker 20.10 with the classic image store.
    Docker20,
    /// Docker 28 with the containerd image store.
    Docker28,
    /// Docker 28 with the classic image store.
    Docker28Classic,
    /// A standalone buildkitd.
    Buildkit,
    /// The same one over TCP with TLS; needs [`Bed::buildkit_tls_dir`].
    BuildkitTcp,
}

impl EngineKind {
    pub const ALL: [Self; 5] =
        [Self::Docker20, Self::Docker28, Self::Docker28Classic, Self::Buildkit, Self::BuildkitTcp];

    /// For names of workers and repositories.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker20 => "docker20",
            Self::Docker28 => "docker28",
            Self::Docker28Classic => "docker28-classic",
            Self::Buildkit => "buildkit",
            Self::BuildkitTcp => "buildkit-tcp",
        }
    }
}

/// What the environment says of the bed.
#[derive(Debug, Clone, Copy)]
pub struct Bed;

impl Bed {
    /// `127.0.0.1:PORT` of the open registry.
    #[must_use]
    pub fn registry(self) -> String {
        needed("KILN_BED_REGISTRY")
    }

    /// The registry that wants a login, with its user and password.
    #[must_use]
    pub fn registry_with_login(self) -> (String, String, String) {
        (needed("KILN_BED_REGISTRY_AUTH"), needed("KILN_BED_REGISTRY_USER"), needed("KILN_BED_REGISTRY_PASSWORD"))
    }

    /// The engine's address as `--engine` takes it; `None` where this machine has no such engine.
    #[must_use]
    pub fn engine(self, kind: EngineKind) -> Option<String> {
        match kind {
            EngineKind::Docker20 => Some(needed("KILN_BED_DOCKER20")),
            EngineKind::Docker28 => Some(needed("KILN_BED_DOCKER28")),
            EngineKind::Docker28Classic => std::env::var("KILN_BED_DOCKER28_CLASSIC").ok(),
            EngineKind::Buildkit => std::env::var("KILN_BED_BUILDKIT").ok(),
            EngineKind::BuildkitTcp => std::env::var("KILN_BED_BUILDKIT_TCP").ok(),
        }
    }

    /// `ca.pem`, `cert.pem` and `key.pem` for the buildkitd over TCP.
    #[must_use]
    pub fn buildkit_tls_dir(self) -> String {
        needed("KILN_BED_BUILDKIT_TLS_DIR")
    }

    /// A `docker` client of the newer generation.
    #[must_use]
    pub fn docker_cli(self) -> String {
        needed("KILN_BED_DOCKER_CLI")
    }
}

fn needed(key: &str) -> String {
    std::env::var(key).unwrap_or_else(|_| panic!("{key} is not set; run the test through tests/run.sh"))
}
