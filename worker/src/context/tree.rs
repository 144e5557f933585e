//! One context as the engine sees it: its manifest in memory, its files' contents behind the store.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures_util::StreamExt;
use kiln_common::{
    context::{ChunkId, ChunkRef, ContextDigest, Manifest, ManifestDecoder},
    limits,
};

use super::{
    source::{ChunkSource, ChunkStream, SourceError},
    store::{ContextError, ContextStore, Keep},
};

/// A context that is open, for as many attempts as read it now.
pub struct ContextTree {
    digest: Option<ContextDigest>,
    manifest: Manifest,
    reader: Option<Reader>,
    failure: OnceLock<ContextError>,
}

/// Where file contents come from.
struct Reader {
    store: Arc<ContextStore>,
    source: CountingSource,
}

impl std::fmt::Debug for ContextTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContextTree").field("entries", &self.manifest.entries().len()).finish_non_exhaustive()
    }
}

impl ContextTree {
    /// A tree without a file.
    #[must_use]
    pub fn empty() -> Arc<Self> {
        Arc::new(Self { digest: None, manifest: Manifest::default(), reader: None, failure: OnceLock::new() })
    }

    /// Reads the root and the manifest, from the cache as far as it has them; no file contents.
    ///
    /// # Errors
    /// When the source lacks a chunk, or what it gives is no manifest.
    pub async fn open(
        store: &Arc<ContextStore>,
        source: Arc<dyn ChunkSource>,
        digest: ContextDigest,
    ) -> Result<Arc<Self>, ContextError> {
        let reader = Reader { store: store.clone(), source: CountingSource { source, bytes: Arc::default() } };
        let root = reader.root(digest).await?;
        let mut decoder = ManifestDecoder::new(&root)?;
        let mut entries = Vec::with_capacity(usize::try_from(decoder.root().entries).unwrap_or_default());
        let chunks = decoder.root().chunks.clone();
        for window in windows(&chunks) {
            for bytes in reader.store.read(&reader.source, window, Keep::All).await? {
                decoder.push(&bytes, |entry| entries.push(entry))?;
            }
        }
        decoder.finish()?;
        let manifest = Manifest::new(entries)?;
        Ok(Arc::new(Self { digest: Some(digest), manifest, reader: Some(reader), failure: OnceLock::new() }))
    }

    /// `None` for the tree without a file.
    #[must_use]
    pub const fn digest(&self) -> Option<ContextDigest> {
        self.digest
    }

    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes that came from the source and not from the cache since this was last asked.
    pub fn take_bytes_fetched(&self) -> u64 {
        self.reader.as_ref().map_or(0, |reader| reader.source.bytes.swap(0, Ordering::Relaxed))
    }

    /// Why the engine could not be given what it asked for: the build's failure is then the farm's.
    #[must_use]
    pub fn failure(&self) -> Option<&ContextError> {
        self.failure.get()
    }

    pub(super) fn fail(&self, error: ContextError) {
        let _ = self.failure.set(error);
    }

    pub(super) async fn read(&self, chunks: &[ChunkRef]) -> Result<Vec<Bytes>, ContextError> {
        match &self.reader {
            Some(reader) => reader.store.read(&reader.source, chunks, Keep::AskedAgain).await,
            None => Ok(Vec::new()),
        }
    }
}

/// Runs of chunks that are read at once: up to [`limits::CONTEXT_READ_BYTES`] each, or one chunk.
pub(super) fn windows(mut chunks: &[ChunkRef]) -> impl Iterator<Item = &[ChunkRef]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fit = chunks.iter().take_while(|chunk| {
            bytes += u64::from(chunk.len);
            bytes <= limits::CONTEXT_READ_BYTES
        });
        let count = fit.count().max(1).min(chunks.len());
        let (window, rest) = chunks.split_at(count);
        chunks = rest;
        (!window.is_empty()).then_some(window)
    })
}

impl Reader {
    /// The root's length is not known, so it does not go through the cache's records.
    async fn root(&self, digest: ContextDigest) -> Result<Bytes, ContextError> {
        let mut stream = self.source.fetch(&[digest.0]).await?;
        let bytes = stream.next().await.ok_or(ContextError::Short { asked: 1, given: 0 })??;
        if ChunkId::of(&bytes) == digest.0 { Ok(bytes) } else { Err(ContextError::Corrupt { id: digest.0 }) }
    }
}

/// Counts what passes through.
struct CountingSource {
    source: Arc<dyn ChunkSource>,
    bytes: Arc<AtomicU64>,
}

#[async_trait::async_trait]
impl ChunkSource for CountingSource {
    async fn fetch(&self, ids: &[ChunkId]) -> Result<ChunkStream, SourceError> {
        let count = self.bytes.clone();
        let counted = self.source.fetch(ids).await?.inspect(move |chunk| {
            let bytes = chunk.as_ref().map_or(0, Bytes::len);
            count.fetch_add(bytes as u64, Ordering::Relaxed);
        });
        Ok(counted.boxed())
    }
}
