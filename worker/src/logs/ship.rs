//! Carries one attempt's log to the coordinator, again from the last durable entry after every lost connection.

use std::sync::Arc;

use kiln_common::limits;
use kiln_proto::v1::{LogAck, LogBatch};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
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
        let permit = async {
            sender.due().await;
            batches.reserve().await
        };
        tokio::select! {
            ack = acks.message() => sender.acknowledged(ack?)?,
            permit = permit => {
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
    /// Waits for a message that is full, or the log's last, or has waited long enough, or for the end of all.
    async fn due(&self) {
        loop {
            let written = self.log.written.notified();
            match self.log.pending(self.cursor) {
                Pending::Full => return,
                Pending::Nothing if self.log.is_durable() => return,
                Pending::Nothing => written.await,
                Pending::Some if timeout_at(self.not_before, written).await.is_err() => return,
                Pending::Some => {}
            }
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use kiln_common::AttemptId;
    use kiln_proto::v1::{LogLine, ProgressEntry, progress_entry::Event};

    use super::{
        super::{Mask, SpoolDir},
        *,
    };

    fn log(folder: &tempfile::TempDir) -> AttemptLog {
        let spools = SpoolDir::open(folder.path(), limits::LOG_SPOOL_BYTES).expect("a folder for spools");
        AttemptLog::new(AttemptId::generate(), Mask::default(), &spools)
    }

    fn line() -> ProgressEntry {
        ProgressEntry { time: None, event: Some(Event::Line(LogLine { text: b"line".to_vec(), ..LogLine::default() })) }
    }

    /// One that would wait for an hour.
    fn sender(log: &AttemptLog) -> Sender<'_> {
        Sender { log, cursor: 0, not_before: Instant::now() + Duration::from_secs(3600) }
    }

    #[tokio::test]
    async fn a_message_that_is_not_full_waits_for_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = log(&folder);
        log.append(line());
        let mut sender = sender(&log);
        assert!(sender.due().now_or_never().is_none());
        sender.not_before = Instant::now();
        sender.due().await;
    }

    #[tokio::test]
    async fn the_last_message_waits_for_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = log(&folder);
        log.append(line());
        let sender = sender(&log);
        tokio::join!(sender.due(), async { log.close() });
        assert_eq!(log.pending(0), Pending::Full);
    }

    #[tokio::test]
    async fn a_log_that_ends_with_nothing_to_send_ends_the_wait() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = log(&folder);
        let sender = sender(&log);
        tokio::join!(sender.due(), async { log.close() });
        assert!(log.is_durable());
    }
}
