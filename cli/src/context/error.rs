//! Why a context cannot be read or sent.

use std::{io, path::PathBuf};

use kiln_common::{
    context::{InvalidManifest, ignore::InvalidIgnoreFile, pattern::InvalidPattern},
    limits,
};

#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("the context `{}` does not exist; give a directory, a Git URL or -", .path.display())]
    Missing { path: PathBuf },
    #[error("the context `{}` is not a directory; to build from a Dockerfile alone use -f, or `-` and standard input", .path.display())]
    NotADirectory { path: PathBuf },
    #[error("cannot read `{}` of the context: {source}; make it readable or exclude it in .dockerignore", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the name of `{path}` in the context is not UTF-8; rename it or exclude its directory in .dockerignore")]
    Name { path: String },
    #[error("there is no Dockerfile `{}`; name another one with -f", .path.display())]
    NoDockerfile { path: PathBuf },
    #[error("cannot read the Dockerfile `{}`: {source}", .path.display())]
    DockerfileUnreadable { path: PathBuf, source: io::Error },
    #[error("the Dockerfile `{}` lies outside of the context; it has to be in it", .path.display())]
    DockerfileOutside { path: PathBuf },
    #[error("the Dockerfile `{name}` is larger than {} bytes or not UTF-8", limits::DOCKERFILE_BYTES)]
    DockerfileMalformed { name: String },
    #[error("standard input cannot be both the context and the Dockerfile; give the context as a directory")]
    StdinTwice,
    #[error("standard input is a Dockerfile, so -f names a second one; leave it out")]
    TwoDockerfiles,
    #[error("standard input is empty; pipe a tar archive or a Dockerfile into it")]
    StdinEmpty,
    #[error("standard input is compressed with {0}; pipe a plain tar archive or one compressed with gzip")]
    Compression(&'static str),
    #[error("cannot unpack the archive from standard input: {0}")]
    Archive(#[source] io::Error),
    #[error("cannot read standard input: {0}")]
    Stdin(#[source] io::Error),
    #[error("the ignore file `{}` is not sound: {source}", .path.display())]
    IgnoreFile { path: PathBuf, source: InvalidIgnoreFile },
    #[error("the ignore file has a pattern that is not sound: {0}")]
    Pattern(#[from] InvalidPattern),
    #[error(transparent)]
    Manifest(#[from] InvalidManifest),
    #[error("`{path}` changed while it was read; build again when nothing writes to the context")]
    Changed { path: String },
    #[error("the named context `{name}`: {source}")]
    Named { name: String, source: Box<ContextError> },
    #[error("`{url}` is not a Git URL: {why}")]
    GitUrl { url: String, why: &'static str },
    #[error("cannot run git: {0}; install it, or give the context as a directory")]
    GitMissing(#[source] io::Error),
    #[error("cannot fetch {url}: {message}")]
    Git { url: String, message: String },
    #[error("fetching {url} took longer than {} s", limits::GIT_FETCH_TIMEOUT.as_secs())]
    GitTimeout { url: String },
    #[error("cannot make a temporary directory: {0}")]
    Temporary(#[source] io::Error),
    #[error("the farm did not take the context: {}", .0.message())]
    Farm(Box<tonic::Status>),
    #[error("reading the context was interrupted")]
    Interrupted,
}

impl ContextError {
    pub(super) fn unreadable(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Unreadable { path, source }
    }

    /// What the farm answered, when it was the farm.
    #[must_use]
    pub fn status(&self) -> Option<&tonic::Status> {
        if let Self::Farm(status) = self { Some(status) } else { None }
    }
}

impl From<tonic::Status> for ContextError {
    fn from(status: tonic::Status) -> Self {
        Self::Farm(Box::new(status))
    }
}
