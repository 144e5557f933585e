//! API tokens: `kiln_` and 256 random bits. The store and the memory hold only SHA-256 of the text.
//!
//! A token is found by its hash; its 256 random bits make guessing hopeless and the time of a look-up tell nothing.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, RwLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kiln_common::{
    Timestamp,
    id::TokenId,
    limits,
    runtime::files::{self, FileError},
};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Caller, Role};
use crate::store::{Store, StoreError, Txn, keys, records, scan};

const PREFIX: &str = "kiln_";

type Hash = [u8; 32];

pub struct ApiTokens {
    store: Arc<dyn Store>,
    by_hash: RwLock<HashMap<Hash, ApiToken>>,
}

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    pub id: TokenId,
    pub name: String,
    pub role: Role,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
}

/// The stored form: under the token's id, with the hash of its text.
#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    token: ApiToken,
    sha256: String,
}

/// A token that was just made; its text is shown this once.
pub struct NewToken {
    pub secret: Zeroizing<String>,
    pub token: ApiToken,
}

/// Why a token was not made or not revoked.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("a token's name has 1 to {} characters and no control characters", limits::TOKEN_NAME_BYTES)]
    Name,
    #[error("there are already {} tokens; revoke some that nobody uses", limits::API_TOKENS)]
    TooMany,
    #[error("there is no token {id}")]
    Unknown { id: TokenId },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The admin token of the first start could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum AdminFileError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl ApiTokens {
    /// # Errors
    /// What the store says.
    pub async fn load(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mut by_hash = HashMap::new();
        for entry in scan(&*store, keys::API_TOKENS).await? {
            let record: Record = records::decode(&entry)?;
            let mut hash = Hash::default();
            hex::decode_to_slice(&record.sha256, &mut hash)
                .map_err(|error| StoreError::Malformed { key: entry.key, problem: error.to_string() })?;
            by_hash.insert(hash, record.token);
        }
        Ok(Self { store, by_hash: RwLock::new(by_hash) })
    }

    /// Makes a token; durable before it is shown.
    ///
    /// # Errors
    /// [`TokenError`] but never `Unknown`.
    pub async fn create(
        &self,
        name: &str,
        role: Role,
        ttl: Option<Duration>,
        now: Timestamp,
    ) -> Result<NewToken, TokenError> {
        if name.is_empty() || name.len() > limits::TOKEN_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(TokenError::Name);
        }
        if self.read().len() >= limits::API_TOKENS {
            return Err(TokenError::TooMany);
        }
        let secret = new_secret();
        let hash = hash(&secret);
        let expires_at = ttl.map(|ttl| now + ttl);
        let token = ApiToken { id: TokenId::generate(), name: name.to_owned(), role, created_at: now, expires_at };
        let key = key_of(token.id);
        let record = Record { token: token.clone(), sha256: hex::encode(hash) };
        let mut txn = Txn::new();
        txn.put(key.clone(), records::encode(&key, &record)?);
        self.store.commit(txn).await?;
        self.write().insert(hash, token.clone());
        Ok(NewToken { secret, token })
    }

    /// All tokens, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<ApiToken> {
        let mut all: Vec<ApiToken> = self.read().values().cloned().collect();
        all.sort_by_key(|token| (token.created_at, token.id));
        all
    }

    /// Ends a token at once, durably; gives what it was.
    ///
    /// # Errors
    /// [`TokenError::Unknown`], or what the store says; the token then still counts.
    pub async fn revoke(&self, id: TokenId) -> Result<ApiToken, TokenError> {
        let known = self.read().values().find(|token| token.id == id).cloned();
        let token = known.ok_or(TokenError::Unknown { id })?;
        let mut txn = Txn::new();
        txn.delete(key_of(id));
        self.store.commit(txn).await?;
        self.write().retain(|_, token| token.id != id);
        Ok(token)
    }

    /// The caller behind a token's text; `None` when it is unknown, expired or revoked.
    #[must_use]
    pub fn authenticate(&self, text: &str, now: Timestamp) -> Option<Caller> {
        if !text.starts_with(PREFIX) || text.len() > limits::BEARER_BYTES {
            return None;
        }
        let tokens = self.read();
        let token = tokens.get(&hash(text))?;
        let lives = token.expires_at.is_none_or(|end| now < end);
        lives.then(|| Caller::Token { id: token.id, name: token.name.clone(), role: token.role })
    }

    /// On the first start, and after the file was lost: writes an admin token to `path`, readable by its owner alone.
    ///
    /// # Errors
    /// [`AdminFileError`].
    pub async fn ensure_admin_file(&self, path: &Path, now: Timestamp) -> Result<(), AdminFileError> {
        let kept = files::read_optional(path, 4096)?.map(Zeroizing::new);
        let text = kept.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
        if text.is_some_and(|text| self.authenticate(text.trim(), now).is_some()) {
            return Ok(());
        }
        let new = self.create("admin (token file)", Role::Admin, None, now).await?;
        files::write_private(path, Zeroizing::new(format!("{}\n", *new.secret)).as_bytes())?;
        Ok(())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<Hash, ApiToken>> {
        self.by_hash.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<Hash, ApiToken>> {
        self.by_hash.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn new_secret() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::rng().fill_bytes(&mut *bytes);
    let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes));
    Zeroizing::new(format!("{PREFIX}{}", *text))
}

