//! Standard input as the context: a tar archive, plain or gzipped, or a Dockerfile alone.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use kiln_common::{context::InvalidEntry, limits};
use tar::{Archive, EntryType};

use super::ContextError;

#[derive(Debug)]
pub(super) enum Stdin {
    Dockerfile(Vec<u8>),
    /// The unpacked archive.
    Archive(tempfile::TempDir),
}

/// A tar header.
const BLOCK_BYTES: usize = 512;

pub(super) fn read_stdin(dockerfile: Option<&str>) -> Result<Stdin, ContextError> {
    read(io::stdin().lock(), dockerfile)
}

fn read(mut input: impl Read, dockerfile: Option<&str>) -> Result<Stdin, ContextError> {
    if dockerfile == Some("-") {
        return Err(ContextError::StdinTwice);
    }
    let mut head = Vec::with_capacity(BLOCK_BYTES);
    input.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut head).map_err(ContextError::Stdin)?;
    match kind_of(&head)? {
        Kind::Gzip => unpack(MultiGzDecoder::new(head.as_slice().chain(input))).map(Stdin::Archive),
        Kind::Tar => unpack(head.as_slice().chain(input)).map(Stdin::Archive),
        Kind::Text if dockerfile.is_some() => Err(ContextError::TwoDockerfiles),
        Kind::Text => {
            let most = limits::DOCKERFILE_BYTES as u64 + 1;
            input.take(most).read_to_end(&mut head).map_err(ContextError::Stdin)?;
            Ok(Stdin::Dockerfile(head))
        }
    }
}

enum Kind {
    Gzip,
    Tar,
    Text,
}

fn kind_of(head: &[u8]) -> Result<Kind, ContextError> {
    const FOREIGN: [(&[u8], &str); 3] = [(b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];
    if head.is_empty() {
        return Err(ContextError::StdinEmpty);
    }
    if let Some((_, name)) = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(ContextError::Compression(name));
    }
    if head.starts_with(b"\x1f\x8b") {
        return Ok(Kind::Gzip);
    }
    Ok(if is_tar_header(head) { Kind::Tar } else { Kind::Text })
}

/// A block whose checksum is right, or all zeros: an empty archive.
fn is_tar_header(head: &[u8]) -> bool {
    let Ok(block) = <&[u8; BLOCK_BYTES]>::try_from(head) else { return false };
    let header = tar::Header::from_byte_slice(block);
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    block.iter().all(|byte| *byte == 0) || header.cksum().is_ok_and(|stated| stated == sum)
}

/// Unpacks below a new directory: never outside of it, no devices, within the limits of a context.
fn unpack(input: impl Read) -> Result<tempfile::TempDir, ContextError> {
    let directory = tempfile::Builder::new().prefix("kiln-tar-").tempdir().map_err(ContextError::Temporary)?;
    let root = directory.path().canonicalize().map_err(ContextError::Temporary)?;
    let mut archive = Archive::new(input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    let mut directories = Vec::new();
    let (mut count, mut bytes) = (0_usize, 0_u64);
    for entry in archive.entries().map_err(ContextError::Archive)? {
        let mut entry = entry.map_err(ContextError::Archive)?;
        count += 1;
        bytes = bytes.saturating_add(entry.size());
        check_limits(count, bytes)?;
        let kind = entry.header().entry_type();
        if kind == EntryType::Directory {
            let path = entry.path().map_err(ContextError::Archive)?.into_owned();
            make_directory(&root, &path)?;
            directories.push(entry);
        } else if !matches!(kind, EntryType::Fifo | EntryType::Char | EntryType::Block) {
            entry.unpack_in(&root).map_err(ContextError::Archive)?;
        }
    }
    // Times and modes of directories last, the deepest first: what is put into them would change or need them.
    directories.sort_by(|left, right| right.path_bytes().cmp(&left.path_bytes()));
    for mut entry in directories {
        if entry.unpack_in(&root).map_err(ContextError::Archive)? {
            let path = entry.path().map_err(ContextError::Archive)?;
            date_directory(&root, &path, entry.header().mtime().unwrap_or_default());
        }
    }
    Ok(directory)
}

fn make_directory(root: &Path, path: &Path) -> Result<(), ContextError> {
    use std::path::Component;
    if path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        // A link among the parents is refused when the directory itself is unpacked.
        let target = root.join(path);
        let parent = target.parent().and_then(|parent| parent.canonicalize().ok());
        if parent.is_some_and(|parent| parent.starts_with(root)) && !target.exists() {
            fs::create_dir(&target).map_err(ContextError::Archive)?;
        }
    }
    Ok(())
}

