//! Reads chunks through the cache: one store for a worker, so that tasks that need the same chunk fetch it once.
//!
//! A file's chunk is written to the cache when it is asked for a second time, for the engine keeps what it took: writing
//! each context twice would wear a board's card and hold the engine's own writes up.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::StreamExt;
use kiln_common::{
    context::{ChunkId, ChunkRef, InvalidManifest},
    limits,
};
use tokio::{sync::Semaphore, task::spawn_blocking};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    cache::{CacheConfig, ChunkCache},
    once::Once,
    source::{ChunkSource, SourceError},
};

/// Why a context cannot be read. All are the farm's failures, none the build's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ContextError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("chunk {id} of the context arrived with other bytes than it has; the coordinator's objects may be damaged")]
    Corrupt { id: ChunkId },
    #[error("the source ended after {given} of {asked} chunks")]
    Short { asked: usize, given: usize },
    #[error(transparent)]
    Manifest(#[from] InvalidManifest),
    #[error("the engine asked for file {id}, which was not offered")]
    UnknownFile { id: u32 },
    #[error("reading the context was interrupted")]
    Interrupted,
}

/// Which chunks the cache keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// All: every build of a tree reads its manifest.
    All,
    /// Those that are asked for again, now or later.
    AskedAgain,
}

/// The chunks that a worker has and those that are on their way.
#[derive(Debug)]
pub struct ContextStore {
    cache: ChunkCache,
    flights: Mutex<HashMap<ChunkId, Landing>>,
    once: Mutex<Once>,
    /// Batches that wait to be written to the cache: bounds the memory they hold.
    writers: Arc<Semaphore>,
}

/// The end of the flight that brings a chunk.
#[derive(Debug)]
struct Landing {
    landed: CancellationToken,
    /// Whether others wait for it, who will look in the cache.
    awaited: bool,
}

