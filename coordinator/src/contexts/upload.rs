//! One upload: every chunk is checked against its id, packed, and durable before the client hears of it.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use kiln_common::{Timestamp, context::ChunkId, limits};
use tokio::{sync::OwnedSemaphorePermit, task::JoinSet};

use super::{
    Contexts, blocking,
    error::ContextsError,
    index::{Index, SealedPack},
    pack::PackBuilder,
};

/// Packs that are written before the index lists them, all at once.
const PACKS_PER_COMMIT: usize = 32;

/// Packs of one upload on their way to the disk while the next one fills: each waits for its own sync.
const PACKS_BEING_WRITTEN: usize = 3;

/// What an upload added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    pub chunks: u64,
    pub bytes: u64,
}

/// An upload in progress. Dropping it without [`Self::finish`] leaves at most packs that the next start lists.
#[derive(Debug)]
pub struct Upload {
    contexts: Arc<Contexts>,
    open: Option<(PackBuilder, OwnedSemaphorePermit)>,
    writing: JoinSet<Result<SealedPack, ContextsError>>,
    written: Vec<SealedPack>,
    /// New in this upload and not in the index yet.
    pending: HashSet<ChunkId>,
    stored: Stored,
}

impl Contexts {
    #[must_use]
    pub fn upload(self: &Arc<Self>) -> Upload {
        Upload {
            contexts: self.clone(),
            open: None,
            writing: JoinSet::new(),
            written: Vec::new(),
            pending: HashSet::new(),
            stored: Stored::default(),
        }
    }
}

impl Upload {
    /// Takes chunks; those that the farm has are checked and passed over.
    ///
    /// # Errors
    /// When a chunk's bytes do not hash to its id, or the store fails.
    pub async fn push(&mut self, chunks: Vec<(ChunkId, Bytes)>) -> Result<(), ContextsError> {
        let index = self.contexts.index.clone();
        let new = blocking(move || check(&index, chunks)).await?;
        for (id, bytes) in new {
            if self.pending.insert(id) {
                self.add(id, bytes).await?;
            }
        }
        Ok(())
    }

    /// Makes durable and lists what has come so far; until more comes, the upload then holds no memory.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn flush(&mut self) -> Result<(), ContextsError> {
        self.close_pack();
        let written = self.wait_for_packs(0).await;
        // What did get written counts, even if something else did not.
        self.commit().await?;
        written
    }

    /// Ends the upload as [`Self::flush`] does.
    ///
    /// # Errors
    /// When the store fails; what was durable before stays so.
    pub async fn finish(mut self) -> Result<Stored, ContextsError> {
        self.flush().await?;
        Ok(self.stored)
    }

    async fn add(&mut self, id: ChunkId, bytes: Bytes) -> Result<(), ContextsError> {
        if self.open.is_none() {
            self.wait_for_packs(PACKS_BEING_WRITTEN).await?;
            let permit = self.contexts.memory.clone().acquire_owned().await.map_err(|_| ContextsError::Interrupted)?;
            self.open = Some((PackBuilder::default(), permit));
        }
        if let Some((builder, _)) = &mut self.open {
            builder.push(id, bytes);
            if builder.is_full() {
                self.close_pack();
            }
        }
        if self.written.len() >= PACKS_PER_COMMIT {
            self.commit().await?;
        }
        Ok(())
    }

    fn close_pack(&mut self) {
        let Some((builder, permit)) = self.open.take().filter(|(builder, _)| !builder.is_empty()) else { return };
        let number = self.contexts.number_pack();
        let packs = self.contexts.packs.clone();
        self.writing.spawn(async move {
            let (payload, table) = builder.seal();
            packs.write(number, payload).await?;
            drop(permit);
            Ok(SealedPack { number, made: Timestamp::now(), table })
        });
    }

    /// Waits until at most `most` packs are being written.
    async fn wait_for_packs(&mut self, most: usize) -> Result<(), ContextsError> {
        let mut failure = None;
        while self.writing.len() > most {
            match self.writing.join_next().await {
                Some(Ok(Ok(pack))) => self.written.push(pack),
                Some(Ok(Err(error))) => failure = Some(error),
                Some(Err(_)) => failure = Some(ContextsError::Interrupted),
                None => break,
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn commit(&mut self) -> Result<(), ContextsError> {
        let packs = std::mem::take(&mut self.written);
        if packs.is_empty() {
            return Ok(());
        }
        for chunk in packs.iter().flat_map(|pack| &pack.table) {
            self.pending.remove(&chunk.id);
            self.stored.chunks += 1;
            self.stored.bytes += u64::from(chunk.len);
        }
        let index = self.contexts.index.clone();
        blocking(move || index.add(&packs)).await
    }
}

/// The chunks that the index lacks, all of them checked.
fn check(index: &Index, chunks: Vec<(ChunkId, Bytes)>) -> Result<Vec<(ChunkId, Bytes)>, ContextsError> {
    for (id, bytes) in &chunks {
        if bytes.is_empty() || bytes.len() > limits::CHUNK_BYTES {
            return Err(ContextsError::Length { id: *id, len: bytes.len() });
        }
        if ChunkId::of(bytes) != *id {
            return Err(ContextsError::Mismatch { id: *id });
        }
    }
    let ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
    let missing: HashSet<ChunkId> = index.missing(ids)?.into_iter().collect();
    Ok(chunks.into_iter().filter(|(id, _)| missing.contains(id)).collect())
}