/// The tar crate dates files only. A directory that cannot be dated keeps the time of unpacking.
fn date_directory(root: &Path, path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds));
    let real = root.join(path).canonicalize().ok().filter(|real| real.starts_with(root));
    if let (Some(time), Some(Ok(directory))) = (time, real.map(fs::File::open)) {
        let _ = directory.set_modified(time);
    }
}

fn check_limits(count: usize, bytes: u64) -> Result<(), ContextError> {
    let over = |error: InvalidEntry| Err(ContextError::Manifest(error.into()));
    if count > limits::CONTEXT_FILES {
        return over(InvalidEntry::TooMany);
    }
    if bytes > limits::CONTEXT_BYTES {
        return over(InvalidEntry::TooLarge);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind: EntryType, mode: u32, content: &[u8], link: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_mtime(1_600_000_000);
            header.set_size(content.len() as u64);
            // As hostile archives do, past the builder's own checks.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_cksum();
            builder.append(&header, content).expect("appends");
        };
        add("ro/", EntryType::Directory, 0o555, b"", "");
        add("ro/Dockerfile", EntryType::Regular, 0o644, b"FROM scratch\n", "");
        add("tool", EntryType::Regular, 0o4755, b"#!", "");
        add("hard", EntryType::Link, 0o755, b"", "tool");
        add("out", EntryType::Symlink, 0o777, b"", "/tmp");
        add("out/planted", EntryType::Regular, 0o644, b"x", "");
        builder.into_inner().expect("finishes")
    }

    #[test]
    fn a_plain_and_a_gzipped_archive_are_unpacked_with_modes_links_and_times() {
        let mut builder = archive();
        // Leave the planted file out: it is the next test's.
        builder.truncate(builder.len() - 1024 - 1024);
        builder.extend([0; 1024]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&builder).expect("compresses");
        for bytes in [builder.clone(), gzip.finish().expect("finishes")] {
            let Ok(Stdin::Archive(directory)) = read(bytes.as_slice(), None) else { panic!("no archive") };
            let tool = fs::metadata(directory.path().join("tool")).expect("tool");
            assert_eq!(tool.permissions().mode() & 0o7777, 0o4755);
            assert_eq!(std::os::unix::fs::MetadataExt::nlink(&tool), 2);
            assert_eq!(fs::read_link(directory.path().join("out")).expect("link"), Path::new("/tmp"));
            let read_only = fs::metadata(directory.path().join("ro")).expect("ro");
            assert_eq!(read_only.permissions().mode() & 0o777, 0o555);
            assert_eq!(std::os::unix::fs::MetadataExt::mtime(&read_only), 1_600_000_000);
            fs::set_permissions(directory.path().join("ro"), fs::Permissions::from_mode(0o755)).expect("chmod");
        }
    }

    #[test]
    fn an_archive_cannot_write_outside_of_its_directory() {
        assert!(read(archive().as_slice(), None).is_err());
        assert!(!Path::new("/tmp/planted").exists());
    }

    #[test]
    fn what_is_no_archive_is_a_dockerfile() {
        let text = format!("FROM scratch\n# {}\n", "x".repeat(1000));
        assert!(matches!(read(text.as_bytes(), None), Ok(Stdin::Dockerfile(read)) if read == text.as_bytes()));
        assert!(matches!(read(text.as_bytes(), Some("x")), Err(ContextError::TwoDockerfiles)));
        assert!(matches!(read(text.as_bytes(), Some("-")), Err(ContextError::StdinTwice)));
        assert!(matches!(read(&b""[..], None), Err(ContextError::StdinEmpty)));
        assert!(matches!(read(&b"BZh91AY"[..], None), Err(ContextError::Compression("bzip2"))));
    }
}
