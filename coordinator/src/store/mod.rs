//! What must survive: an ordered map of text keys to bytes, changed only by transactions with compares.
//!
//! The driver is the one writer of builds, tasks and workers; `pki`, `access` and `sessions` keep their own keys.
//! The trait has etcd's shape (ranges, modification revisions, compare-and-commit, watch), so that one coordinator on
//! a file and three on etcd run the same code. Invariant: once [`Store::commit`] answers, the change survives a power cut.

pub mod embedded;
pub mod keys;
pub mod memory;
pub mod records;
pub mod schema;
mod watch;

#[cfg(test)]
mod conformance;

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

pub use embedded::RedbStore;
pub use memory::MemoryStore;

/// Counts commits from 1 on; 0 is "before all", and as a key's revision "does not exist".
pub type Revision = u64;

/// One key with its value and the revision of its last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    pub revision: Revision,
}

/// One change of one key; `value` is `None` when the key was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    pub value: Option<Bytes>,
    pub revision: Revision,
}

/// The key must still have this revision (0: must not exist), or nothing of the transaction happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    pub key: String,
    pub revision: Revision,
}

/// All or nothing. Each key is written at most once; the last word counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    /// `None` deletes.
    pub writes: BTreeMap<String, Option<Bytes>>,
}

impl Txn {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub fn compare(&mut self, key: impl Into<String>, revision: Revision) -> &mut Self {
        self.compares.push(Compare { key: key.into(), revision });
        self
    }

    pub fn put(&mut self, key: impl Into<String>, value: impl Into<Bytes>) -> &mut Self {
        self.writes.insert(key.into(), Some(value.into()));
        self
    }

    pub fn delete(&mut self, key: impl Into<String>) -> &mut Self {
        self.writes.insert(key.into(), None);
        self
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.compares.is_empty() && self.writes.is_empty()
    }
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("key `{key}` was changed by someone else")]
    Conflict { key: String },
    #[error("changes before revision {oldest} are no longer kept; read the keys anew and watch from there")]
    Compacted { oldest: Revision },
    #[error("the store holds schema version {found}, this program knows up to {known}; start a newer kiln-coordinator")]
    NewerSchema { found: u32, known: u32 },
    #[error("the store's record under `{key}` does not read: {problem}")]
    Malformed { key: String, problem: String },
    #[error("the store at {place} failed: {problem}")]
    Failed { place: String, problem: String },
    #[error("the store is closed")]
    Closed,
}

/// An ordered map of text keys to bytes.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One key; `None` when it does not exist.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// At most `limit` entries under `prefix`, in the order of their keys, all of them after the key `after`.
    async fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError>;

    /// Does all of `txn` or nothing, durably.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a compare does not hold; any other error leaves open whether it happened.
    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError>;

    /// The revision of the newest commit.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Changes under `prefix` with revision `from` or later, each commit's together, as they happen.
    ///
    /// The stream ends with [`StoreError::Compacted`] when `from` is older than what is kept.
    fn watch(&self, prefix: &str, from: Revision) -> BoxStream<'static, Result<Vec<Change>, StoreError>>;
}

/// Every entry under `prefix`, fetched page by page.
///
/// # Errors
/// What [`Store::range`] says.
pub async fn scan(store: &dyn Store, prefix: &str) -> Result<Vec<Entry>, StoreError> {
    const PAGE: usize = 1000;
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let after = all.last().map(|entry| entry.key.clone());
        let page = store.range(prefix, after.as_deref(), PAGE).await?;
        let is_last = page.len() < PAGE;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}
