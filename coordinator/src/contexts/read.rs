//! Reads chunks back: neighbours in one pack are one read.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use kiln_common::{context::ChunkId, limits};
use kiln_proto::{
    status::Refused,
    v1::{Chunk, FetchContextRequest, FetchContextResponse},
};
use tonic::Status;

use super::{Contexts, blocking, error::ContextsError, pack::Place, packs::Packs};
use crate::http::metrics::CONTEXT_SERVED;

/// Bytes of other chunks that are read along rather than read around.
const GAP_BYTES: u32 = 64 * 1024;
/// Reads under way for one call: bounds the memory of a slow receiver.
const READ_AHEAD: usize = 2;

/// Some chunks with their ids, in the order asked, at most 4 MiB together.
pub(super) type Batch = Vec<(ChunkId, Bytes)>;

impl Contexts {
    /// The chunks in the order asked, some at a time. Their bytes are not checked again; the receiver does.
    ///
    /// # Errors
    /// At once when one is not there; in the stream when the objects cannot be read.
    pub async fn read(
        &self,
        ids: Vec<ChunkId>,
    ) -> Result<impl Stream<Item = Result<Batch, ContextsError>> + Send + use<>, ContextsError> {
        let index = self.index.clone();
        let runs = blocking(move || {
            let places = index.places(&ids)?;
            runs(&ids, &places)
        })
        .await?;
        let packs = self.packs.clone();
        Ok(stream::iter(runs).map(move |run| run.read(packs.clone())).buffered(READ_AHEAD))
    }
}

/// `WorkerService.FetchContext`: what the sessions answer a worker with, once they know that the attempt is its own.
///
/// # Errors
/// When the ids are malformed or too many, or a chunk is not there.
pub async fn fetch_context(
    contexts: &Arc<Contexts>,
    request: &FetchContextRequest,
) -> Result<impl Stream<Item = Result<FetchContextResponse, Status>> + Send + use<>, Status> {
    let refused = |error| Status::from(Refused::from(error));
    let ids = parse_ids(&request.ids).map_err(refused)?;
    let batches = contexts.read(ids).await.map_err(refused)?;
    Ok(batches.map(move |batch| {
        let chunk = |(id, data): (ChunkId, Bytes)| {
            metrics::counter!(CONTEXT_SERVED).increment(data.len() as u64);
            Chunk { id: id.as_bytes().to_vec(), data }
        };
        batch.map(|batch| FetchContextResponse { chunks: batch.into_iter().map(chunk).collect() }).map_err(refused)
    }))
}

/// Ids as calls carry them: 32 bytes each, joined.
pub(super) fn parse_ids(joined: &[u8]) -> Result<Vec<ChunkId>, ContextsError> {
    let (ids, rest) = joined.as_chunks::<32>();
    if !rest.is_empty() || ids.len() > limits::CHUNK_IDS_PER_CALL {
        return Err(ContextsError::Ids { length: joined.len() });
    }
    Ok(ids.iter().map(|id| ChunkId::from_bytes(*id)).collect())
}

/// Chunks that one read of a pack brings.
struct Run {
    pack: u64,
    start: u32,
    end: u32,
    bytes: u64,
    chunks: Vec<(ChunkId, Place)>,
}

fn runs(ids: &[ChunkId], places: &[Option<Place>]) -> Result<Vec<Run>, ContextsError> {
    let mut runs: Vec<Run> = Vec::new();
    for (id, place) in ids.iter().zip(places) {
        let place = place.ok_or(ContextsError::Missing { id: *id })?;
        match runs.last_mut().filter(|run| run.takes(&place)) {
            Some(run) => run.push(*id, place),
            None => {
                let mut run =
                    Run { pack: place.pack, start: place.offset, end: place.offset, bytes: 0, chunks: Vec::new() };
                run.push(*id, place);
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

impl Run {
    fn takes(&self, place: &Place) -> bool {
        place.pack == self.pack
            && (self.end..=self.end.saturating_add(GAP_BYTES)).contains(&place.offset)
            && self.bytes + u64::from(place.len) <= limits::CONTEXT_READ_BYTES
    }

    fn push(&mut self, id: ChunkId, place: Place) {
        self.end = place.offset + place.len;
        self.bytes += u64::from(place.len);
        self.chunks.push((id, place));
    }

    async fn read(self, packs: Packs) -> Result<Batch, ContextsError> {
        let bytes = packs.read(self.pack, self.start.into()..self.end.into()).await?;
        let slice = |(id, place): (ChunkId, Place)| {
            let start = (place.offset - self.start) as usize;
            (id, bytes.slice(start..start + place.len as usize))
        };
        Ok(self.chunks.into_iter().map(slice).collect())
    }
}
