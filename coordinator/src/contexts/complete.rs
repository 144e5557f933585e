//! Whether the farm has all of a context: asked at every submit, answered from memory of the last time where it can be.

use std::{collections::HashSet, time::Duration};

use futures_util::TryStreamExt;
use kiln_common::{
    Timestamp,
    context::{ChunkId, ContextDigest, EntryKind, ManifestDecoder},
};

use tokio::sync::mpsc;

use super::{Contexts, blocking, error::ContextsError};

/// A root's last use is written down this coarsely, so that a known context costs no write.
pub(super) const TOUCH_EVERY: Duration = Duration::from_secs(3600);
/// Manifest chunks that are read at once.
const MANIFEST_CHUNKS: usize = 64;
/// Batches of ids between the walk and who works on them.
pub(super) const BATCHES: usize = 2;

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
        if self.recent.has(root, now) {
            return Ok(Completeness::Complete);
        }
        let index = self.index.clone();
        let used = blocking(move || index.root(root)).await?;
        match used {
            Some(used) if now.since(used) < TOUCH_EVERY => {
                self.recent.note(root, used);
                return Ok(Completeness::Complete);
            }
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
        self.recent.note(root, now);
        Ok(Completeness::Complete)
    }

    /// Whether [`Self::is_complete`] would say so without looking: nothing of the context need be stored again.
    #[must_use]
    pub fn was_complete_lately(&self, root: ContextDigest, now: Timestamp) -> bool {
        self.recent.has(root, now)
    }

    async fn count_missing(&self, root: ContextDigest) -> Result<u64, ContextsError> {
        let (sender, mut batches) = mpsc::channel(BATCHES);
        let look_up = async {
            let mut missing = 0;
            while let Some(ids) = batches.recv().await {
                missing += self.find_missing(ids).await?.len() as u64;
            }
            Ok::<_, ContextsError>(missing)
        };
        let (walked, missing) = tokio::join!(self.walk(root, sender), look_up);
        match walked {
            Ok(()) => missing,
            // The manifest itself is not all here.
            Err(ContextsError::Missing { .. }) => Ok(missing? + 1),
            Err(error) => Err(error),
        }
    }

    /// Sends the ids of all chunks of a context, some at a time: the root's, the manifest's, the files'. Ends early, without
    /// an error, when nobody receives them any more.
    ///
    /// # Errors
    /// [`ContextsError::Missing`] when the root or a chunk of the manifest is not here.
    pub(super) async fn walk(
        &self,
        root: ContextDigest,
        batches: mpsc::Sender<Vec<ChunkId>>,
    ) -> Result<(), ContextsError> {
        let bytes = self.read_one(root.0).await?;
        let mut decoder = ManifestDecoder::new(&bytes)?;
        let manifest: Vec<ChunkId> = decoder.root().chunks.iter().map(|chunk| chunk.id).collect();
        let mut is_heard = batches.send(vec![root.0]).await.is_ok();
        for ids in manifest.chunks(MANIFEST_CHUNKS) {
            if !is_heard {
                return Ok(());
            }
            let mut read = Box::pin(self.read(ids.to_vec()).await?);
            while let Some(batch) = read.try_next().await? {
                let mut found: HashSet<ChunkId> = batch.iter().map(|(id, _)| *id).collect();
                for (_, bytes) in &batch {
                    decoder.push(bytes, |entry| {
                        if let EntryKind::File(chunks) = entry.kind {
                            found.extend(chunks.iter().map(|chunk| chunk.id));
                        }
                    })?;
                }
                is_heard = batches.send(found.into_iter().collect()).await.is_ok();
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
