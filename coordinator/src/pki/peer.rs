//! From a client certificate to the worker, and the workers that are no longer let in.

use std::{collections::HashSet, sync::RwLock};

use bytes::Bytes;
use kiln_common::WorkerId;
use rustls_pki_types::CertificateDer;

use crate::store::{Store, StoreError, Txn, keys, scan};

/// The certificate is the CA's, but does not name a worker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the client certificate does not name a worker; enrol again with a join token")]
pub struct PeerError;

/// The worker that a verified client certificate names (rustls has checked chain, dates and usage).
///
/// # Errors
/// [`PeerError`] for a certificate without a worker's id as its only common name.
pub fn worker_of(certificate: &CertificateDer<'_>) -> Result<WorkerId, PeerError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| PeerError)?;
    let mut names = parsed.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else { return Err(PeerError) };
    name.as_str().ok().and_then(|name| name.parse().ok()).ok_or(PeerError)
}

/// Workers whose certificates no longer count, in memory and in the store.
#[derive(Debug, Default)]
pub struct Revocations {
    workers: RwLock<HashSet<WorkerId>>,
}

impl Revocations {
    /// # Errors
    /// What the store says.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let entries = scan(store, keys::REVOKED).await?;
        let ids = entries.iter().filter_map(|entry| entry.key.strip_prefix(keys::REVOKED)?.parse().ok());
        Ok(Self { workers: RwLock::new(ids.collect()) })
    }

    /// Durable first, then in force.
    ///
    /// # Errors
    /// What the store says; the worker is then let in as before.
    pub async fn revoke(&self, store: &dyn Store, worker: WorkerId) -> Result<(), StoreError> {
        let mut txn = Txn::new();
        txn.put(keys::revoked(worker), Bytes::new());
        store.commit(txn).await?;
        self.enforce(worker);
        Ok(())
    }

    /// In force, where someone else made it durable.
    pub fn enforce(&self, worker: WorkerId) {
        self.workers.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(worker);
    }

    #[must_use]
    pub fn contains(&self, worker: WorkerId) -> bool {
        self.workers.read().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&worker)
    }
}
