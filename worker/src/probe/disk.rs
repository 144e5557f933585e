//! The file systems that builds fill: the engine's, and the worker's own.

use std::path::Path;

use super::Probe;
use crate::engine::EngineFacts;

/// Where a standalone buildkitd keeps its data unless it is told otherwise; it does not tell.
const BUILDKIT_ROOT: &str = "/var/lib/buildkit";

/// How full a file system is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Tells file systems apart.
    pub device: u64,
    pub total: u64,
    pub available: u64,
}

impl FileSystem {
    /// The one that holds `path`; `None` where this machine does not see it.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        // In a container the folder may be hidden while its parent's file system is the same.
        let seen = path.ancestors().find(|path| path.exists())?;
        let (figures, file) = (rustix::fs::statvfs(seen).ok()?, rustix::fs::stat(seen).ok()?);
        Some(Self {
            device: file.st_dev,
            total: figures.f_blocks * figures.f_frsize,
            available: figures.f_bavail * figures.f_frsize,
        })
    }
}

impl Probe {
    /// The file system with the engine's data; `None` for an engine on another machine.
    #[must_use]
    pub fn engine_disk(&self, engine: &EngineFacts) -> Option<FileSystem> {
        if !self.local {
            return None;
        }
        let told = engine.machine.as_ref().map(|machine| Path::new(machine.data_root.as_str()));
        FileSystem::of(self.engine_data.as_deref().or(told).unwrap_or(Path::new(BUILDKIT_ROOT)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_on_its_parent_s_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let found = FileSystem::of(&folder.path().join("not/there")).expect("a file system");
        assert_eq!(Some(found.device), FileSystem::of(folder.path()).map(|of| of.device));
        assert!(found.available <= found.total && found.total > 0);
    }
}
