//! Build contexts in the farm: chunks from clients, packed into objects, given to workers, collected when unused.
//!
//! [`service::ContextUploads`] takes them, `api` asks [`Contexts::is_complete`] at submit, `sessions` streams
//! [`fetch_context`] to workers, and [`housekeeping`] calls [`Contexts::collect`]. A chunk that is listed in the index
//! is durable in its pack, and a root that is known as complete has all its chunks.

mod collect;
mod complete;
mod error;
pub mod housekeeping;
mod index;
mod pack;
mod packs;
mod read;
mod recent;
pub mod service;
mod upload;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kiln_common::context::ChunkId;
use object_store::{ObjectStore, local::LocalFileSystem};
use tokio::{sync::Semaphore, task::spawn_blocking};

pub use collect::Collected;
pub use complete::Completeness;
pub use error::ContextsError;
pub use read::fetch_context;
pub use upload::{Stored, Upload};

use index::Index;
use packs::Packs;
use recent::Recent;

/// Packs that are being filled or written at once, in all uploads: bounds the memory they hold.
const PACKS_IN_MEMORY: usize = 8;

/// The chunk store of one coordinator.
#[derive(Debug)]
pub struct Contexts {
    index: Arc<Index>,
    packs: Packs,
    next_pack: AtomicU64,
    memory: Arc<Semaphore>,
    /// One collection at a time.
    collecting: tokio::sync::Mutex<()>,
    recent: Recent,
    /// Shared while a context is found complete, taken alone while a collection is applied: none is collected between.
    gate: tokio::sync::RwLock<()>,
}

impl Contexts {
    /// Opens the store: packs in `objects` under `contexts/`, the index in `directory`. A lost or damaged index is built
    /// anew from the packs, and packs that a crash left unlisted are listed.
    ///
    /// # Errors
    /// When the directory or the objects cannot be read or written.
    pub async fn open(objects: Arc<dyn ObjectStore>, directory: &Path) -> Result<Arc<Self>, ContextsError> {
        let directory = directory.to_owned();
        let index = Arc::new(blocking(move || Index::open(&directory)).await?);
        let packs = Packs::new(objects);
        let next_pack = packs::reconcile(&packs, &index).await?;
        Ok(Arc::new(Self {
            index,
            packs,
            next_pack: AtomicU64::new(next_pack),
            memory: Arc::new(Semaphore::new(PACKS_IN_MEMORY)),
            recent: Recent::default(),
            collecting: tokio::sync::Mutex::default(),
            gate: tokio::sync::RwLock::default(),
        }))
    }

    /// [`Self::open`] with packs and index under one local directory; what is written is flushed to the disk.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_local(directory: &Path) -> Result<Arc<Self>, ContextsError> {
        let created = directory.to_owned();
        blocking(move || std::fs::create_dir_all(created).map_err(ContextsError::from)).await?;
        let objects = LocalFileSystem::new_with_prefix(directory)?.with_fsync(true);
        Self::open(Arc::new(objects), directory).await
    }

    /// Which of these chunks the farm lacks, in the order asked.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn find_missing(&self, ids: Vec<ChunkId>) -> Result<Vec<ChunkId>, ContextsError> {
        let index = self.index.clone();
        blocking(move || index.missing(ids)).await
    }

    fn number_pack(&self) -> u64 {
        self.next_pack.fetch_add(1, Ordering::Relaxed)
    }
}

/// Runs what blocks on the disk or on hashing where that is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ContextsError> + Send + 'static,
) -> Result<T, ContextsError> {
    spawn_blocking(work).await.map_err(|_| ContextsError::Interrupted)?
}

#[cfg(test)]
mod tests;
