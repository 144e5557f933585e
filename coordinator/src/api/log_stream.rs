//! A build's logs as a stream: what is stored, then, on request, what comes, until the build is final.
//!
//! Entries of an attempt come in order and once; a client that reconnects goes on from its last sequence number by skipping
//! what it has. A client that does not read holds up nobody: entries are read from disk when it asks for more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::{Stream, StreamExt as _};
use kiln_common::{AttemptId, BuildId, Platform, Timestamp, limits, spec::Violation};
use kiln_proto::{convert::timestamp_from_wire, status::Refused, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Api, log_failed, watch_failed};
use crate::{
    driver::{BuildWatch, WatchError},
    store::records::BuildView,
};

/// Messages between the reader and the connection.
const MESSAGES: usize = 4;

impl Api {
    pub(super) async fn stream_logs(
        &self,
        request: v1::LogsRequest,
    ) -> Result<impl Stream<Item = Result<v1::LogsResponse, Status>> + use<>, Refused> {
        let id = self.build_id(&request.id).await?;
        let platform = match request.platform.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error| Refused::invalid(vec![Violation::new("platform", error)]))?),
        };
        let records = self.records(id).await?;
        let (sender, receiver) = mpsc::channel(MESSAGES);
        let mut reader = Reader {
            api: self.clone(),
            platform,
            since: request.since.as_ref().map(timestamp_from_wire),
            sent: BTreeMap::new(),
            sender,
        };
        let follow = request.follow;
        tokio::spawn(async move {
            let outcome = if follow { reader.follow(id).await } else { reader.read_all(&records).await.map(drop) };
            if let Err(Stop::Refused(refused)) = outcome {
                let _ = reader.sender.send(Err(refused.into())).await;
            }
        });
        Ok(ReceiverStream::new(receiver).fuse())
    }
}

/// Why reading ends early.
enum Stop {
    /// The client went away.
    Gone,
    Refused(Refused),
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

struct Reader {
    api: Api,
    platform: Option<Platform>,
    since: Option<Timestamp>,
    /// Per attempt, the first sequence number that was not sent.
    sent: BTreeMap<AttemptId, u64>,
    sender: mpsc::Sender<Result<v1::LogsResponse, Status>>,
}

impl Reader {
    async fn follow(&mut self, id: BuildId) -> Result<(), Stop> {
        let mut watch = self.api.driver.watch_build(id).await.map_err(watch_failed)?;
        let mut next = watch.next().await;
        while let Some(change) = next {
            let records = change.map_err(watch_failed)?;
            self.read_all(&records).await?;
            if records.build.state.is_final() {
                return Ok(());
            }
            next = self.read_until_change(&records, &mut watch).await?;
        }
        Ok(())
    }

    /// Sends what the logs of the build's current attempts grow by, until the build itself changes.
    async fn read_until_change(
        &mut self,
        records: &BuildView,
        watch: &mut BuildWatch,
    ) -> Result<Option<Result<Arc<BuildView>, WatchError>>, Stop> {
        let sender = self.sender.clone();
        loop {
            let growth = self.growth(records).await?;
            tokio::select! {
                () = sender.closed() => return Err(Stop::Gone),
                change = watch.next() => return Ok(change),
                () = growth => self.read_all(records).await?,
            }
        }
    }

    /// Resolves when one of the build's current logs holds more than was sent.
    async fn growth(&self, records: &BuildView) -> Result<impl Future<Output = ()> + Send + use<>, Stop> {
        let mut waits = Vec::new();
        for (_, attempt) in self.attempts(records) {
            let mut growth = self.api.logs.subscribe(attempt).await.map_err(|error| log_failed(&error))?;
            let sent = self.sent.get(&attempt).copied().unwrap_or(0);
            waits.push(Box::pin(async move {
                // An error means that the log is gone: nothing will grow there.
                if growth.wait_for(|next| *next > sent).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }));
        }
        Ok(async move {
            if waits.is_empty() {
                std::future::pending::<()>().await;
            }
            let _ = futures_util::future::select_all(waits).await;
        })
    }

    async fn read_all(&mut self, records: &BuildView) -> Result<(), Stop> {
        for (platform, attempt) in self.attempts(records) {
            loop {
                let first = self.sent.get(&attempt).copied().unwrap_or(0);
                let entries = self.api.logs.read(attempt, first, limits::LOG_BATCH_ENTRIES).await;
                let entries = entries.map_err(|error| log_failed(&error))?;
                if entries.is_empty() {
                    break;
                }
                self.sent.insert(attempt, first + entries.len() as u64);
                self.send(&platform, attempt, first, entries).await?;
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        platform: &Platform,
        attempt: AttemptId,
        first: u64,
        mut entries: Vec<v1::ProgressEntry>,
    ) -> Result<(), Stop> {
        let is_early = |entry: &v1::ProgressEntry| {
            let at = entry.time.as_ref().map(timestamp_from_wire).unwrap_or_default();
            self.since.is_some_and(|since| at < since)
        };
        let skipped = entries.iter().take_while(|entry| is_early(entry)).count();
        entries.drain(..skipped);
        if entries.is_empty() {
            return Ok(());
        }
        let message = v1::LogsResponse {
            platform: platform.to_string(),
            attempt_id: attempt.to_string(),
            first_sequence: first + skipped as u64,
            entries,
        };
        self.sender.send(Ok(message)).await.map_err(|_| Stop::Gone)
    }

    /// The current attempts, and those before them that this stream has begun.
    fn attempts(&self, records: &BuildView) -> BTreeSet<(Platform, AttemptId)> {
        let wanted = |platform: &Platform| self.platform.as_ref().is_none_or(|only| only == platform);
        let tasks = records.tasks.iter().filter(|task| wanted(&task.platform));
        tasks.filter_map(|task| Some((task.platform.clone(), task.attempt.as_ref()?.id))).collect()
    }
}
