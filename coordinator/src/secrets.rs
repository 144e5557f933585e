//! The builds' secrets at rest: sealed in the store, opened for the attempt or the publish that needs them.
//!
//! Written by the driver in the transaction that makes the build, deleted in the one that ends it. Invariant: the store
//! never holds a secret in the clear, and a sealed one opens only under its own build's id.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
};

use kiln_common::BuildId;
use kiln_scheduler::CredentialsMark;

use crate::{
    credentials::{BuildSecrets, InvalidSecrets},
    seal::{SealError, Sealer},
    store::{Store, StoreError, keys, scan},
};

#[derive(Clone)]
pub struct SecretStore {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    /// Builds that may have secrets in the store, once the driver has said which: most have none, and nothing is read then.
    holders: Arc<RwLock<Option<HashSet<BuildId>>>>,
}

/// A build's secrets are there but cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Invalid(#[from] InvalidSecrets),
}

impl SecretStore {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, sealer: Arc<Sealer>) -> Self {
        Self { store, sealer, holders: Arc::default() }
    }

    /// Reads which builds have secrets; from now on the driver says of each that comes and goes.
    ///
    /// # Errors
    /// What the store says.
    pub async fn restore(&self) -> Result<(), StoreError> {
        let entries = scan(&*self.store, keys::SECRETS).await?;
        let holders = entries.iter().filter_map(|entry| keys::build_of(&entry.key)).collect();
        *self.holders.write().unwrap_or_else(PoisonError::into_inner) = Some(holders);
        Ok(())
    }

    /// Sealed secrets of the build are about to be committed.
    pub fn came(&self, build: BuildId) {
        if let Some(holders) = &mut *self.holders.write().unwrap_or_else(PoisonError::into_inner) {
            holders.insert(build);
        }
    }

    /// The build's secrets are deleted.
    pub fn went(&self, build: BuildId) {
        if let Some(holders) = &mut *self.holders.write().unwrap_or_else(PoisonError::into_inner) {
            holders.remove(&build);
        }
    }

    fn has_none(&self, build: BuildId) -> bool {
        let holders = self.holders.read().unwrap_or_else(PoisonError::into_inner);
        holders.as_ref().is_some_and(|holders| !holders.contains(&build))
    }

    /// The form that goes into the store.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(&self, build: BuildId, secrets: &BuildSecrets) -> Result<Vec<u8>, SealError> {
        self.sealer.seal(build.as_uuid().as_bytes(), &secrets.to_bytes())
    }

    /// Tells the build's registry credentials from others; `None` without any.
    #[must_use]
    pub fn mark(&self, secrets: &BuildSecrets) -> Option<CredentialsMark> {
        let plain = secrets.credentials_bytes()?;
        Some(CredentialsMark(hex::encode(self.sealer.mark(&plain)).into()))
    }

    /// What the build may know; nothing for a build without secrets, or one that is final.
    ///
    /// # Errors
    /// [`SecretError`].
    pub async fn open(&self, build: BuildId) -> Result<BuildSecrets, SecretError> {
        if self.has_none(build) {
            return Ok(BuildSecrets::default());
        }
        let Some(entry) = self.store.get(&keys::secrets(build)).await? else { return Ok(BuildSecrets::default()) };
        let plain = self.sealer.open(build.as_uuid().as_bytes(), &entry.value)?;
        Ok(BuildSecrets::from_bytes(&plain)?)
    }
}
