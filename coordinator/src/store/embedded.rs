//! The store in one file, on redb: what one coordinator without any outside service uses.
//!
//! One thread owns all writes: it takes every transaction that waits, applies them in order within one redb
//! transaction and answers all of them after one fsync (group commit). Reads run beside it on blocking threads, on
//! redb's snapshots. Invariant: an answered commit survives a kill and a power cut.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use super::{Change, Entry, Revision, Store, StoreError, Txn, watch::History};

/// Key to 8 bytes of modification revision (big-endian) and the value.
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// The newest revision under `revision`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Pages that redb keeps in memory: the working set is small, and idle memory counts.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// Transactions waiting for the writer.
const QUEUE: usize = 1024;
/// Transactions that share one fsync.
const GROUP: usize = 128;

pub struct RedbStore {
    database: Arc<Database>,
    place: Arc<PathBuf>,
    history: Arc<History>,
    queue: mpsc::Sender<Pending>,
}

struct Pending {
    txn: Txn,
    answer: oneshot::Sender<Result<Revision, StoreError>>,
}

impl RedbStore {
    /// Opens or makes the file at `path`. Blocks; redb repairs the file after a kill.
    ///
    /// # Errors
    /// [`StoreError::Failed`] when the file cannot be opened, or another process has it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let place = Arc::new(path.to_owned());
        let failed = |problem: &dyn std::fmt::Display| failed(&place, problem);
        let database = Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(|e| failed(&e))?;
        let revision = prepare(&database).map_err(|e| failed(&e))?;
        let database = Arc::new(database);
        let history = Arc::new(History::new(revision));
        let (queue, waiting) = mpsc::channel(QUEUE);
        let writer = Writer { database: Arc::clone(&database), place: Arc::clone(&place), history: history.clone() };
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(waiting))
            .map_err(|e| failed(&e))?;
        Ok(Self { database, place, history, queue })
    }

    /// Runs `read` on a snapshot, off the async threads.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&redb::ReadOnlyTable<&str, &[u8]>) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (database, place) = (Arc::clone(&self.database), Arc::clone(&self.place));
        let outcome = tokio::task::spawn_blocking(move || {
            let run = || read(&database.begin_read()?.open_table(ENTRIES)?);
            run().map_err(|error| failed(&place, &error))
        });
        outcome.await.map_err(|_| StoreError::Closed)?
    }
}

fn failed(place: &Path, problem: &dyn std::fmt::Display) -> StoreError {
    StoreError::Failed { place: place.display().to_string(), problem: problem.to_string() }
}

/// Makes the tables and reads the newest revision.
fn prepare(database: &Database) -> Result<Revision, redb::Error> {
    let txn = database.begin_write()?;
    txn.open_table(ENTRIES)?;
    let revision = txn.open_table(META)?.get("revision")?.map_or(0, |revision| revision.value());
    txn.commit()?;
    Ok(revision)
}

fn decode(key: &str, stored: &[u8]) -> Entry {
    let (revision, value) = stored.split_first_chunk::<8>().unwrap_or((&[0; 8], stored));
    Entry { key: key.to_owned(), value: Bytes::copy_from_slice(value), revision: u64::from_be_bytes(*revision) }
}

#[async_trait]
impl Store for RedbStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.read(move |table| Ok(table.get(key.as_str())?.map(|stored| decode(&key, stored.value())))).await
    }

    async fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.read(move |table| {
            let start = after.as_deref().filter(|after| *after >= prefix.as_str()).unwrap_or(&prefix);
            let mut entries = Vec::new();
            for item in table.range(start..)? {
                let (key, stored) = item?;
                if !key.value().starts_with(&prefix) || entries.len() == limit {
                    break;
                }
                if after.as_deref() != Some(key.value()) {
                    entries.push(decode(key.value(), stored.value()));
                }
            }
            Ok(entries)
        })
        .await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Pending { txn, answer }).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.history.newest())
    }

    fn watch(&self, prefix: &str, from: Revision) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        self.history.watch(prefix, from)
    }
}

struct Writer {
    database: Arc<Database>,
    place: Arc<PathBuf>,
    history: Arc<History>,
}

impl Writer {
    /// Until every handle of the store is gone.
    fn run(self, mut waiting: mpsc::Receiver<Pending>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(next) = waiting.try_recv()
            {
                group.push(next);
            }
            self.commit(group);
        }
    }

    fn commit(&self, group: Vec<Pending>) {
        let (txns, answers): (Vec<_>, Vec<_>) = group.into_iter().map(|p| (p.txn, p.answer)).unzip();
        match self.apply(txns) {
            Ok(outcomes) => {
                for (outcome, answer) in outcomes.into_iter().zip(answers) {
                    let outcome = outcome.map(|(revision, changes)| {
                        self.history.push(revision, changes);
                        revision
                    });
                    // A caller that went away has nobody to tell; its commit stands.
                    let _ = answer.send(outcome);
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(failed(&self.place, &error)));
                }
            }
        }
    }

    fn apply(&self, txns: Vec<Txn>) -> Result<Vec<Outcome>, redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        let mut outcomes = Vec::with_capacity(txns.len());
        {
            let mut entries = write.open_table(ENTRIES)?;
            let mut meta = write.open_table(META)?;
            let mut newest = self.history.newest();
            for txn in txns {
                let outcome = apply_one(&mut entries, txn, newest + 1)?;
                newest = outcome.as_ref().map_or(newest, |(revision, _)| *revision);
                outcomes.push(outcome);
            }
            meta.insert("revision", newest)?;
        }
        write.commit()?;
        Ok(outcomes)
    }
}

type Outcome = Result<(Revision, Vec<Change>), StoreError>;

/// The outer error ends the whole group, the inner one only this transaction, which then has changed nothing.
fn apply_one(
    entries: &mut Table<'_, &'static str, &'static [u8]>,
    txn: Txn,
    revision: Revision,
) -> Result<Outcome, redb::Error> {
    for compare in txn.compares {
        let found = entries.get(compare.key.as_str())?.map_or(0, |stored| decode("", stored.value()).revision);
        if found != compare.revision {
            return Ok(Err(StoreError::Conflict { key: compare.key }));
        }
    }
    let mut changes = Vec::with_capacity(txn.writes.len());
    for (key, value) in txn.writes {
        match &value {
            Some(value) => {
                let stored = [&revision.to_be_bytes()[..], value].concat();
                entries.insert(key.as_str(), stored.as_slice())?;
            }
            None => drop(entries.remove(key.as_str())?),
        }
        changes.push(Change { key, value, revision });
    }
    Ok(Ok((revision, changes)))
}
