//! Build contexts on a worker: trees that fetch a file's contents when the engine asks for them, through a bounded
//! cache on disk that all tasks share, and the BuildKit session service that serves them.
//!
//! `job` opens one [`ContextTree`] for each tree of its build over a [`ChunkSource`] and mounts a [`FileSyncService`].

mod cache;
mod filesync;
mod once;
mod source;
mod store;
mod tree;

pub use cache::CacheConfig;
pub use filesync::FileSyncService;
pub use source::{ChunkSource, ChunkStream, MemorySource, RemoteSource, SourceError};
pub use store::{ContextError, ContextStore};
pub use tree::ContextTree;
