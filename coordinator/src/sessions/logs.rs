//! Log entries from workers: checked, stored, acknowledged once they are durable.
//!
//! Invariant: a worker writes only into the logs of attempts that were given to it, also after they are over, because
//! the last lines may come late.

use std::{collections::HashSet, time::Instant};

use kiln_common::{AttemptId, Reason, WorkerId, limits};
use kiln_proto::{status::Refused, v1};
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};
use tracing::error;

use super::{owner::owner, pace::Pace};
use crate::{
    audit::{Action, Object, Trail, Who},
    driver::{Handle, Ledger},
    logs::{LogError, Logs},
};

pub(super) struct LogIntake {
    pub(super) logs: Logs,
    pub(super) driver: Handle,
    pub(super) ledger: std::sync::Arc<Ledger>,
    pub(super) trail: Trail,
    pub(super) worker: WorkerId,
    pub(super) who: Who,
}

impl LogIntake {
    /// Until the worker ends the call or sends what it may not.
    pub(super) async fn run(
        self,
        mut incoming: Streaming<v1::LogBatch>,
        acknowledgements: mpsc::Sender<Result<v1::LogAck, Status>>,
    ) {
        let mut own = HashSet::new();
        let mut pace = Pace::new(limits::LOG_BATCHES_PER_SECOND, Instant::now());
        loop {
            let batch = match incoming.message().await {
                Ok(Some(batch)) => batch,
                Ok(None) => return,
                // A connection that broke is nobody's fault; a message that is too long is the worker's.
                Err(status) if status.code() != Code::OutOfRange => return,
                Err(status) => return self.refused(status.message()),
            };
            let answer = if pace.allows(Instant::now()) {
                self.take(batch, &mut own).await
            } else {
                Err(Refused::new(Reason::Overloaded, "the log's stream sends more messages than it may"))
            };
            if let Err(refused) = answer.as_ref().map_err(|refused| refused.message.as_str()) {
                self.refused(refused);
            }
            let is_last = answer.is_err();
            if acknowledgements.send(answer.map_err(Status::from)).await.is_err() || is_last {
                return;
            }
        }
    }

    fn refused(&self, why: &str) {
        self.trail.refuse(self.who.was_refused(Action::WorkerLog, Object::Worker(self.worker), why));
    }

    async fn take(&self, batch: v1::LogBatch, own: &mut HashSet<AttemptId>) -> Result<v1::LogAck, Refused> {
        let wrong = |problem: String| Refused::new(Reason::InvalidArgument, problem);
        let attempt: AttemptId = batch.attempt_id.parse().map_err(|error| wrong(format!("{error}")))?;
        if batch.entries.len() > limits::LOG_BATCH_ENTRIES || batch.encoded_len() > 2 * limits::LOG_BATCH_BYTES {
            let (entries, bytes) = (limits::LOG_BATCH_ENTRIES, limits::LOG_BATCH_BYTES);
            return Err(wrong(format!("a batch has at most {entries} entries and {bytes} bytes")));
        }
        if !own.contains(&attempt) {
            self.check_own(attempt).await?;
            own.insert(attempt);
        }
        let next_sequence = match self.logs.append(attempt, batch.first_sequence, batch.entries).await {
            Ok(next) | Err(LogError::Gap { next, .. }) => next,
            Err(error @ LogError::Full { .. }) => return Err(wrong(error.to_string())),
            Err(error @ (LogError::Io { .. } | LogError::Directory { .. })) => {
                error!(%attempt, %error, "log not stored");
                return Err(Refused::new(Reason::Unavailable, "the farm cannot store logs now; send again later"));
            }
        };
        Ok(v1::LogAck { attempt_id: attempt.to_string(), next_sequence })
    }

    async fn check_own(&self, attempt: AttemptId) -> Result<(), Refused> {
        let owner = owner(&self.ledger, &self.driver, attempt).await;
        let owner = owner.map_err(|error| Refused::new(Reason::Unavailable, error.to_string()))?;
        if owner == Some(self.worker) {
            Ok(())
        } else {
            Err(Refused::new(Reason::PermissionDenied, format!("attempt {attempt} was not given to this worker")))
        }
    }
}
