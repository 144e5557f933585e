//! Carries one attempt's log to the coordinator, again from the last durable entry after every lost connection.

use std::sync::Arc;

use kiln_common::limits;
use kiln_proto::v1::{LogAck, LogBatch};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{AttemptLog, buffer::Pending};
use crate::{pause::Pause, session::Link};

/// Messages that wait for the connection; two keep it busy, more would only take memory.
const IN_FLIGHT: usize = 2;

/// Ships the log until all of it is durable or the farm does not want it. Dropping the future stops it at any time.
pub async fn ship(log: Arc<AttemptLog>, link: Link) {
    let mut pause = Pause::default();
    loop {
        let before = log.acknowledged();
        let Err(status) = ship_over_one_connection(&log, &link).await else { return };
        if is_final(status.code()) {
            tracing::warn!(attempt_id = %log.attempt, reason = status.message(), "the farm does not want the log");
            return log.abandon();
        }
        tracing::debug!(attempt_id = %log.attempt, reason = status.message(), "the log's stream ended");
        if log.acknowledged() > before {
            pause.reset();
        }
        pause.wait().await;
    }
}

async fn ship_over_one_connection(log: &AttemptLog, link: &Link) -> Result<(), Status> {
    while log.pending(log.acknowledged()) == Pending::Nothing {
        if log.is_durable() {
            return Ok(());
        }
        log.written.notified().await;
    }
    let mut sender = Sender { log, cursor: log.acknowledged(), not_before: Instant::now() };
    let (batches, requests) = mpsc::channel(IN_FLIGHT);
    // The first batch goes before the answer is awaited: a server may answer only once it has read it.
    if let (Some(batch), Ok(permit)) = (sender.next(), batches.try_reserve()) {
        permit.send(batch);
    }
    let bulk = link.bulk().await;
    let mut acks = bulk.client().logs(ReceiverStream::new(requests)).await?.into_inner();
    while !log.is_durable() {
        let pending = log.pending(sender.cursor);
        tokio::select! {
            ack = acks.message() => sender.acknowledged(ack?)?,
            () = log.written.notified(), if pending == Pending::Nothing => {}
            () = tokio::time::sleep_until(sender.not_before), if sender.waits(pending) => {}
            permit = batches.reserve(), if sender.goes(pending) => {
                let permit = permit.map_err(|_| Status::unavailable("the log's stream ended"))?;
                if let Some(batch) = sender.next() {
                    permit.send(batch);
                }
            }
        }
    }
    Ok(())
}

/// Where one connection stands.
struct Sender<'a> {
    log: &'a AttemptLog,
    /// The first entry that this connection has not carried.
    cursor: u64,
    /// A message that is not full waits until then for more.
    not_before: Instant,
}

impl Sender<'_> {
    fn waits(&self, pending: Pending) -> bool {
        pending == Pending::Some && Instant::now() < self.not_before
    }

    fn goes(&self, pending: Pending) -> bool {
        pending != Pending::Nothing && !self.waits(pending)
    }

    fn next(&mut self) -> Option<LogBatch> {
        let batch = self.log.batch(self.cursor)?;
        self.cursor += batch.entries.len() as u64;
        self.not_before = Instant::now() + limits::LOG_BATCH_DELAY;
        Some(batch)
    }

    fn acknowledged(&self, ack: Option<LogAck>) -> Result<(), Status> {
        let ack = ack.ok_or_else(|| Status::unavailable("the farm closed the log's stream"))?;
        self.log.acknowledge(ack.next_sequence.min(self.cursor));
        Ok(())
    }
}

/// Codes that say that asking again gives the same answer.
const fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::NotFound
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::OutOfRange
            | Code::Unimplemented
    )
}
