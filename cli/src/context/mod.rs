//! A build's input on the client: scanned, hashed and uploaded once, so that a farm gets only what it lacks.
//!
//! `build` calls [`Context::prepare`] once and [`Context::upload`] before each submit; where the farm then answers
//! `CONTEXT_INCOMPLETE`, it uploads again with [`Trust::Nothing`]. Scanning and hashing never depend on the network.

mod archive;
mod dockerfile;
mod error;
mod git;
mod hash;
mod scan;
mod source;
mod stat_cache;
mod tree;
mod upload;
mod wire;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_common::{context::ContextDigest, spec};
use tokio::task::spawn_blocking;

pub use error::ContextError;
pub use source::Source;
pub use upload::Progress;
pub use wire::FarmChunks;

use dockerfile::DockerfileTree;
use scan::{Scan, ScanOptions};
use stat_cache::StatCache;
use tree::Tree;

/// What to build from, as the flags say it.
#[derive(Debug, Clone)]
pub struct ContextRequest {
    pub source: Source,
    /// `-f`: a path, or `-` for standard input.
    pub dockerfile: Option<String>,
    /// `--build-context NAME=DIRECTORY`; what else it may name is the engine's to resolve.
    pub named: BTreeMap<String, PathBuf>,
    /// Where the stat caches are; `None` keeps none. See [`default_cache_dir`].
    pub cache_dir: Option<PathBuf>,
}

/// Whether what an earlier upload sent is taken to be in the farm still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    EarlierUploads,
    /// Ask the farm about every chunk.
    Nothing,
}

/// What the farm holds now.
#[derive(Debug, Clone)]
pub struct Uploaded {
    /// `None` when only a Dockerfile was given.
    pub context: Option<ContextDigest>,
    pub dockerfile: spec::Dockerfile,
    pub named: BTreeMap<String, ContextDigest>,
    pub files: u64,
    pub bytes: u64,
    /// Bytes of chunks that were sent.
    pub bytes_sent: u64,
}

/// A scanned context, ready to upload.
#[derive(Debug)]
pub struct Context {
    trees: Arc<Vec<Tree>>,
    has_main: bool,
    named: Vec<String>,
    dockerfile: DockerfileTree,
    /// For people: a path, or a URL with its commit.
    origin: String,
    /// What was fetched or unpacked is removed with the context.
    _temporary: Option<tempfile::TempDir>,
}

/// `~/.cache/kiln`, or under XDG_CACHE_HOME.
#[must_use]
pub fn default_cache_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("kiln"))
}

impl Context {
    /// Fetches or unpacks the source if it is not a directory, reads the Dockerfile and scans the trees.
    ///
    /// # Errors
    /// One clear error for whatever is missing, unreadable or over a limit.
    pub async fn prepare(request: ContextRequest) -> Result<Self, ContextError> {
        let fetched = match &request.source {
            Source::Git(url) => Some(git::fetch(url).await?),
            Source::Directory(_) | Source::Stdin => None,
        };
        spawn_blocking(move || Self::prepare_local(request, fetched)).await.map_err(|_| ContextError::Interrupted)?
    }

    fn prepare_local(request: ContextRequest, fetched: Option<git::Fetched>) -> Result<Self, ContextError> {
        let given = request.dockerfile.as_deref();
        let cache_dir = request.cache_dir.as_deref();
        let (main, dockerfile, origin, temporary) = match (request.source, fetched) {
            (Source::Directory(path), _) => {
                let root = scan::root_of(&path)?;
                let dockerfile = DockerfileTree::beside(&root, given)?;
                let ignore = dockerfile.ignore_rules(&root)?;
                let scan = Scan::of(&root, &ScanOptions::ignoring(&ignore)?)?;
                let tree = Tree::cached(scan, StatCache::open(cache_dir, &root));
                (Some(tree), dockerfile, path.display().to_string(), None)
            }
            (Source::Git(url), Some(fetched)) => {
                let dockerfile = DockerfileTree::within(&fetched.root, given)?;
                let scan = Scan::of(&fetched.root, &ScanOptions::dated(fetched.commit_time))?;
                (Some(Tree::new(scan)), dockerfile, format!("{url} ({})", fetched.commit), Some(fetched.directory))
            }
            (Source::Git(_), None) => return Err(ContextError::Interrupted),
            (Source::Stdin, _) => match archive::read_stdin(given)? {
                archive::Stdin::Dockerfile(text) => (None, DockerfileTree::of_text(text)?, "-".into(), None),
                archive::Stdin::Archive(directory) => {
                    let dockerfile = DockerfileTree::within(directory.path(), given)?;
                    let scan = Scan::of(directory.path(), &ScanOptions::default())?;
                    (Some(Tree::new(scan)), dockerfile, "-".into(), Some(directory))
                }
            },
        };
        let has_main = main.is_some();
        let mut trees: Vec<Tree> = main.into_iter().collect();
        let mut named = Vec::new();
        for (name, path) in request.named {
            trees.push(scan_named(&name, &path, cache_dir)?);
            named.push(name);
        }
        Ok(Self { trees: Arc::new(trees), has_main, named, dockerfile, origin, _temporary: temporary })
    }

    /// The Dockerfile's text, for what the client itself reads out of it.
    #[must_use]
    pub fn dockerfile_text(&self) -> &str {
        self.dockerfile.text()
    }

    /// The Dockerfile's name within its tree.
    #[must_use]
    pub fn dockerfile_name(&self) -> &str {
        self.dockerfile.name()
    }

    /// Where the context came from, for people.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Hashes what is new and sends what the farm lacks. `farm_name` tells farms apart in the stat caches.
    ///
    /// # Errors
    /// When a file cannot be read, or the farm refuses or goes away.
    pub async fn upload(
        &self,
        farm: Arc<dyn FarmChunks>,
        farm_name: &str,
        trust: Trust,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Uploaded, ContextError> {
        let job = upload::Job {
            trees: self.trees.clone(),
            dockerfile: self.dockerfile.clone(),
            farm_name: farm_name.to_owned(),
            trust,
        };
        let sent = upload::run(farm, job, Arc::new(progress)).await?;
        let mut digests = sent.digests.into_iter();
        let context = if self.has_main { digests.next() } else { None };
        Ok(Uploaded {
            context,
            dockerfile: spec::Dockerfile { tree: sent.dockerfile, filename: self.dockerfile.name().to_owned() },
            named: self.named.iter().cloned().zip(digests).collect(),
            files: sent.progress.files,
            bytes: sent.progress.bytes,
            bytes_sent: sent.progress.sent,
        })
    }
}

fn scan_named(name: &str, path: &Path, cache_dir: Option<&Path>) -> Result<Tree, ContextError> {
    let in_named = |error| ContextError::Named { name: name.to_owned(), source: Box::new(error) };
    let root = scan::root_of(path).map_err(in_named)?;
    let ignore = dockerfile::root_ignore_rules(&root).map_err(in_named)?;
    let scan = Scan::of(&root, &ScanOptions::ignoring(&ignore).map_err(in_named)?).map_err(in_named)?;
    Ok(Tree::cached(scan, StatCache::open(cache_dir, &root)))
}

#[cfg(all(test, feature = "up"))]
mod tests;
