//! What a machine can run and how it fares, for registration and heartbeats.
//!
//! `real_builder` asks a [`Probe`]: for grades when the engine (re)appears, for the machine with them, for measurements
//! with every heartbeat. Everything that reads text is a pure function over it; what cannot be read is zero, never a
//! failure.

mod disk;
pub mod elf;
mod heat;
mod machine;
mod platforms;
mod stats;

use std::path::{Path, PathBuf};

pub use disk::FileSystem;

/// Where the engine is, and where this machine's figures are read.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Whether the engine runs on this machine, so that what is measured here holds for it.
    local: bool,
    /// Where the engine keeps its data, where an operator says so.
    engine_data: Option<PathBuf>,
    proc: PathBuf,
    sys: PathBuf,
}

impl Probe {
    #[must_use]
    pub fn new(local: bool, engine_data: Option<PathBuf>) -> Self {
        Self { local, engine_data, proc: "/proc".into(), sys: "/sys".into() }
    }

    /// The same with `proc` and `sys` under another root: a machine that a test has written down.
    #[must_use]
    pub fn under(self, root: &Path) -> Self {
        Self { proc: root.join("proc"), sys: root.join("sys"), ..self }
    }
}

/// A small file of `/proc` or `/sys`; empty where there is none.
fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// What a file of `/sys` says in a number.
fn number(path: impl AsRef<Path>) -> Option<i64> {
    text(path).trim().parse().ok()
}
