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

/// Digits of the hash that name a token.
const ID_DIGITS: usize = 12;

pub struct JoinTokens {
    store: Arc<dyn Store>,
    coordinators: Vec<String>,
    ca_fingerprint: [u8; 32],
}

/// What the store keeps of a token, also once it lets nobody in any more: so that a later refusal can say why.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    #[serde(default)]
    created_at: Timestamp,
    expires_at: Timestamp,
    uses_left: u32,
    labels: BTreeMap<String, String>,
    #[serde(default)]
    revoked_at: Option<Timestamp>,
}

/// A token as people see it, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenView {
    /// The beginning of the secret's hash.
    pub id: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub uses_left: u32,
    pub labels: BTreeMap<String, String>,
    /// Why it lets nobody in any more.
    pub fault: Option<TokenFault>,
}

/// A token that was just made; its text is shown this once.
#[derive(Debug, Clone)]
pub struct NewJoinToken {
    pub token: JoinToken,
    pub id: String,
    pub expires_at: Timestamp,
}

/// What a redeemed token gives its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinGrant {
    /// The token's public id.
    pub id: String,
    pub labels: BTreeMap<String, String>,
}

/// Why a token lets nobody in. Its holder may know: whoever has the 256 random bits did not guess them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    #[error("it is malformed")]
    Malformed,
    #[error("it is another farm's")]
    OtherFarm,
    #[error("the farm does not know it")]
    Unknown,
    #[error("it has expired")]
    Expired,
    #[error("all its uses are taken")]
    UsedUp,
    #[error("it was revoked")]
    Revoked,
}

/// Why a join token was not made, taken or revoked.
#[derive(Debug, thiserror::Error)]
pub enum JoinRejected {
    #[error("the join token is not accepted: {fault}; make one with `kiln workers token create`")]
    NotValid { fault: TokenFault, id: Option<String> },
    #[error("there is no join token `{id}`")]
    NoSuchToken { id: String },
    #[error("several join tokens begin with `{id}`; give more characters")]
    Ambiguous { id: String },
    #[error("a join token may live at most {}h", limits::JOIN_TOKEN_TTL_MAX.as_secs() / 3600)]
    TooLong,
    #[error("there are already {} join tokens; revoke some or wait until some expire", limits::JOIN_TOKENS)]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Record {
    fn fault(&self, now: Timestamp) -> Option<TokenFault> {
        if self.revoked_at.is_some() {
            Some(TokenFault::Revoked)
        } else if self.uses_left == 0 {
            Some(TokenFault::UsedUp)
        } else if self.expires_at <= now {
            Some(TokenFault::Expired)
        } else {
            None
        }
    }

    /// Long enough over that nobody asks for it any more.
    fn is_forgotten(&self, now: Timestamp) -> bool {
        let ended = self.revoked_at.unwrap_or(self.expires_at);
        now.since(ended) > limits::JOIN_TOKEN_MEMORY
    }
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

    /// A new token.
    ///
    /// # Errors
    /// [`JoinRejected::TooLong`], [`JoinRejected::TooMany`], or what the store says.
    pub async fn create(
        &self,
        ttl: Duration,
        uses: u32,
        labels: BTreeMap<String, String>,
        now: Timestamp,
    ) -> Result<NewJoinToken, JoinRejected> {
        if ttl > limits::JOIN_TOKEN_TTL_MAX {
            return Err(JoinRejected::TooLong);
        }
        let mut txn = Txn::new();
        self.make_room(&mut txn, now).await?;
        let mut secret = [0; 32];
        rand::rng().fill_bytes(&mut secret);
        let token = JoinToken { coordinators: self.coordinators.clone(), ca_fingerprint: self.ca_fingerprint, secret };
        let expires_at = now + ttl;
        let key = key_of(&secret);
        let record = Record { created_at: now, expires_at, uses_left: uses.max(1), labels, revoked_at: None };
        txn.put(key.clone(), records::encode(&key, &record)?);
        self.store.commit(txn).await?;
        Ok(NewJoinToken { token, id: id_of(&key), expires_at })
    }

