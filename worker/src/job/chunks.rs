//! The coordinator's chunks, over whatever connection there is: a fetch that a lost connection cuts goes on where it was.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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

/// Fetches for whichever of some attempts still runs: the farm gives an attempt what is its own.
pub struct LinkSource {
    pub link: Link,
    pub readers: Arc<Readers>,
}

/// The attempts that read one tree now.
#[derive(Debug, Default)]
pub struct Readers(Mutex<Vec<AttemptId>>);

impl Readers {
    pub fn add(&self, attempt: AttemptId) {
        self.all().push(attempt);
    }

    pub fn remove(&self, attempt: AttemptId) {
        self.all().retain(|other| *other != attempt);
    }

    fn one(&self) -> Option<AttemptId> {
        self.all().last().copied()
    }

    fn has(&self, attempt: AttemptId) -> bool {
        self.all().contains(&attempt)
    }

    fn all(&self) -> MutexGuard<'_, Vec<AttemptId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ChunkSource for LinkSource {
    async fn fetch(&self, ids: &[ChunkId]) -> Result<ChunkStream, SourceError> {
        let fetch = Fetch {
            link: self.link.clone(),
            readers: self.readers.clone(),
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
    readers: Arc<Readers>,
    /// Ids that have not arrived.
    left: VecDeque<ChunkId>,
    open: Option<Open>,
    cuts: u32,
    pause: Pause,
}

struct Open {
    /// In whose name.
    attempt: AttemptId,
    chunks: ChunkStream,
    _connection: Arc<Bulk>,
}

impl Fetch {
    async fn next(&mut self) -> Option<Result<bytes::Bytes, SourceError>> {
        while !self.left.is_empty() {
            let Some(attempt) = self.reader() else {
                self.left.clear();
                return Some(Err(nobody_reads()));
            };
            let error = match self.try_next(attempt).await {
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
            // The attempt may have ended while others read on.
            let passes = |error: &SourceError| is_cut(error) || !self.readers.has(attempt);
            if let Some(error) = error.filter(|error| self.cuts >= CUTS || !passes(error)) {
                self.left.clear();
                return Some(Err(error));
            }
            self.pause.wait().await;
        }
        None
    }

    /// The attempt whose fetch is open, or one that reads.
    fn reader(&self) -> Option<AttemptId> {
        self.open.as_ref().map(|open| open.attempt).or_else(|| self.readers.one())
    }

    async fn try_next(&mut self, attempt: AttemptId) -> Result<Option<bytes::Bytes>, SourceError> {
        let open = match &mut self.open {
            Some(open) => open,
            closed @ None => {
                let bulk = self.link.bulk().await;
                let ids: Vec<_> = self.left.iter().copied().collect();
                let chunks = RemoteSource::new(bulk.client(), attempt).fetch(&ids).await?;
                closed.insert(Open { attempt, chunks, _connection: bulk })
            }
        };
        open.chunks.next().await.transpose()
    }
}

fn nobody_reads() -> SourceError {
    SourceError::Refused(Box::new(tonic::Status::cancelled("the attempts that read it have ended")))
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
