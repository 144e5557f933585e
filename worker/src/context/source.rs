//! Where chunks come from that the cache lacks: the coordinator, or memory in tests.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use kiln_common::{AttemptId, context::ChunkId};
use kiln_proto::v1::{FetchContextRequest, worker_service_client::WorkerServiceClient};
use tonic::transport::Channel;

/// Chunks in the order asked. Nobody has checked their bytes yet.
pub type ChunkStream = Pin<Box<dyn Stream<Item = Result<Bytes, SourceError>> + Send>>;

/// Gives chunks by id.
#[async_trait::async_trait]
pub trait ChunkSource: Send + Sync + 'static {
    /// At most [`kiln_common::limits::CHUNK_IDS_PER_CALL`] ids.
    async fn fetch(&self, ids: &[ChunkId]) -> Result<ChunkStream, SourceError>;
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    #[error("the coordinator did not give the context's chunks: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("the source has no chunk {0}")]
    Missing(ChunkId),
}

/// The coordinator, on behalf of one attempt.
#[derive(Debug)]
pub struct RemoteSource {
    client: WorkerServiceClient<Channel>,
    attempt: AttemptId,
}

impl RemoteSource {
    /// `client` accepts messages of [`kiln_common::limits::MESSAGE_BYTES`].
    #[must_use]
    pub const fn new(client: WorkerServiceClient<Channel>, attempt: AttemptId) -> Self {
        Self { client, attempt }
    }
}

#[async_trait::async_trait]
impl ChunkSource for RemoteSource {
    async fn fetch(&self, ids: &[ChunkId]) -> Result<ChunkStream, SourceError> {
        let request = FetchContextRequest {
            attempt_id: self.attempt.to_string(),
            ids: ids.iter().flat_map(ChunkId::as_bytes).copied().collect(),
        };
        let refused = |status| SourceError::Refused(Box::new(status));
        let messages = self.client.clone().fetch_context(request).await.map_err(refused)?.into_inner();
        let chunks = messages.flat_map(move |message| {
            let chunks = match message {
                Ok(message) => message.chunks.into_iter().map(|chunk| Ok(chunk.data)).collect(),
                Err(status) => vec![Err(refused(status))],
            };
            stream::iter(chunks)
        });
        Ok(chunks.boxed())
    }
}

/// Chunks in memory, and a count of those asked for.
#[derive(Debug, Default)]
pub struct MemorySource {
    chunks: HashMap<ChunkId, Bytes>,
    fetched: AtomicU64,
}

impl MemorySource {
    pub fn insert(&mut self, bytes: impl Into<Bytes>) -> ChunkId {
        let bytes = bytes.into();
        let id = ChunkId::of(&bytes);
        self.chunks.insert(id, bytes);
        id
    }

    /// Puts other bytes under an id, as a broken source would.
    pub fn corrupt(&mut self, id: ChunkId, bytes: impl Into<Bytes>) {
        self.chunks.insert(id, bytes.into());
    }

    #[must_use]
    pub fn chunks_fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }
}

#[async_trait::async_trait]
impl ChunkSource for MemorySource {
    async fn fetch(&self, ids: &[ChunkId]) -> Result<ChunkStream, SourceError> {
        self.fetched.fetch_add(ids.len() as u64, Ordering::Relaxed);
        let chunks: Vec<_> =
            ids.iter().map(|id| self.chunks.get(id).cloned().ok_or(SourceError::Missing(*id))).collect();
        Ok(stream::iter(chunks).boxed())
    }
}
