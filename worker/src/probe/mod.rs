//! What a machine can run and how it fares, for registration and heartbeats.
//!
//! `real_builder` calls it: [`platforms::grades`] when the engine (re)appears, [`machine::machine`] with it,
//! [`stats::stats`] with every heartbeat. Everything that reads text is a pure function over it; what cannot be read is
//! zero, never a failure.

mod elf;
pub mod machine;
pub mod platforms;
pub mod stats;

use std::path::Path;

/// A small file of `/proc` or `/sys`; empty where there is none.
fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
