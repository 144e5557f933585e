//! What the black-box tests share: the bed of real engines and registries, a farm of one started as its user starts it, a
//! farm of many processes that are killed, frozen and cut off, and eyes on a registry that are not Kiln's own.

pub mod bed;
pub mod calls;
pub mod cluster;
pub mod dynamic;
pub mod engine;
pub mod farm;
pub mod network;
pub mod process;
pub mod registry;
pub mod worker;

pub use bed::Bed;
pub use cluster::Cluster;
pub use engine::OwnEngine;
pub use farm::Farm;
pub use worker::Worker;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A program of the workspace, beside the running test: `target/<profile>/NAME`.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let running = std::env::current_exe().expect("the running program's path");
    // Tests run from target/<profile>/deps, programs from target/<profile>.
    let folder = running.parent().expect("its folder");
    let profile = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = profile.join(name);
    assert!(path.is_file(), "{} is missing; run cargo build --workspace --bins", path.display());
    path
}

/// The `kiln` client of someone whose home is `home`, with the Docker config there and no token but the one that it is given.
fn client(home: &Path) -> Command {
    let mut command = Command::new(binary("kiln"));
    command.env_remove("KILN_TOKEN").env("HOME", home).env("DOCKER_CONFIG", home.join("docker")).stdin(Stdio::null());
    command
}

/// The root of the checkout.
#[must_use]
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root").to_owned()
}
