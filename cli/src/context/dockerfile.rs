//! The Dockerfile and its ignore file: a small tree of their own, and which rules apply to the context.
//!
//! Rules are BuildKit's: `<Dockerfile>.dockerignore` beside the Dockerfile wins over `.dockerignore` in the context's
//! root. They are for directories: a Git or tar context is taken whole, so its Dockerfile brings an ignore file
//! without a rule, which keeps the engine from reading one in the tree.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kiln_common::{
    context::{ChunkId, ChunkRef, Entry, EntryKind, ignore::parse_ignore_file},
    limits,
};

use super::ContextError;

const DEFAULT_NAME: &str = "Dockerfile";
pub(super) const IGNORE_FILE: &str = ".dockerignore";
const NO_RULES: &[u8] = b"# the context is taken whole\n";

/// The Dockerfile's name and text, and its own ignore file.
#[derive(Debug, Clone)]
pub(super) struct DockerfileTree {
    name: String,
    text: String,
    ignore: Option<Vec<u8>>,
}

impl DockerfileTree {
    /// For a context that is a directory: `-f` is relative to where the user is; without it, in the context's root.
    pub(super) fn beside(root: &Path, given: Option<&str>) -> Result<Self, ContextError> {
        let path = match given {
            Some("-") => {
                let mut text = Vec::new();
                let most = limits::DOCKERFILE_BYTES as u64 + 1;
                io::Read::read_to_end(&mut io::Read::take(io::stdin().lock(), most), &mut text)
                    .map_err(ContextError::Stdin)?;
                return Self::new(DEFAULT_NAME.into(), text, None);
            }
            Some(path) => with_lower_case(PathBuf::from(path)),
            None => with_lower_case(root.join(DEFAULT_NAME)),
        };
        let text = read_bounded(&path)?;
        let ignore = match fs::read(ignore_beside(&path)) {
            Ok(rules) => Some(rules),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(ContextError::unreadable(ignore_beside(&path))(error)),
        };
        Self::new(file_name(&path), text, ignore)
    }

    /// For a context that was fetched or unpacked: `-f` names a file in it, and no link leads out.
    pub(super) fn within(root: &Path, given: Option<&str>) -> Result<Self, ContextError> {
        if given == Some("-") {
            return Self::beside(root, given).map(Self::taken_whole);
        }
        let path = with_lower_case(root.join(given.unwrap_or(DEFAULT_NAME)));
        let shown = PathBuf::from(given.unwrap_or(DEFAULT_NAME));
        let base = root.canonicalize().map_err(ContextError::Temporary)?;
        let real = path.canonicalize().map_err(|_| ContextError::NoDockerfile { path: shown.clone() })?;
        if !real.starts_with(&base) {
            return Err(ContextError::DockerfileOutside { path: shown });
        }
        Self::new(file_name(&path), read_bounded(&real)?, None).map(Self::taken_whole)
    }

    /// Without a context.
    pub(super) fn of_text(text: Vec<u8>) -> Result<Self, ContextError> {
        Self::new(DEFAULT_NAME.into(), text, None)
    }

    fn new(name: String, text: Vec<u8>, ignore: Option<Vec<u8>>) -> Result<Self, ContextError> {
        let malformed = |name: &str| ContextError::DockerfileMalformed { name: name.to_owned() };
        if text.len() > limits::DOCKERFILE_BYTES {
            return Err(malformed(&name));
        }
        let text = String::from_utf8(text).map_err(|_| malformed(&name))?;
        Ok(Self { name, text, ignore })
    }

