//! Join tokens: each lets a few workers in for a while. The store keeps a hash of the secret, never the secret.
//!
//! A token is found by the hash of its secret. The secret has 256 random bits, so neither the hash nor the time that a
//! look-up takes says anything about it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kiln_common::{Timestamp, limits, runtime::JoinToken};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::store::{Store, StoreError, Txn, keys, records, scan};

pub struct JoinTokens {
    store: Arc<dyn Store>,
    coordinators: Vec<String>,
    ca_fingerprint: [u8; 32],
}

/// What the store keeps of a token.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    expires_at: Timestamp,
    uses_left: u32,
    labels: BTreeMap<String, String>,
}

/// What a redeemed token gives its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinGrant {
    pub labels: BTreeMap<String, String>,
}

/// Why a join token was not made or not taken.
#[derive(Debug, thiserror::Error)]
pub enum JoinRejected {
    #[error("the join token is malformed, unknown, expired or used up; make one with `kiln workers token create`")]
    NotValid,
    #[error("a join token may live at most {}h", limits::JOIN_TOKEN_TTL_MAX.as_secs() / 3600)]
    TooLong,
    #[error("there are already {} join tokens; wait until some expire", limits::JOIN_TOKENS)]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl JoinTokens {
    /// `coordinators` are the `HOST:PORT`s that workers are to use.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, coordinators: Vec<String>, ca_fingerprint: [u8; 32]) -> Self {
        Self { store, coordinators, ca_fingerprint }
    }

    /// The addresses that the tokens carry.
    #[must_use]
    pub fn coordinators(&self) -> &[String] {
        &self.coordinators
    }

    /// A new token and when it ends.
    ///
    /// # Errors
    /// [`JoinRejected`] but never `NotValid`.
    pub async fn create(
        &self,
        ttl: Duration,
        uses: u32,
        labels: BTreeMap<String, String>,
        now: Timestamp,
    ) -> Result<(JoinToken, Timestamp), JoinRejected> {
        if ttl > limits::JOIN_TOKEN_TTL_MAX {
            return Err(JoinRejected::TooLong);
        }
        let mut txn = Txn::new();
        let kept = self.forget_expired(&mut txn, now).await?;
        if kept >= limits::JOIN_TOKENS {
            return Err(JoinRejected::TooMany);
        }
        let mut secret = [0; 32];
        rand::rng().fill_bytes(&mut secret);
        let token = JoinToken { coordinators: self.coordinators.clone(), ca_fingerprint: self.ca_fingerprint, secret };
        let expires_at = now + ttl;
        let key = key_of(&secret);
        txn.put(key.clone(), records::encode(&key, &Record { expires_at, uses_left: uses.max(1), labels })?);
        self.store.commit(txn).await?;
        Ok((token, expires_at))
    }

    /// Takes one use of the token.
    ///
    /// # Errors
    /// [`JoinRejected::NotValid`] without saying which of its reasons it is.
    pub async fn redeem(&self, text: &str, now: Timestamp) -> Result<JoinGrant, JoinRejected> {
        let token: JoinToken = text.parse().map_err(|_| JoinRejected::NotValid)?;
        let secret = Zeroizing::new(token.secret);
        let key = key_of(&secret);
        loop {
            let entry = self.store.get(&key).await?.ok_or(JoinRejected::NotValid)?;
            let record: Record = records::decode(&entry)?;
            if record.expires_at <= now || record.uses_left == 0 {
                return Err(JoinRejected::NotValid);
            }
            let mut txn = Txn::new();
            txn.compare(key.clone(), entry.revision);
            match record.uses_left - 1 {
                0 => txn.delete(key.clone()),
                uses_left => {
                    let rest = Record { uses_left, ..record.clone() };
                    txn.put(key.clone(), records::encode(&key, &rest)?)
                }
            };
            match self.store.commit(txn).await {
                Ok(_) => return Ok(JoinGrant { labels: record.labels }),
                // Another worker took a use in between: ends after as many rounds as the token has uses.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Deletes what has expired, and counts the rest.
    async fn forget_expired(&self, txn: &mut Txn, now: Timestamp) -> Result<usize, StoreError> {
        let mut kept = 0;
        for entry in scan(&*self.store, keys::JOIN_TOKENS).await? {
            match records::decode::<Record>(&entry) {
                Ok(record) if record.expires_at > now => kept += 1,
                Ok(_) | Err(_) => {
                    txn.delete(entry.key);
                }
            }
        }
        Ok(kept)
    }
}

fn key_of(secret: &[u8; 32]) -> String {
    format!("{}{}", keys::JOIN_TOKENS, hex::encode(Sha256::digest(secret)))
}
