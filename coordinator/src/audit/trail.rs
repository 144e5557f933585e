//! The way into the trail, and the task that writes what comes in: many entries share one transaction.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kiln_common::{Reason, id::AuditId, limits};
use kiln_proto::status::Refused;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{damper::Damper, entry::Entry, retention::Retention};
use crate::store::{Store, StoreError, Txn, keys, records};

/// How often the refusals that were only counted are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Entries of one transaction.
const BATCH: usize = 256;

/// Writes entries. Cheap to clone.
#[derive(Clone)]
pub struct Trail {
    queue: mpsc::Sender<Pending>,
    damper: Arc<Mutex<Damper>>,
}

enum Pending {
    Write {
        entry: Entry,
        written: Option<oneshot::Sender<()>>,
    },
    /// Someone else wrote it, in a transaction of its own.
    Count(AuditId),
}

/// The receiving end; [`Writer::run`] is one task of the coordinator.
pub struct Writer {
    store: Arc<dyn Store>,
    queue: mpsc::Receiver<Pending>,
    damper: Arc<Mutex<Damper>>,
    retention: Retention,
}

impl Trail {
    /// # Errors
    /// What the store says.
    pub async fn open(store: Arc<dyn Store>) -> Result<(Self, Writer), StoreError> {
        let (sender, queue) = mpsc::channel(limits::AUDIT_QUEUE);
        let damper = Arc::new(Mutex::new(Damper::default()));
        let retention = Retention::load(&*store, limits::AUDIT_ENTRIES).await?;
        let writer = Writer { store, queue, damper: Arc::clone(&damper), retention };
        Ok((Self { queue: sender, damper }, writer))
    }

    /// Writes the entry of an act that was done; resolves once it is durable, and only then may the act be answered.
    ///
    /// # Errors
    /// [`Reason::Unavailable`] when it cannot be written; the act stands nevertheless.
    pub async fn record(&self, entry: Entry) -> Result<(), Refused> {
        let unavailable = || Refused::new(Reason::Unavailable, "the farm cannot write its audit trail; ask again");
        let (sender, written) = oneshot::channel();
        self.queue.send(Pending::Write { entry, written: Some(sender) }).await.map_err(|_| unavailable())?;
        written.await.map_err(|_| unavailable())
    }

    /// Puts the entry of an act into the transaction that does it.
    ///
    /// # Errors
    /// See [`records::encode`].
    pub fn stage(&self, txn: &mut Txn, entry: Entry) -> Result<(), StoreError> {
        put(txn, &entry)?;
        // One that is not counted is, after the next start.
        drop(self.queue.try_send(Pending::Count(entry.id)));
        Ok(())
    }

    /// Logs a refusal and writes it when its turn comes. Never waits; of a flood most are only counted.
    pub fn refuse(&self, entry: Entry) {
        let admitted = self.damper.lock().unwrap_or_else(PoisonError::into_inner).admit(entry, Instant::now());
        let Some(entry) = admitted else { return };
        log(&entry);
        if self.queue.try_send(Pending::Write { entry, written: None }).is_err() {
            warn!("a refusal is missing in the audit trail: more comes in than can be written");
        }
    }
}

fn put(txn: &mut Txn, entry: &Entry) -> Result<(), StoreError> {
    let key = keys::audit(entry.id);
    let value = records::encode(&key, entry)?;
    txn.put(key, value);
    Ok(())
}

fn log(entry: &Entry) {
    let Entry { actor, source, action, object, detail, repeats, .. } = entry;
    let source = source.map(tracing::field::display);
    warn!(?actor, source, action = action.code(), %object, reason = detail, repeats, "refused");
}

impl Writer {
    /// Until `stop`, and then until all that came in before is written.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                biased;
                first = self.queue.recv() => match first {
                    Some(first) => self.write_with(first).await,
                    None => return,
                },
                now = looks.tick() => self.write_counted(now.into_std()).await,
                () = stop.cancelled() => self.queue.close(),
            }
        }
    }

    async fn write_with(&mut self, first: Pending) {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = self.queue.try_recv()
        {
            batch.push(next);
        }
        let (mut entries, mut waiting, mut counted) = (Vec::new(), Vec::new(), Vec::new());
        for pending in batch {
            match pending {
                Pending::Write { entry, written } => {
                    entries.push(entry);
                    waiting.extend(written);
                }
                Pending::Count(id) => counted.push(id),
            }
        }
        if self.write(&entries, counted).await {
            for written in waiting {
                // Whoever does not wait any more needs no answer.
                let _ = written.send(());
            }
        }
    }

    async fn write_counted(&mut self, now: Instant) {
        let counted = self.damper.lock().unwrap_or_else(PoisonError::into_inner).over(now);
        if !counted.is_empty() {
            counted.iter().for_each(log);
            self.write(&counted, Vec::new()).await;
        }
    }

    async fn write(&mut self, entries: &[Entry], counted: Vec<AuditId>) -> bool {
        let outcome = self.commit(entries, counted).await;
        if let Err(error) = &outcome {
            error!(%error, entries = entries.len(), "the audit trail cannot be written");
        }
        outcome.is_ok()
    }

    async fn commit(&mut self, entries: &[Entry], counted: Vec<AuditId>) -> Result<(), StoreError> {
        let mut txn = Txn::new();
        for entry in entries {
            put(&mut txn, entry)?;
        }
        if !txn.is_empty() {
            self.store.commit(txn).await?;
        }
        let ids = counted.into_iter().chain(entries.iter().map(|entry| entry.id));
        self.retention.wrote(&*self.store, ids).await
    }
}
