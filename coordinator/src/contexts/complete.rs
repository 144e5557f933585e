//! Whether the farm has all of a context: asked at every submit, answered from memory of the last time where it can be.

use std::{collections::HashSet, time::Duration};

use futures_util::TryStreamExt;
use kiln_common::{
    Timestamp,
    context::{ChunkId, ContextDigest, EntryKind, ManifestDecoder},
};

use super::{Contexts, blocking, error::ContextsError};

/// A root's last use is written down this coarsely, so that a known context costs no write.
pub(super) const TOUCH_EVERY: Duration = Duration::from_secs(3600);
/// Manifest chunks that are read at once.
const MANIFEST_CHUNKS: usize = 64;

/// What the farm has of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completeness {
    Complete,
    /// At least this many chunks are missing; the client uploads and submits again.
    Missing(u64),
}

impl Contexts {
    /// Whether all chunks of a context are here; notes its use, which keeps it from collection.
    ///
    /// # Errors
    /// When the root or the manifest is not one, or the store fails.
    pub async fn is_complete(&self, root: ContextDigest, now: Timestamp) -> Result<Completeness, ContextsError> {
        let _gate = self.gate.read().await;
        let index = self.index.clone();
        let used = blocking(move || index.root(root)).await?;
        match used {
            Some(used) if now.since(used) < TOUCH_EVERY => return Ok(Completeness::Complete),
            Some(_) => {}
            None => {
                let missing = self.count_missing(root).await?;
                if missing > 0 {
                    return Ok(Completeness::Missing(missing));
                }
            }
        }
        let index = self.index.clone();
        blocking(move || index.touch_root(root, now)).await?;
        Ok(Completeness::Complete)
    }

    async fn count_missing(&self, root: ContextDigest) -> Result<u64, ContextsError> {
        let mut missing = 0;
        let walked = self
            .walk(root, async |ids| {
                missing += self.find_missing(ids).await?.len() as u64;
                Ok(())
            })
            .await;
        match walked {
            Ok(()) => Ok(missing),
            // The manifest itself is not all here.
            Err(ContextsError::Missing { .. }) => Ok(missing + 1),
            Err(error) => Err(error),
        }
    }

    /// Hands the ids of all chunks of a context to `each`, some at a time: the root's, the manifest's, the files'.
    ///
    /// # Errors
    /// [`ContextsError::Missing`] when the root or a chunk of the manifest is not here.
    pub(super) async fn walk(
        &self,
        root: ContextDigest,
        mut each: impl AsyncFnMut(Vec<ChunkId>) -> Result<(), ContextsError>,
    ) -> Result<(), ContextsError> {
        let bytes = self.read_one(root.0).await?;
        let mut decoder = ManifestDecoder::new(&bytes)?;
        let manifest: Vec<ChunkId> = decoder.root().chunks.iter().map(|chunk| chunk.id).collect();
        each(vec![root.0]).await?;
        for ids in manifest.chunks(MANIFEST_CHUNKS) {
            let mut batches = Box::pin(self.read(ids.to_vec()).await?);
            while let Some(batch) = batches.try_next().await? {
                let mut found: HashSet<ChunkId> = batch.iter().map(|(id, _)| *id).collect();
                for (_, bytes) in &batch {
                    decoder.push(bytes, |entry| {
                        if let EntryKind::File(chunks) = entry.kind {
                            found.extend(chunks.iter().map(|chunk| chunk.id));
                        }
                    })?;
                }
                each(found.into_iter().collect()).await?;
            }
        }
        decoder.finish()?;
        Ok(())
    }

    async fn read_one(&self, id: ChunkId) -> Result<bytes::Bytes, ContextsError> {
        let mut batches = Box::pin(self.read(vec![id]).await?);
        let batch = batches.try_next().await?.unwrap_or_default();
        let bytes = batch.into_iter().next().map(|(_, bytes)| bytes);
        bytes.filter(|bytes| ChunkId::of(bytes) == id).ok_or(ContextsError::Missing { id })
    }
}
