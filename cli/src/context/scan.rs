//! Walks a directory: names, kinds, modes and times in manifest order, no contents. Excluded directories that no
//! exception leads into are not looked into.

use std::{
    collections::HashMap,
    fs::{self, DirEntry, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use kiln_common::{
    context::{
        InvalidEntry,
        filter::{Filter, FilterWalk, Verdict},
    },
    limits,
};

use super::{ContextError, dockerfile::IGNORE_FILE};

/// A directory as it was found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) root: PathBuf,
    /// Sorted as a manifest is.
    pub(super) found: Vec<Found>,
    /// When the walk began: what changed since may change again unnoticed.
    pub(super) began_ns: i64,
}

#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: Box<str>,
    pub(super) kind: FoundKind,
    pub(super) mode: u16,
    pub(super) mtime_ns: i64,
}

#[derive(Debug)]
pub(super) enum FoundKind {
    Directory,
    File(Stamp),
    Symlink(Box<str>),
    /// The path of the file that was found first.
    HardLink(Box<str>),
}

/// What changes whenever a file's contents do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
    pub(super) ctime_ns: i64,
    pub(super) inode: u64,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.len(),
            mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct ScanOptions {
    filter: Filter,
    has_rules: bool,
    /// Every entry's time instead of its own.
    mtime_ns: Option<i64>,
}

impl ScanOptions {
    pub(super) fn ignoring(rules: &[String]) -> Result<Self, ContextError> {
        Ok(Self { filter: Filter::new(&[], rules)?, has_rules: !rules.is_empty(), mtime_ns: None })
    }

    pub(super) fn dated(mtime_ns: i64) -> Self {
        Self { mtime_ns: Some(mtime_ns), ..Self::default() }
    }
}

/// The directory that a path means, links resolved.
pub(super) fn root_of(path: &Path) -> Result<PathBuf, ContextError> {
    let root = path.canonicalize().map_err(|source| {
        let path = path.into();
        if source.kind() == io::ErrorKind::NotFound {
            return ContextError::Missing { path };
        }
        ContextError::Unreadable { path, source }
    })?;
    if root.is_dir() { Ok(root) } else { Err(ContextError::NotADirectory { path: path.into() }) }
}

impl Scan {
    pub(super) fn of(root: &Path, options: &ScanOptions) -> Result<Self, ContextError> {
        let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut walker = Walker {
            root,
            options,
            filter: options.filter.walk(),
            found: Vec::new(),
            bytes: 0,
            linked: HashMap::new(),
            open: Vec::new(),
        };
        walker.run()?;
        let began_ns = i64::try_from(began.as_nanos()).unwrap_or(i64::MAX);
        Ok(Self { root: root.to_owned(), found: walker.found, began_ns })
    }
}

struct Walker<'a> {
    root: &'a Path,
    options: &'a ScanOptions,
    filter: FilterWalk<'a, Found>,
    found: Vec<Found>,
    bytes: u64,
    /// Files with several names: the first one.
    linked: HashMap<(u64, u64), Box<str>>,
    open: Vec<OpenDirectory>,
}

struct OpenDirectory {
    path: String,
    /// What is left of it, in reverse order.
    entries: Vec<(Box<str>, DirEntry)>,
}

