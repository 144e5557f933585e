//! One entry of a context's manifest: a file, a directory, a symbolic link or a hard link, with what BuildKit is told of it.
//!
//! Owner and group are not recorded: the builder sees everything as root's, as `docker build` has it.

use std::cmp::Ordering;

use super::{ChunkId, wire::put_entry};
use crate::limits;

/// One path of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root, `/` between components, neither `.` nor `..` nor empty components, UTF-8.
    pub path: Box<str>,
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u16,
    /// Nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    Directory,
    /// The contents in order; an empty file has no chunks.
    File(Box<[ChunkRef]>),
    /// The target as it stands in the link; it may point anywhere.
    Symlink(Box<str>),
    /// The path of a file that comes earlier in the manifest.
    HardLink(Box<str>),
}

/// A chunk and its length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    pub id: ChunkId,
    /// 1 to [`limits::CHUNK_BYTES`].
    pub len: u32,
}

impl Entry {
    /// Bytes of a file; 0 for all else.
    #[must_use]
    pub fn size(&self) -> u64 {
        match &self.kind {
            EntryKind::File(chunks) => chunks.iter().map(|chunk| u64::from(chunk.len)).sum(),
            EntryKind::Directory | EntryKind::Symlink(_) | EntryKind::HardLink(_) => 0,
        }
    }

    /// Appends the entry as a manifest that begins with it has it: one encoding for each entry, none the beginning of another.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_entry(out, "", self);
    }

    #[must_use]
    pub const fn is_directory(&self) -> bool {
        matches!(self.kind, EntryKind::Directory)
    }
}

/// The order of a manifest: by components, so that a directory is followed by all that is in it (`a`, `a/b`, `a-b`).
#[must_use]
pub fn compare_paths(left: &str, right: &str) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    left.as_bytes().iter().map(rank).cmp(right.as_bytes().iter().map(rank))
}

/// Why an entry cannot stand in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEntry {
    #[error("`{path}` is not a normalised relative path")]
    Path { path: String },
    #[error("`{path}...` is longer than {} bytes", limits::PATH_BYTES)]
    PathTooLong { path: String },
    #[error("`{path}` does not come after `{previous}`")]
    Unsorted { path: String, previous: String },
    #[error("`{path}` is not in a directory of the context")]
    NoParent { path: String },
    #[error("`{path}` has mode {mode:o}; at most 7777")]
    Mode { path: String, mode: u64 },
    #[error("`{path}` has a chunk of {len} bytes; expected 1 to {}", limits::CHUNK_BYTES)]
    ChunkLength { path: String, len: u64 },
    #[error("the target of the link `{path}` is empty or longer than {} bytes", limits::PATH_BYTES)]
    Target { path: String },
    #[error("`{path}` is a hard link to `{target}`, which is no earlier file of the context")]
    HardLink { path: String, target: String },
    #[error("the context has more than {} entries; exclude some in .dockerignore", limits::CONTEXT_FILES)]
    TooMany,
    #[error(
        "the paths of the context have more than {} bytes; exclude some in .dockerignore",
        limits::CONTEXT_PATHS_BYTES
    )]
    PathsTooLong,
    #[error("the context has more than {} bytes; exclude some in .dockerignore", limits::CONTEXT_BYTES)]
    TooLarge,
}

/// What holds from one entry to the next; encoder and decoder feed it every entry.
#[derive(Debug, Default)]
pub(super) struct Checker {
    previous: String,
    /// Ends of the names of the directories that `previous` is in, or is itself.
    open_dirs: Vec<usize>,
    entries: u64,
    bytes: u64,
    path_bytes: u64,
}

impl Checker {
    pub(super) const fn entries(&self) -> u64 {
        self.entries
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn check(&mut self, entry: &Entry) -> Result<(), InvalidEntry> {
        check_path(&entry.path)?;
        self.check_order(&entry.path)?;
        self.check_parent(entry)?;
        check_fields(entry)?;
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.size());
        if self.entries > limits::CONTEXT_FILES as u64 {
            return Err(InvalidEntry::TooMany);
        }
        if self.bytes > limits::CONTEXT_BYTES {
            return Err(InvalidEntry::TooLarge);
        }
        self.path_bytes += entry.path.len() as u64;
        if self.path_bytes > limits::CONTEXT_PATHS_BYTES {
            return Err(InvalidEntry::PathsTooLong);
        }
        Ok(())
    }

    fn check_order(&mut self, path: &str) -> Result<(), InvalidEntry> {
        if self.entries > 0 && compare_paths(&self.previous, path) != Ordering::Less {
            return Err(InvalidEntry::Unsorted { path: path.into(), previous: self.previous.clone() });
        }
        Ok(())
    }