    fn taken_whole(self) -> Self {
        Self { ignore: Some(NO_RULES.to_vec()), ..self }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The rules for the context in `root`.
    pub(super) fn ignore_rules(&self, root: &Path) -> Result<Vec<String>, ContextError> {
        match &self.ignore {
            Some(rules) => parse_ignore_file(rules).map_err(|source| ContextError::IgnoreFile {
                path: format!("{}{IGNORE_FILE}", self.name).into(),
                source,
            }),
            None => root_ignore_rules(root),
        }
    }

    /// The tree's entries with their contents, in order.
    pub(super) fn entries(&self) -> Vec<(Entry, Vec<u8>)> {
        let ignore = self.ignore.clone().map(|rules| (format!("{}{IGNORE_FILE}", self.name), rules));
        let files = [(self.name.clone(), self.text.clone().into_bytes())].into_iter().chain(ignore);
        files
            .map(|(name, bytes)| {
                let chunk = ChunkRef { id: ChunkId::of(&bytes), len: bytes.len() as u32 };
                let chunks = if bytes.is_empty() { Vec::new() } else { vec![chunk] };
                (Entry { path: name.into(), kind: EntryKind::File(chunks.into()), mode: 0o644, mtime_ns: 0 }, bytes)
            })
            .collect()
    }
}

/// The rules of `.dockerignore` in a root; none without one, or when a link leads out of the root.
pub(super) fn root_ignore_rules(root: &Path) -> Result<Vec<String>, ContextError> {
    let path = root.join(IGNORE_FILE);
    match path.canonicalize() {
        Ok(real) if !real.starts_with(root) => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Ok(_) | Err(_) => {}
    }
    let bytes = fs::read(&path).map_err(ContextError::unreadable(&path))?;
    parse_ignore_file(&bytes).map_err(|source| ContextError::IgnoreFile { path, source })
}

/// `Dockerfile` may be written `dockerfile`.
fn with_lower_case(path: PathBuf) -> PathBuf {
    let lower = path.with_file_name(DEFAULT_NAME.to_ascii_lowercase());
    let default = path.file_name().is_some_and(|name| name == DEFAULT_NAME);
    if default && !path.exists() && lower.exists() { lower } else { path }
}

fn ignore_beside(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}{IGNORE_FILE}", file_name(path)))
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| DEFAULT_NAME.into(), |name| name.to_string_lossy().into_owned())
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ContextError> {
    let failed = |source: io::Error| {
        let path = path.into();
        if source.kind() == io::ErrorKind::NotFound {
            return ContextError::NoDockerfile { path };
        }
        ContextError::DockerfileUnreadable { path, source }
    };
    let file = fs::File::open(path).map_err(failed)?;
    let mut text = Vec::new();
    let most = limits::DOCKERFILE_BYTES as u64 + 1;
    io::Read::read_to_end(&mut io::Read::take(file, most), &mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("dir");
        for (path, text) in files {
            fs::create_dir_all(directory.path().join(path).parent().expect("parent")).expect("mkdir");
            fs::write(directory.path().join(path), text).expect("write");
        }
        directory
    }

    #[test]
    fn the_dockerfile_s_own_ignore_file_wins_even_when_it_is_empty() {
        let root = directory(&[
            ("Dockerfile", "FROM a"),
            (".dockerignore", "x"),
            ("other/my.Dockerfile", "FROM b"),
            ("other/my.Dockerfile.dockerignore", "y\n!z"),
            ("empty", "FROM c"),
            ("empty.dockerignore", ""),
        ]);
        let rules = |given: Option<&str>| {
            let given = given.map(|name| root.path().join(name).display().to_string());
            let tree = DockerfileTree::beside(root.path(), given.as_deref()).expect("reads");
            (tree.entries().len(), tree.ignore_rules(root.path()).expect("rules"))
        };
        assert_eq!(rules(None), (1, vec!["x".to_owned()]));
        assert_eq!(rules(Some("other/my.Dockerfile")), (2, vec!["y".to_owned(), "!z".to_owned()]));
        assert_eq!(rules(Some("empty")), (2, vec![]));
    }

    #[test]
    fn a_lower_case_dockerfile_is_found_and_a_missing_one_named() {
        let root = directory(&[("dockerfile", "FROM a")]);
        assert_eq!(DockerfileTree::beside(root.path(), None).expect("reads").name(), "dockerfile");
        let error = DockerfileTree::beside(root.path(), Some("/no/such")).expect_err("missing");
        assert_eq!(error.to_string(), "there is no Dockerfile `/no/such`; name another one with -f");
    }

    #[test]
    fn a_link_cannot_make_a_fetched_context_read_the_user_s_files() {
        let root = directory(&[("sub/Dockerfile", "FROM a")]);
        std::os::unix::fs::symlink("/etc/hostname", root.path().join("Dockerfile")).expect("link");
        for given in [None, Some("../../etc/hostname"), Some("/etc/hostname")] {
            assert!(DockerfileTree::within(root.path(), given).is_err(), "{given:?}");
        }
        let tree = DockerfileTree::within(root.path(), Some("sub/Dockerfile")).expect("reads");
        assert_eq!((tree.text(), tree.entries().len()), ("FROM a", 2));
    }
}
