//! One process for one data directory.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

/// Held as long as this lives; the system lets go of it when the process dies.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{path} is in use by another kiln process; stop it or choose another --data-dir")]
    Taken { path: String },
    #[error("cannot lock {path}: {problem}")]
    Failed { path: String, problem: std::io::Error },
}

impl DataLock {
    /// # Errors
    /// [`LockError::Taken`] when another process has it.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let name = || path.display().to_string();
        let failed = |problem| LockError::Failed { path: name(), problem };
        let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Taken { path: name() }),
            Err(TryLockError::Error(problem)) => Err(failed(problem)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_refused_until_the_first_lets_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let first = DataLock::take(&path).expect("free");
        assert!(matches!(DataLock::take(&path), Err(LockError::Taken { .. })));
        drop(first);
        DataLock::take(&path).expect("free again");
    }
}