impl ContextStore {
    /// Opens the cache in `directory`, which this store alone uses.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub async fn open(directory: &Path, config: CacheConfig) -> io::Result<Arc<Self>> {
        let directory: PathBuf = directory.to_owned();
        let cache = spawn_blocking(move || ChunkCache::open(&directory, config)).await.map_err(io::Error::other)??;
        let writers = Arc::new(Semaphore::new(limits::FILE_SYNC_BATCHES));
        Ok(Arc::new(Self { cache, flights: Mutex::default(), once: Mutex::default(), writers }))
    }

    /// Gives about `bytes` of the disk back, the oldest chunks first; they are fetched again when they are needed.
    pub async fn shrink(self: &Arc<Self>, bytes: u64) -> u64 {
        let store = self.clone();
        spawn_blocking(move || store.cache.shrink(bytes)).await.unwrap_or(0)
    }

    /// The chunks' bytes in the order of `chunks`, from the cache or from `source`; all of them are held at once.
    pub(super) async fn read(
        self: &Arc<Self>,
        source: &dyn ChunkSource,
        chunks: &[ChunkRef],
        keep: Keep,
    ) -> Result<Vec<Bytes>, ContextError> {
        let mut found: HashMap<ChunkId, Bytes> = HashMap::with_capacity(chunks.len());
        loop {
            let wanted: Vec<ChunkRef> = chunks.iter().filter(|chunk| !found.contains_key(&chunk.id)).copied().collect();
            if wanted.is_empty() {
                return Ok(chunks.iter().filter_map(|chunk| found.get(&chunk.id).cloned()).collect());
            }
            let missing = self.read_cache(wanted, &mut found).await?;
            let claim = self.claim(missing);
            if !claim.ours.is_empty() {
                let fetched = self.fetch(source, claim.ours).await?;
                found.extend(fetched.iter().cloned());
                self.keep(fetched, keep, claim.flight).await?;
            }
            // What others fetch is in the cache afterwards; if their fetch failed, the next turn is ours.
            for flight in claim.others {
                flight.cancelled().await;
            }
        }
    }

    /// Takes what the cache has; the rest, each chunk once.
    async fn read_cache(
        self: &Arc<Self>,
        wanted: Vec<ChunkRef>,
        found: &mut HashMap<ChunkId, Bytes>,
    ) -> Result<Vec<ChunkRef>, ContextError> {
        let store = self.clone();
        let lookup = move || {
            let mut seen = HashSet::with_capacity(wanted.len());
            let unique = wanted.into_iter().filter(|chunk| seen.insert(chunk.id));
            unique.map(|chunk| (chunk, store.cache.get(&chunk))).collect::<Vec<_>>()
        };
        let looked_up = spawn_blocking(lookup).await.map_err(|_| ContextError::Interrupted)?;
        let mut missing = Vec::new();
        for (chunk, bytes) in looked_up {
            match bytes {
                Some(bytes) => {
                    found.insert(chunk.id, bytes);
                }
                None => missing.push(chunk),
            }
        }
        Ok(missing)
    }

    /// Divides missing chunks into those that nobody fetches yet, now ours, and the flights that bring the others.
    fn claim(self: &Arc<Self>, missing: Vec<ChunkRef>) -> Claim {
        let token = CancellationToken::new();
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        let mut flights = self.flights();
        for chunk in missing {
            match flights.get_mut(&chunk.id) {
                Some(flight) => {
                    flight.awaited = true;
                    others.push(flight.landed.clone());
                }
                // It landed since the cache was read.
                None if self.cache.contains(chunk.id) => {}
                None => {
                    flights.insert(chunk.id, Landing { landed: token.clone(), awaited: false });
                    ours.push(chunk);
                }
            }
        }
        let ids = ours.iter().map(|chunk| chunk.id).collect();
        Claim { flight: Flight { store: self.clone(), ids, _landed: token.drop_guard() }, ours, others }
    }

    /// Whole chunks from the source, in the order asked.
    async fn fetch(
        &self,
        source: &dyn ChunkSource,
        wanted: Vec<ChunkRef>,
    ) -> Result<Vec<(ChunkId, Bytes)>, ContextError> {
        let mut fetched = Vec::with_capacity(wanted.len());
        for part in wanted.chunks(limits::CHUNK_IDS_PER_CALL) {
            let ids: Vec<ChunkId> = part.iter().map(|chunk| chunk.id).collect();
            let mut stream = source.fetch(&ids).await?;
            for (given, chunk) in part.iter().enumerate() {
                let bytes = stream.next().await.ok_or(ContextError::Short { asked: part.len(), given })??;
                if bytes.len() != chunk.len as usize || ChunkId::of(&bytes) != chunk.id {
                    return Err(ContextError::Corrupt { id: chunk.id });
                }
                fetched.push((chunk.id, bytes));
            }
        }
        Ok(fetched)
    }

    /// Writes what is kept to the cache behind the reader's back; the flight lands when that is done.
    async fn keep(
        self: &Arc<Self>,
        fetched: Vec<(ChunkId, Bytes)>,
        keep: Keep,
        flight: Flight,
    ) -> Result<(), ContextError> {
        let kept = match keep {
            Keep::All => fetched,
            Keep::AskedAgain => self.asked_again(fetched),
        };
        if kept.is_empty() {
            return Ok(());
        }
        let permit = self.writers.clone().acquire_owned().await.map_err(|_| ContextError::Interrupted)?;
        let store = self.clone();
        spawn_blocking(move || {
            if let Err(error) = store.cache.put(&kept) {
                tracing::warn!(%error, "cannot write to the context cache; the chunks will be fetched again");
            }
            drop((flight, permit));
        });
        Ok(())
    }

    /// The chunks that somebody waits for, or that were fetched before.
    fn asked_again(&self, mut fetched: Vec<(ChunkId, Bytes)>) -> Vec<(ChunkId, Bytes)> {
        let (flights, mut once) = (self.flights(), self.once.lock().unwrap_or_else(PoisonError::into_inner));
        fetched.retain(|(id, _)| !once.note(*id) || flights.get(id).is_some_and(|flight| flight.awaited));
        fetched
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<ChunkId, Landing>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Claim {
    ours: Vec<ChunkRef>,
    flight: Flight,
    others: Vec<CancellationToken>,
}

/// Chunks that one reader fetches. Dropping it, whatever the reason, lets those who wait go on.
struct Flight {
    store: Arc<ContextStore>,
    ids: Vec<ChunkId>,
    _landed: DropGuard,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut flights = self.store.flights();
        for id in &self.ids {
            flights.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{ChunkStream, MemorySource};

    fn source(count: usize) -> (MemorySource, Vec<ChunkRef>) {
        let mut source = MemorySource::default();
        let chunks = (0..count)
            .map(|seed| {
                let bytes = seed.to_le_bytes().repeat(100);
                ChunkRef { len: bytes.len() as u32, id: source.insert(bytes) }
            })
            .collect();
        (source, chunks)
    }

    async fn store(directory: &Path) -> Arc<ContextStore> {
        ContextStore::open(directory, CacheConfig::default()).await.expect("opens")
    }

    #[tokio::test]
    async fn chunks_come_in_the_order_asked_and_are_fetched_once() {
        let directory = tempfile::tempdir().expect("dir");
        let (source, chunks) = source(50);
        let store = store(directory.path()).await;
        let twice: Vec<_> = chunks.iter().chain(chunks.iter().rev()).copied().collect();
        for _ in 0..3 {
            let read = store.read(&source, &twice, Keep::All).await.expect("reads");
            let ids: Vec<_> = read.iter().map(|bytes| ChunkId::of(bytes)).collect();
            assert_eq!(ids, twice.iter().map(|chunk| chunk.id).collect::<Vec<_>>());
            // The cache is written in the background; a new permit for all says that it is done.
            let _all = store.writers.acquire_many(limits::FILE_SYNC_BATCHES as u32).await.expect("open");
        }
        assert_eq!(source.chunks_fetched(), 50);
    }

    #[tokio::test]
    async fn a_file_s_chunks_are_kept_when_they_are_asked_for_again() {
        let directory = tempfile::tempdir().expect("dir");
        let (source, chunks) = source(50);
        let store = store(directory.path()).await;
        for fetched in [50, 100, 100] {
            store.read(&source, &chunks, Keep::AskedAgain).await.expect("reads");
            let _all = store.writers.acquire_many(limits::FILE_SYNC_BATCHES as u32).await.expect("open");
            assert_eq!(source.chunks_fetched(), fetched);
            assert_eq!(store.cache.contains(chunks[0].id), fetched == 100);
        }
        assert!(store.flights().is_empty());
    }

    #[tokio::test]
    async fn a_chunk_that_is_not_kept_has_one_flight_until_it_lands() {
        let directory = tempfile::tempdir().expect("dir");
        let (source, chunks) = source(1);
        let store = store(directory.path()).await;
        let first = store.claim(chunks.clone());
        let fetched = store.fetch(&source, chunks.clone()).await.expect("fetched");
        assert!(store.asked_again(fetched).is_empty());
        let second = store.claim(chunks.clone());
        assert!(second.ours.is_empty(), "a second flight would end with the first one");
        drop(first);
        assert!(second.others[0].is_cancelled());
        assert_eq!(store.claim(chunks).ours.len(), 1);
    }

    /// Gives nothing before it is opened.
    struct Gate {
        source: MemorySource,
        open: CancellationToken,
    }

    #[async_trait::async_trait]
    impl ChunkSource for Gate {
        async fn fetch(&self, ids: &[ChunkId]) -> Result<ChunkStream, SourceError> {
            self.open.cancelled().await;
            self.source.fetch(ids).await
        }
    }

    #[tokio::test]
    async fn tasks_that_need_the_same_chunks_at_once_fetch_them_once() {
        let directory = tempfile::tempdir().expect("dir");
        let (source, chunks) = source(200);
        let (gate, store) = (Gate { source, open: CancellationToken::new() }, store(directory.path()).await);
        let gate = Arc::new(gate);
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (store, gate, chunks) = (store.clone(), gate.clone(), chunks.clone());
                tokio::spawn(
                    async move { store.read(gate.as_ref(), &chunks, Keep::AskedAgain).await.expect("reads").len() },
                )
            })
            .collect();
        let is_awaited = || {
            let flights = store.flights();
            flights.len() == 200 && flights.values().all(|flight| flight.awaited)
        };
        while !is_awaited() {
            tokio::task::yield_now().await;
        }
        gate.open.cancel();
        for task in tasks {
            assert_eq!(task.await.expect("joins"), 200);
        }
        assert_eq!(gate.source.chunks_fetched(), 200);
        assert!(store.flights().is_empty());
    }

    #[tokio::test]
    async fn a_missing_or_corrupt_chunk_is_an_error_that_names_it_and_blocks_nobody() {
        let directory = tempfile::tempdir().expect("dir");
        let (mut source, chunks) = source(3);
        let store = store(directory.path()).await;
        let absent = ChunkRef { id: ChunkId::of(b"absent"), len: 6 };
        let error = store.read(&source, &[chunks[0], absent], Keep::AskedAgain).await.expect_err("missing");
        assert!(error.to_string().contains(&absent.id.to_string()), "{error}");
        source.corrupt(chunks[1].id, "other bytes");
        let error = store.read(&source, &chunks, Keep::AskedAgain).await.expect_err("corrupt");
        assert!(matches!(error, ContextError::Corrupt { id } if id == chunks[1].id));
        assert!(store.flights().is_empty());
        assert_eq!(store.read(&source, &[chunks[0], chunks[2]], Keep::AskedAgain).await.expect("reads").len(), 2);
    }
}