    /// The order makes a directory's contents follow it, so its parent is open or missing.
    fn check_parent(&mut self, entry: &Entry) -> Result<(), InvalidEntry> {
        let path = &entry.path;
        while let Some(end) = self.open_dirs.last() {
            let inside =
                path.as_bytes().get(*end) == Some(&b'/') && path.as_bytes()[..*end] == self.previous.as_bytes()[..*end];
            if inside {
                break;
            }
            self.open_dirs.pop();
        }
        let parent_end = path.rfind('/').unwrap_or(0);
        if self.open_dirs.last().copied().unwrap_or(0) != parent_end {
            return Err(InvalidEntry::NoParent { path: path.to_string() });
        }
        if entry.is_directory() {
            self.open_dirs.push(path.len());
        }
        self.previous.clear();
        self.previous.push_str(path);
        Ok(())
    }
}

fn check_path(path: &str) -> Result<(), InvalidEntry> {
    if path.len() > limits::PATH_BYTES {
        return Err(InvalidEntry::PathTooLong { path: path.chars().take(64).collect() });
    }
    let normalised = path.split('/').all(|name| !matches!(name, "" | "." | ".."));
    if !normalised || path.contains('\0') {
        return Err(InvalidEntry::Path { path: path.into() });
    }
    Ok(())
}

fn check_fields(entry: &Entry) -> Result<(), InvalidEntry> {
    let path = || entry.path.to_string();
    if entry.mode > 0o7777 {
        return Err(InvalidEntry::Mode { path: path(), mode: entry.mode.into() });
    }
    match &entry.kind {
        EntryKind::Directory => Ok(()),
        EntryKind::File(chunks) => {
            match chunks.iter().find(|chunk| chunk.len == 0 || chunk.len as usize > limits::CHUNK_BYTES) {
                Some(chunk) => Err(InvalidEntry::ChunkLength { path: path(), len: chunk.len.into() }),
                None => Ok(()),
            }
        }
        EntryKind::Symlink(target) => {
            if target.is_empty() || target.len() > limits::PATH_BYTES || target.contains('\0') {
                return Err(InvalidEntry::Target { path: path() });
            }
            Ok(())
        }
        EntryKind::HardLink(target) => {
            if target.is_empty() || compare_paths(target, &entry.path) != Ordering::Less {
                return Err(InvalidEntry::HardLink { path: path(), target: target.to_string() });
            }
            check_path(target)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(path: &str) -> Entry {
        Entry { path: path.into(), kind: EntryKind::Directory, mode: 0o755, mtime_ns: 0 }
    }

    fn file(path: &str) -> Entry {
        Entry { path: path.into(), kind: EntryKind::File(Box::new([])), mode: 0o644, mtime_ns: 0 }
    }

    fn check(entries: &[Entry]) -> Result<(), InvalidEntry> {
        let mut checker = Checker::default();
        entries.iter().try_for_each(|entry| checker.check(entry))
    }

    #[test]
    fn a_directory_sorts_right_before_what_it_holds() {
        assert_eq!(
            check(&[dir("a"), file("a/b"), file("a-b"), dir("b"), dir("b/c"), file("b/c/d"), file("b/e")]),
            Ok(())
        );
        assert!(matches!(check(&[dir("a"), file("a-b"), file("a/b")]), Err(InvalidEntry::Unsorted { .. })));
    }

    #[test]
    fn paths_that_leave_the_root_or_are_not_normalised_are_refused() {
        for path in ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\0"] {
            assert!(matches!(check(&[file(path)]), Err(InvalidEntry::Path { .. })), "{path:?}");
        }
        assert!(matches!(check(&[file(&"x".repeat(5000))]), Err(InvalidEntry::PathTooLong { .. })));
    }

    #[test]
    fn an_entry_below_a_file_a_link_or_nothing_is_refused() {
        let link = Entry { kind: EntryKind::Symlink("/etc".into()), ..file("a") };
        for first in [file("a"), link] {
            assert!(matches!(check(&[first, file("a/b")]), Err(InvalidEntry::NoParent { .. })));
        }
        assert!(matches!(check(&[file("a/b")]), Err(InvalidEntry::NoParent { .. })));
        assert!(matches!(check(&[dir("a"), file("a/b/c")]), Err(InvalidEntry::NoParent { .. })));
    }

    #[test]
    fn hard_links_point_backwards() {
        let link = |target: &str| Entry { kind: EntryKind::HardLink(target.into()), ..file("b") };
        assert_eq!(check(&[file("a"), link("a")]), Ok(()));
        for target in ["b", "c", "../x", ""] {
            assert!(check(&[file("a"), link(target)]).is_err(), "{target}");
        }
    }
}
