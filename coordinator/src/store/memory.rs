//! A store that forgets when the process ends: for unit tests of everything that sits on the trait.
//!
//! Behaves as the durable ones do but for durability; `conformance` holds it to that.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::{Change, Entry, Revision, Store, StoreError, Txn, watch::History};

#[derive(Debug)]
pub struct MemoryStore {
    entries: Mutex<BTreeMap<String, (Revision, Bytes)>>,
    history: History,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { entries: Mutex::default(), history: History::new(0) }
    }
}

impl MemoryStore {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, (Revision, Bytes)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let found = self.entries().get(key).cloned();
        Ok(found.map(|(revision, value)| Entry { key: key.to_owned(), value, revision }))
    }

    async fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            Some(_) | None => Bound::Included(prefix),
        };
        Ok(self
            .entries()
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, (revision, value))| Entry { key: key.clone(), value: value.clone(), revision: *revision })
            .collect())
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        let mut entries = self.entries();
        for compare in &txn.compares {
            if entries.get(&compare.key).map_or(0, |(revision, _)| *revision) != compare.revision {
                return Err(StoreError::Conflict { key: compare.key.clone() });
            }
        }
        let revision = self.history.newest() + 1;
        let mut changes = Vec::with_capacity(txn.writes.len());
        for (key, value) in txn.writes {
            match &value {
                Some(value) => drop(entries.insert(key.clone(), (revision, value.clone()))),
                None => drop(entries.remove(&key)),
            }
            changes.push(Change { key, value, revision });
        }
        self.history.push(revision, changes);
        Ok(revision)
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.history.newest())
    }

    fn watch(&self, prefix: &str, from: Revision) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        self.history.watch(prefix, from)
    }
}
