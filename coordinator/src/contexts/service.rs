//! `ContextService` over [`Contexts`]: the wire's side of uploads.

use std::sync::Arc;

use kiln_common::{context::ChunkId, limits};
use kiln_proto::{
    status::Refused,
    v1::{
        FindMissingRequest, FindMissingResponse, UploadRequest, UploadResponse, context_service_server::ContextService,
    },
};
use tonic::{Request, Response, Status, Streaming};

use super::{Contexts, ContextsError, Stored, read::parse_ids};
use crate::http::metrics::CONTEXT_RECEIVED;

/// Mount it behind the check of the caller's role, with
/// `max_decoding_message_size(`[`MESSAGE_BYTES`](kiln_common::limits::MESSAGE_BYTES)`)`.
#[derive(Debug, Clone)]
pub struct ContextUploads {
    contexts: Arc<Contexts>,
}

impl ContextUploads {
    #[must_use]
    pub const fn new(contexts: Arc<Contexts>) -> Self {
        Self { contexts }
    }
}

#[tonic::async_trait]
impl ContextService for ContextUploads {
    async fn find_missing(
        &self,
        request: Request<FindMissingRequest>,
    ) -> Result<Response<FindMissingResponse>, Status> {
        let ids = parse_ids(&request.get_ref().ids).map_err(refuse)?;
        let missing = self.contexts.find_missing(ids).await.map_err(refuse)?;
        Ok(Response::new(FindMissingResponse { ids: missing.iter().flat_map(ChunkId::as_bytes).copied().collect() }))
    }

    async fn upload(&self, request: Request<Streaming<UploadRequest>>) -> Result<Response<UploadResponse>, Status> {
        // A task of its own, so that what has come is listed even when the client goes away.
        let task = tokio::spawn(take(self.contexts.clone(), request.into_inner()));
        let stored = task.await.map_err(|_| refuse(ContextsError::Interrupted))??;
        Ok(Response::new(UploadResponse { chunks: stored.chunks, bytes: stored.bytes }))
    }
}

async fn take(contexts: Arc<Contexts>, mut messages: Streaming<UploadRequest>) -> Result<Stored, Status> {
    let mut upload = contexts.upload();
    let taken = loop {
        let Ok(message) = tokio::time::timeout(limits::UPLOAD_IDLE, messages.message()).await else {
            // A client that pauses does not hold memory that others could use.
            match upload.flush().await {
                Ok(()) => continue,
                Err(error) => break Err(refuse(error)),
            }
        };
        match message {
            Ok(Some(message)) => {
                let pushed = match chunks(message) {
                    Ok(chunks) => upload.push(chunks).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = pushed {
                    break Err(refuse(error));
                }
            }
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        }
    };
    let stored = upload.finish().await.map_err(refuse);
    taken.and(stored)
}

fn chunks(message: UploadRequest) -> Result<Vec<(ChunkId, bytes::Bytes)>, ContextsError> {
    let chunk = |chunk: kiln_proto::v1::Chunk| {
        let id = ChunkId::try_from(chunk.id.as_slice()).map_err(|_| ContextsError::Ids { length: chunk.id.len() })?;
        metrics::counter!(CONTEXT_RECEIVED).increment(chunk.data.len() as u64);
        Ok((id, chunk.data))
    };
    message.chunks.into_iter().map(chunk).collect()
}

fn refuse(error: ContextsError) -> Status {
    if matches!(
        error,
        ContextsError::Objects(_) | ContextsError::Index(_) | ContextsError::Directory(_) | ContextsError::Full
    ) {
        tracing::error!(%error, "the store of contexts fails");
    }
    Status::from(Refused::from(error))
}
