//! A layer on its way: read from the registry piece by piece, hashed, and checked by a thread of its own.
//!
//! A few pieces are in memory at a time. A verdict counts once the digest is proven, so that what goes wrong on the way is
//! retried and not taken for the image's fault.

use std::{
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use kiln_common::{Digest, Repository, context::pattern::PatternMatcher, limits};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, time::Instant};

use super::{
    expected::Expected,
    layer::{self, LayerError, Verdict},
};
use crate::publish::{
    error::{Fault, RegistryError},
    manifest::Descriptor,
    registry::Session,
    retry::Budget,
};

/// Pieces between the connection and the thread.
const QUEUE: usize = 8;

/// What a layer is checked against.
#[derive(Clone)]
pub struct Question {
    pub expected: Expected,
    pub allowed: Arc<PatternMatcher>,
}

/// Reads and checks one layer, again where the way to it broke.
///
/// # Errors
/// What the check found, or why the registry did not give the layer.
pub async fn check(
    session: &Session,
    repository: &Repository,
    layer: &Descriptor,
    question: &Question,
) -> Result<Verdict, RegistryError> {
    let budget = Budget::default();
    session.retry_within(&budget, || once(session, repository, layer, question, &budget)).await
}

async fn once(
    session: &Session,
    repository: &Repository,
    layer: &Descriptor,
    question: &Question,
    budget: &Budget,
) -> Result<Verdict, RegistryError> {
    let response = session.open_blob(repository, &layer.digest).await?;
    let (pieces, receiver) = mpsc::channel(QUEUE);
    let Question { expected, allowed } = question.clone();
    let check = tokio::task::spawn_blocking(move || {
        layer::check(Pieces { receiver, current: Bytes::new() }, &expected, &allowed)
    });
    let delivered = deliver(response, repository, layer, pieces, budget).await;
    let verdict = check.await;
    delivered?;
    match verdict {
        Ok(Ok(verdict)) => Ok(verdict),
        Ok(Err(error)) => Err(wrong(layer, &error)),
        Err(panic) => {
            Err(RegistryError::new(Fault::Final, format!("a defect ended the check of {}: {panic}", layer.digest)))
        }
    }
}

/// Hands the layer's bytes to the check, and proves that they are the layer's. The check may have heard enough.
async fn deliver(
    mut response: reqwest::Response,
    repository: &Repository,
    layer: &Descriptor,
    pieces: mpsc::Sender<Bytes>,
    budget: &Budget,
) -> Result<(), RegistryError> {
    let host = repository.host();
    let (mut hash, mut length) = (Sha256::new(), 0_u64);
    let mut since = Instant::now();
    while let Some(piece) = next(&mut response, host).await? {
        hash.update(&piece);
        length += piece.len() as u64;
        if length > layer.size {
            let message = format!(
                "layer {} of {repository} is longer than the {} bytes of its descriptor",
                layer.digest, layer.size
            );
            return Err(RegistryError::new(Fault::Final, message));
        }
        let _ = pieces.send(piece).await;
        // A large layer takes its time, and so does its check: that is no trouble with the registry.
        budget.excuse(since.elapsed());
        since = Instant::now();
    }
    if Digest::from_sha256(hash.finalize().into()) == layer.digest {
        Ok(())
    } else {
        Err(RegistryError::transient(format!("layer {} of {repository} arrives with other content", layer.digest)))
    }
}

/// A registry that sends nothing for a while is broken, however long the whole may take.
async fn next(response: &mut reqwest::Response, host: &str) -> Result<Option<Bytes>, RegistryError> {
    const PATIENCE: Duration = limits::REGISTRY_CALL_TIMEOUT;
    match tokio::time::timeout(PATIENCE, response.chunk()).await {
        Ok(piece) => piece.map_err(|error| RegistryError::connection(host, &error)),
        Err(_) => Err(RegistryError::transient(format!("{host} stopped sending a layer for {}s", PATIENCE.as_secs()))),
    }
}

fn wrong(layer: &Descriptor, error: &LayerError) -> RegistryError {
    let digest = &layer.digest;
    match error {
        LayerError::Foreign { .. } => RegistryError::new(
            Fault::Foreign,
            format!(
                "{error} (layer {digest}); compile it for the platform, or name it with --verify-allow where it is there on purpose"
            ),
        ),
        LayerError::Unreadable(_) => RegistryError::new(
            Fault::Final,
            format!("layer {digest} cannot be verified: {error}; --verify off publishes it unseen"),
        ),
    }
}

/// The pieces as a blocking reader; ends when nobody sends any more.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}