    /// Takes one use of the token.
    ///
    /// # Errors
    /// [`JoinRejected::NotValid`], or what the store says.
    pub async fn redeem(&self, text: &str, now: Timestamp) -> Result<JoinGrant, JoinRejected> {
        let invalid = |fault| JoinRejected::NotValid { fault, id: None };
        let token: JoinToken = text.parse().map_err(|_| invalid(TokenFault::Malformed))?;
        let secret = Zeroizing::new(token.secret);
        if token.ca_fingerprint != self.ca_fingerprint {
            return Err(invalid(TokenFault::OtherFarm));
        }
        let key = key_of(&secret);
        let id = id_of(&key);
        loop {
            let entry = self.store.get(&key).await?.ok_or_else(|| invalid(TokenFault::Unknown))?;
            let mut record: Record = records::decode(&entry)?;
            if let Some(fault) = record.fault(now) {
                return Err(JoinRejected::NotValid { fault, id: Some(id) });
            }
            record.uses_left -= 1;
            let mut txn = Txn::new();
            txn.compare(key.clone(), entry.revision).put(key.clone(), records::encode(&key, &record)?);
            match self.store.commit(txn).await {
                Ok(_) => return Ok(JoinGrant { id, labels: record.labels }),
                // Another worker took a use in between: ends after as many rounds as the token has uses.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Every token that the farm remembers, oldest first.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(&self, now: Timestamp) -> Result<Vec<JoinTokenView>, StoreError> {
        let mut all = Vec::new();
        for entry in scan(&*self.store, keys::JOIN_TOKENS).await? {
            let record: Record = records::decode(&entry)?;
            let (id, fault) = (id_of(&entry.key), record.fault(now));
            let Record { created_at, expires_at, uses_left, labels, revoked_at: _ } = record;
            all.push(JoinTokenView { id, created_at, expires_at, uses_left, labels, fault });
        }
        all.sort_by_key(|view| view.created_at);
        Ok(all)
    }

    /// Ends a token at once, durably; workers that joined with it stay. Gives its full id.
    ///
    /// # Errors
    /// [`JoinRejected::NoSuchToken`], [`JoinRejected::Ambiguous`], or what the store says.
    pub async fn revoke(&self, id: &str, now: Timestamp) -> Result<String, JoinRejected> {
        let unknown = || JoinRejected::NoSuchToken { id: id.chars().take(64).collect() };
        if id.is_empty() || id.len() > 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        let prefix = format!("{}{}", keys::JOIN_TOKENS, id.to_ascii_lowercase());
        loop {
            let mut found = self.store.range(&prefix, None, 2).await?;
            let entry = found.pop().ok_or_else(unknown)?;
            if !found.is_empty() {
                return Err(JoinRejected::Ambiguous { id: id.to_owned() });
            }
            let record = Record { revoked_at: Some(now), ..records::decode(&entry)? };
            let mut txn = Txn::new();
            txn.compare(&entry.key, entry.revision).put(&entry.key, records::encode(&entry.key, &record)?);
            match self.store.commit(txn).await {
                Ok(_) => return Ok(id_of(&entry.key)),
                // A worker took a use in between.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Forgets tokens that ended long ago, and the oldest of those that ended when there are too many.
    async fn make_room(&self, txn: &mut Txn, now: Timestamp) -> Result<(), JoinRejected> {
        let (mut live, mut ended) = (0, Vec::new());
        for entry in scan(&*self.store, keys::JOIN_TOKENS).await? {
            match records::decode::<Record>(&entry) {
                Ok(record) if record.fault(now).is_none() => live += 1,
                Ok(record) if !record.is_forgotten(now) => ended.push((record.created_at, entry.key)),
                Ok(_) | Err(_) => {
                    txn.delete(entry.key);
                }
            }
        }
        if live >= limits::JOIN_TOKENS {
            return Err(JoinRejected::TooMany);
        }
        ended.sort();
        let surplus = ended.len().saturating_sub(limits::JOIN_TOKENS);
        for (_, key) in ended.into_iter().take(surplus) {
            txn.delete(key);
        }
        Ok(())
    }
}

fn key_of(secret: &[u8; 32]) -> String {
    format!("{}{}", keys::JOIN_TOKENS, hex::encode(Sha256::digest(secret)))
}

fn id_of(key: &str) -> String {
    let hash = key.strip_prefix(keys::JOIN_TOKENS).unwrap_or(key);
    hash.get(..ID_DIGITS).unwrap_or(hash).to_owned()
}