fn hash(text: &str) -> Hash {
    Sha256::digest(text).into()
}

fn key_of(id: TokenId) -> String {
    format!("{}{id}", keys::API_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    async fn tokens(store: &Arc<dyn Store>) -> ApiTokens {
        ApiTokens::load(Arc::clone(store)).await.expect("loaded")
    }

    fn store() -> Arc<dyn Store> {
        Arc::new(MemoryStore::default())
    }

    #[tokio::test]
    async fn a_token_lets_in_until_it_expires_or_is_revoked_even_over_a_restart() {
        let store = store();
        let all = tokens(&store).await;
        let ttl = Some(Duration::from_secs(60));
        let ci = all.create("ci", Role::Submitter, ttl, NOW).await.expect("made");
        let me = all.create("me", Role::Admin, None, NOW).await.expect("made");
        let again = tokens(&store).await;
        let caller = again.authenticate(&ci.secret, NOW).expect("lets in");
        assert!(matches!(caller, Caller::Token { role: Role::Submitter, ref name, .. } if name == "ci"));
        assert_eq!(again.authenticate(&ci.secret, NOW + Duration::from_secs(60)), None);
        assert!(again.authenticate(&me.secret, NOW + Duration::from_secs(1 << 30)).is_some());
        again.revoke(me.token.id).await.expect("revoked");
        assert_eq!(again.authenticate(&me.secret, NOW), None);
        assert!(matches!(again.revoke(me.token.id).await, Err(TokenError::Unknown { .. })));
        assert_eq!(tokens(&store).await.list(), [ci.token]);
    }

    #[tokio::test]
    async fn the_store_never_holds_the_secret() {
        let store = store();
        let new = tokens(&store).await.create("ci", Role::Viewer, None, NOW).await.expect("made");
        let random = new.secret.strip_prefix(PREFIX).expect("prefix");
        for entry in scan(&*store, "").await.expect("scanned") {
            assert!(!String::from_utf8_lossy(&entry.value).contains(random) && !entry.key.contains(random));
        }
    }

    #[tokio::test]
    async fn other_texts_and_names_are_refused() {
        let all = tokens(&store()).await;
        for text in ["", "kiln_", "kiln_x", "Bearer kiln_x"] {
            assert_eq!(all.authenticate(text, NOW), None);
        }
        for name in ["", "a\nb", &"x".repeat(limits::TOKEN_NAME_BYTES + 1)] {
            assert!(matches!(all.create(name, Role::Viewer, None, NOW).await, Err(TokenError::Name)));
        }
    }

    #[tokio::test]
    async fn the_admin_file_is_made_once_and_again_when_its_token_is_gone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("admin.token");
        let all = tokens(&store()).await;
        let read = || std::fs::read_to_string(&path).expect("a token");
        all.ensure_admin_file(&path, NOW).await.expect("made");
        let first = read();
        all.ensure_admin_file(&path, NOW).await.expect("kept");
        assert_eq!(read(), first);
        all.revoke(all.list()[0].id).await.expect("revoked");
        all.ensure_admin_file(&path, NOW).await.expect("made anew");
        assert_ne!(read(), first);
        let caller = all.authenticate(read().trim(), NOW).expect("lets in");
        assert!(matches!(caller, Caller::Token { role: Role::Admin, .. }));
    }
}
