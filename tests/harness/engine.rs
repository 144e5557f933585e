//! An engine that one test has for itself: to fill its disk, to kill it, to start it again.

use std::{path::Path, process::Command};

use tempfile::TempDir;

use crate::repository;

/// A running engine, see `tests/bed/engine`; ended when dropped.
pub struct OwnEngine {
    folder: TempDir,
    /// As `--engine` takes it.
    pub address: String,
}

impl OwnEngine {
    /// `kind` is `docker20`, `docker28`, `docker28-classic` or `buildkit`; with `size` (`400M`) its data is on a disk of
    /// its own.
    #[must_use]
    pub fn start(kind: &str, size: Option<&str>) -> Self {
        let folder = tempfile::Builder::new().prefix("kiln-e-").tempdir().expect("temporary folder");
        let mut arguments = vec![kind];
        arguments.extend(size);
        let address = control("start", folder.path(), &arguments);
        Self { folder, address }
    }

    /// As a power cut does.
    pub fn kill(&self) {
        control("kill", self.folder.path(), &[]);
    }

    /// After [`Self::kill`].
    pub fn again(&self) {
        control("again", self.folder.path(), &[]);
    }

    /// Where its data is.
    #[must_use]
    pub fn data(&self) -> std::path::PathBuf {
        let part = if self.address.starts_with("buildkit") { "bk" } else { "e" };
        self.folder.path().join(part).join("data")
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        control("stop", self.folder.path(), &[]);
    }
}

fn control(action: &str, folder: &Path, more: &[&str]) -> String {
    let output = Command::new(repository().join("tests/bed/engine")).arg(action).arg(folder).args(more).output();
    let output = output.expect("the script runs");
    let said = crate::farm::text(&output);
    assert!(output.status.success(), "tests/bed/engine {action} {}: {said}", folder.display());
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