impl Walker<'_> {
    fn run(&mut self) -> Result<(), ContextError> {
        self.open_directory(String::new(), false)?;
        while let Some(directory) = self.open.last_mut() {
            match directory.entries.pop() {
                Some((name, entry)) => {
                    let prefix = &directory.path;
                    let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}").into() };
                    self.visit(path, &entry)?;
                }
                None => {
                    self.open.pop();
                }
            }
        }
        Ok(())
    }

    fn visit(&mut self, path: Box<str>, entry: &DirEntry) -> Result<(), ContextError> {
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Gone since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(ContextError::unreadable(&*path)(error)),
        };
        if metadata.is_dir() {
            let directory = self.found_at(path.clone(), FoundKind::Directory, &metadata);
            let hidden = match self.filter.visit(&path, Some(|| directory)) {
                Verdict::SkipTree => return Ok(()),
                Verdict::Skip => true,
                Verdict::Emit(late) => {
                    self.found.extend(late);
                    let directory = self.found_at(path.clone(), FoundKind::Directory, &metadata);
                    self.emit(directory)?;
                    false
                }
            };
            return self.open_directory(path.into(), hidden);
        }
        // The engine reads the rules from the tree, even when they exclude their own file.
        let is_rules = self.options.has_rules && *path == *IGNORE_FILE;
        match self.filter.visit(&path, None::<fn() -> Found>) {
            Verdict::Emit(late) => self.found.extend(late),
            Verdict::Skip | Verdict::SkipTree if is_rules => {}
            Verdict::Skip | Verdict::SkipTree => return Ok(()),
        }
        match self.leaf(&path, &metadata)? {
            Some(kind) => {
                let found = self.found_at(path, kind, &metadata);
                self.emit(found)
            }
            None => Ok(()),
        }
    }

    /// Sockets, pipes and devices are no part of a context.
    fn leaf(&mut self, path: &str, metadata: &Metadata) -> Result<Option<FoundKind>, ContextError> {
        if metadata.is_symlink() {
            let target = fs::read_link(self.root.join(path)).map_err(ContextError::unreadable(path))?;
            let target = target.into_os_string().into_string().map_err(|_| ContextError::Name { path: path.into() })?;
            return Ok(Some(FoundKind::Symlink(target.into())));
        }
        if !metadata.is_file() {
            return Ok(None);
        }
        if metadata.nlink() > 1 {
            match self.linked.entry((metadata.dev(), metadata.ino())) {
                std::collections::hash_map::Entry::Occupied(first) => {
                    return Ok(Some(FoundKind::HardLink(first.get().clone())));
                }
                std::collections::hash_map::Entry::Vacant(first) => {
                    first.insert(path.into());
                }
            }
        }
        self.bytes = self.bytes.saturating_add(metadata.len());
        Ok(Some(FoundKind::File(Stamp::of(metadata))))
    }

    fn found_at(&self, path: Box<str>, kind: FoundKind, metadata: &Metadata) -> Found {
        let own = nanoseconds(metadata.mtime(), metadata.mtime_nsec());
        let mode = (metadata.mode() & 0o7777) as u16;
        Found { path, kind, mode, mtime_ns: self.options.mtime_ns.unwrap_or(own) }
    }

    fn emit(&mut self, found: Found) -> Result<(), ContextError> {
        self.found.push(found);
        if self.found.len() > limits::CONTEXT_FILES {
            return Err(ContextError::Manifest(InvalidEntry::TooMany.into()));
        }
        if self.bytes > limits::CONTEXT_BYTES {
            return Err(ContextError::Manifest(InvalidEntry::TooLarge.into()));
        }
        Ok(())
    }

    /// A directory that is excluded, but might hold an exception, need not be readable.
    fn open_directory(&mut self, path: String, hidden: bool) -> Result<(), ContextError> {
        let shown = || if path.is_empty() { self.root.to_owned() } else { PathBuf::from(&path) };
        let reading = fs::read_dir(self.root.join(&path));
        let entries = match reading {
            Ok(entries) => entries,
            Err(error) if hidden && error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            Err(error) if !path.is_empty() && error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(ContextError::unreadable(shown())(error)),
        };
        let mut named = Vec::new();
        for entry in entries {
            let entry = entry.map_err(ContextError::unreadable(shown()))?;
            match entry.file_name().into_string() {
                Ok(name) => named.push((name.into_boxed_str(), entry)),
                Err(name) => {
                    return Err(ContextError::Name { path: shown().join(name).to_string_lossy().into_owned() });
                }
            }
        }
        named.sort_unstable_by(|left, right| right.0.cmp(&left.0));
        self.open.push(OpenDirectory { path, entries: named });
        Ok(())
    }
}

const fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("dir");
        let at = |path: &str| root.path().join(path);
        for directory in ["a", "a/deep", "b", "empty"] {
            fs::create_dir(at(directory)).expect("mkdir");
        }
        for file in ["a/one.txt", "a/deep/two.md", "a-b", "b/three.md", ".dockerignore", "z"] {
            fs::write(at(file), file).expect("write");
        }
        fs::hard_link(at("a/one.txt"), at("z-link")).expect("link");
        symlink("a/one.txt", at("link")).expect("symlink");
        fs::set_permissions(at("z"), fs::Permissions::from_mode(0o6711)).expect("chmod");
        root
    }

    fn paths(root: &tempfile::TempDir, rules: &[&str]) -> Vec<String> {
        let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
        let scan = Scan::of(root.path(), &ScanOptions::ignoring(&rules).expect("valid")).expect("scans");
        scan.found.iter().map(|found| found.path.to_string()).collect()
    }

    #[test]
    fn everything_is_found_in_manifest_order() {
        let root = tree();
        let expected = [
            ".dockerignore",
            "a",
            "a/deep",
            "a/deep/two.md",
            "a/one.txt",
            "a-b",
            "b",
            "b/three.md",
            "empty",
            "link",
            "z",
            "z-link",
        ];
        assert_eq!(paths(&root, &[]), expected);
    }

    #[test]
    fn links_and_modes_are_recorded() {
        let root = tree();
        let scan = Scan::of(root.path(), &ScanOptions::default()).expect("scans");
        let get = |path: &str| scan.found.iter().find(|found| &*found.path == path).expect("found");
        assert!(matches!(&get("link").kind, FoundKind::Symlink(target) if &**target == "a/one.txt"));
        assert!(matches!(&get("z-link").kind, FoundKind::HardLink(first) if &**first == "a/one.txt"));
        assert_eq!(get("z").mode, 0o6711);
    }

    #[test]
    fn rules_apply_with_exceptions_and_the_rules_file_stays() {
        let root = tree();
        assert_eq!(paths(&root, &["*", "!a/deep"]), [".dockerignore", "a", "a/deep", "a/deep/two.md"]);
        assert_eq!(
            paths(&root, &["**/*.md", ".dockerignore", "a-b", "z*"]),
            [".dockerignore", "a", "a/deep", "a/one.txt", "b", "empty", "link"]
        );
        // With its first name left out, the other name is the file.
        assert!(paths(&root, &["a"]).contains(&"z-link".to_owned()));
    }

    #[test]
    fn a_missing_root_and_a_file_are_told_apart() {
        let root = tree();
        assert!(matches!(root_of(&root.path().join("nope")), Err(ContextError::Missing { .. })));
        assert!(matches!(root_of(&root.path().join("z")), Err(ContextError::NotADirectory { .. })));
    }

    #[test]
    fn pipes_and_sockets_are_left_out() {
        let root = tempfile::tempdir().expect("dir");
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).expect("binds");
        assert!(paths(&root, &[]).is_empty());
    }
}
