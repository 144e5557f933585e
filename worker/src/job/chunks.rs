//! The coordinator's chunks, over whatever connection there is: a fetch that a lost connection cuts goes on where it was.

use std::{collections::VecDeque, sync::Arc};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use kiln_common::{AttemptId, context::ChunkId};
use tonic::Code;

use crate::{
    context::{ChunkSource, ChunkStream, RemoteSource, SourceError},
    pause::Pause,
    session::{Bulk, Link},
};

/// Cuts in a row without a single chunk between them, after which the fetch fails.
const CUTS: u32 = 10;

/// Fetches for one attempt.
pub struct LinkSource {
    pub link: Link,
    pub attempt: AttemptId,
}

#[async_trait]
impl ChunkSource for LinkSource {
    async fn fetch(&self, ids: &[ChunkId]) -> Result<ChunkStream, SourceError> {
        let fetch = Fetch {
            link: self.link.clone(),
            attempt: self.attempt,
            left: ids.iter().copied().collect(),
            open: None,
            cuts: 0,
            pause: Pause::default(),
        };
        Ok(stream::unfold(fetch, |mut fetch| async move { Some((fetch.next().await?, fetch)) }).boxed())
    }
}

struct Fetch {
    link: Link,
    attempt: AttemptId,
    /// Ids that have not arrived.
    left: VecDeque<ChunkId>,
    open: Option<(Arc<Bulk>, ChunkStream)>,
    cuts: u32,
    pause: Pause,
}

impl Fetch {
    async fn next(&mut self) -> Option<Result<bytes::Bytes, SourceError>> {
        while !self.left.is_empty() {
            let error = match self.try_next().await {
                Ok(Some(chunk)) => {
                    self.left.pop_front();
                    self.cuts = 0;
                    self.pause.reset();
                    return Some(Ok(chunk));
                }
                Ok(None) => None,
                Err(error) => Some(error),
            };
            self.open = None;
            self.cuts += 1;
            if let Some(error) = error.filter(|error| self.cuts >= CUTS || !is_cut(error)) {
                self.left.clear();
                return Some(Err(error));
            }
            self.pause.wait().await;
        }
        None
    }

    async fn try_next(&mut self) -> Result<Option<bytes::Bytes>, SourceError> {
        let (_, chunks) = match &mut self.open {
            Some(open) => open,
            closed @ None => {
                let bulk = self.link.bulk().await;
                let ids: Vec<_> = self.left.iter().copied().collect();
                let chunks = RemoteSource::new(bulk.client(), self.attempt).fetch(&ids).await?;
                closed.insert((bulk, chunks))
            }
        };
        chunks.next().await.transpose()
    }
}

/// Whether the connection failed rather than the request.
fn is_cut(error: &SourceError) -> bool {
    match error {
        SourceError::Refused(status) => {
            matches!(
                status.code(),
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted
            )
        }
        SourceError::Missing(_) => false,
    }
}
