//! Files that must survive a crash whole: written beside, synced, renamed. Keys and tokens get mode 0600.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {}: {source}", .path.display())]
pub struct FileError {
    pub act: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { act, path, source }
}

/// Replaces `path` by `bytes`, readable by its owner alone; after a crash there is the old content or the new one.
///
/// # Errors
/// [`FileError`].
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write(path, bytes, 0o600)
}

/// The same with mode 0644.
///
/// # Errors
/// [`FileError`].
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write(path, bytes, 0o644)
}

/// Makes a folder and its parents; new ones are for their owner alone.
///
/// # Errors
/// [`FileError`].
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create the folder", path))
}

/// The content, or `None` where there is no such file. A file of more than `most` bytes is an error.
///
/// # Errors
/// [`FileError`].
pub fn read_optional(path: &Path, most: u64) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, most + 1), &mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > most {
        let problem = io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes"));
        return Err(failed("read", path)(problem));
    }
    Ok(Some(bytes))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_private_dir(folder)?;
    let beside = sibling(path);
    let written = write_synced(&beside, bytes, mode)
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| File::open(folder)?.sync_all());
    written.map_err(|error| {
        drop(fs::remove_file(&beside));
        failed("write", path)(error)
    })
}

/// A name that no other write uses, in this process or another.
fn sibling(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", uuid::Uuid::now_v7().simple()));
    path.with_file_name(name)
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_file_is_replaced_whole_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("keys/ca.key");
        write_private(&path, b"one").expect("written");
        write_private(&path, b"two").expect("replaced");
        assert_eq!(read_optional(&path, 3).expect("read").as_deref(), Some(&b"two"[..]));
        let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("folder")), 0o700);
        assert_eq!(fs::read_dir(path.parent().expect("folder")).expect("listed").count(), 1);
    }

    #[test]
    fn a_missing_file_is_none_and_a_large_one_an_error() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("file");
        assert!(read_optional(&path, 10).expect("no error").is_none());
        write_public(&path, &[0; 11]).expect("written");
        let error = read_optional(&path, 10).expect_err("too large").to_string();
        assert!(error.contains("file") && error.contains("10 bytes"), "{error}");
    }
}
