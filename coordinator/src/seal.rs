//! Envelope encryption for what must not lie readable in the store: build secrets, registry credentials.
//!
//! Used by `secrets`. Each sealed value has its own random data key, which a key from a file (mode 0600) wraps. `seal.key`
//! is the first such key; a later one in `seal.key.2` and so on takes over sealing while the older ones still open. AES-256-GCM (NIST SP 800-38D) from ring, a random 96-bit nonce for each use; the context
//! (the build it belongs to) is authenticated, so a value cannot be moved to another place.
//!
//! ```text
//! version:1 | key id:4 | nonce:12 | wrapped data key:32+16 | nonce:12 | ciphertext:n+16
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_common::runtime::files::{self, FileError};
use rand::RngCore;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};
use zeroize::{Zeroize, Zeroizing};

const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const HEAD_BYTES: usize = 1 + 4;
const WRAPPED_BYTES: usize = NONCE_LEN + KEY_BYTES + TAG_BYTES;
const FIRST_KEY: u32 = 1;

/// Seals and opens. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    keys: Arc<BTreeMap<u32, LessSafeKey>>,
    /// Of the first key, which stays: a mark is the same before and after the farm gets a newer one.
    marking: hmac::Key,
}

/// Why nothing can be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot list {}: {source}", .folder.display())]
    List { folder: PathBuf, source: io::Error },
    #[error("{} is not a sealing key of 64 hex digits; restore it from a backup", .path.display())]
    KeyFile { path: PathBuf },
    #[error("a sealed secret is cut short or of an unknown version")]
    Malformed,
    #[error("sealing key {0} is missing beside the store; restore it from a backup")]
    UnknownKey(u32),
    #[error("a sealed secret does not open: it was changed, or moved from another place")]
    Forged,
    #[error("the cipher refused to work")]
    Cipher,
}

impl Sealer {
    /// Reads the key in `path` and its successors; makes the first one where there is none. The highest number seals.
    ///
    /// # Errors
    /// [`SealError::File`], [`SealError::List`] or [`SealError::KeyFile`].
    pub fn open_key(path: &Path) -> Result<Self, SealError> {
        let (mut keys, mut marking) = (BTreeMap::new(), None);
        for (number, path) in key_files(path)? {
            let malformed = || SealError::KeyFile { path: path.clone() };
            let text = Zeroizing::new(files::read_optional(&path, 256)?.ok_or_else(malformed)?);
            let mut key = Zeroizing::new([0; KEY_BYTES]);
            hex::decode_to_slice(text.trim_ascii(), &mut *key).map_err(|_| malformed())?;
            marking.get_or_insert_with(|| marking_key(&*key));
            keys.insert(number, cipher(&*key)?);
        }
        if keys.is_empty() {
            let key = random_key();
            files::write_private(path, Zeroizing::new(hex::encode(*key)).as_bytes())?;
            marking = Some(marking_key(&*key));
            keys.insert(FIRST_KEY, cipher(&*key)?);
        }
        Ok(Self { keys: Arc::new(keys), marking: marking.ok_or(SealError::Cipher)? })
    }

    /// `context` names the place where the value will lie.
    ///
    /// # Errors
    /// [`SealError::Cipher`] alone.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let (number, wrapping) = self.keys.last_key_value().ok_or(SealError::Cipher)?;
        let data_key = random_key();
        let mut sealed = Vec::with_capacity(HEAD_BYTES + WRAPPED_BYTES + NONCE_LEN + plain.len() + TAG_BYTES);
        sealed.push(VERSION);
        sealed.extend_from_slice(&number.to_be_bytes());
        encrypt(wrapping, context, &*data_key, &mut sealed)?;
        encrypt(&cipher(&*data_key)?, context, plain, &mut sealed)?;
        Ok(sealed)
    }

    /// Equal for equal values, and of no use to whoever lacks the key (HMAC-SHA-256, RFC 2104).
    #[must_use]
    pub fn mark(&self, plain: &[u8]) -> [u8; 32] {
        let mut mark = [0; 32];
        mark.copy_from_slice(hmac::sign(&self.marking, plain).as_ref());
        mark
    }

    /// # Errors
    /// [`SealError`].
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (head, rest) = sealed.split_at_checked(HEAD_BYTES).ok_or(SealError::Malformed)?;
        let (wrapped, body) = rest.split_at_checked(WRAPPED_BYTES).ok_or(SealError::Malformed)?;
        let &[VERSION, a, b, c, d] = head else { return Err(SealError::Malformed) };
        let number = u32::from_be_bytes([a, b, c, d]);
        let wrapping = self.keys.get(&number).ok_or(SealError::UnknownKey(number))?;
        let data_key = decrypt(wrapping, context, wrapped)?;
        decrypt(&cipher(&data_key)?, context, body)
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("keys", &self.keys.keys()).finish()
    }
}

/// `seal.key` is number 1, `seal.key.N` number N.
fn key_files(first: &Path) -> Result<Vec<(u32, PathBuf)>, SealError> {
    let (Some(folder), Some(name)) = (first.parent(), first.file_name().and_then(|name| name.to_str())) else {
        return Err(SealError::KeyFile { path: first.to_owned() });
    };
    files::create_private_dir(folder)?;
    let list = |source| SealError::List { folder: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(list)? {
        let entry = entry.map_err(list)?;
        let number = match entry.file_name().to_str().and_then(|found| found.strip_prefix(name)) {
            Some("") => Some(FIRST_KEY),
            Some(rest) => rest.strip_prefix('.').and_then(|number| number.parse().ok()),
            None => None,
        };
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort_unstable();
    Ok(found)
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| SealError::Cipher)
}

/// A key of its own, so that the sealing key has one use.
fn marking_key(key: &[u8]) -> hmac::Key {
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"kiln: marks of registry credentials");
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

fn random_key() -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    rand::rng().fill_bytes(&mut *key);
    key
}

/// Appends nonce, ciphertext and tag.
fn encrypt(key: &LessSafeKey, context: &[u8], plain: &[u8], sealed: &mut Vec<u8>) -> Result<(), SealError> {
    let mut nonce = [0; NONCE_LEN];
    rand::rng().fill_bytes(&mut nonce);
    sealed.extend_from_slice(&nonce);
    let start = sealed.len();
    sealed.extend_from_slice(plain);
    let (_, body) = sealed.split_at_mut(start);
    let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), body);
    match tag {
        Ok(tag) => {
            sealed.extend_from_slice(tag.as_ref());
            Ok(())
        }
        Err(_) => {
            sealed.zeroize();
            Err(SealError::Cipher)
        }
    }
}

fn decrypt(key: &LessSafeKey, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError::Malformed)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Malformed)?;
    let mut plain = Zeroizing::new(body.to_vec());
    let length = key.open_in_place(nonce, Aad::from(context), &mut plain).map_err(|_| SealError::Forged)?.len();
    plain.truncate(length);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer() -> (tempfile::TempDir, Sealer) {
        let folder = tempfile::tempdir().expect("folder");
        let sealer = Sealer::open_key(&folder.path().join("seal.key")).expect("opens");
        (folder, sealer)
    }

    #[test]
    fn a_sealed_value_opens_after_a_restart_and_shows_nothing() {
        let (folder, sealer) = sealer();
        let sealed = sealer.seal(b"secrets/1", b"hunter2").expect("sealed");
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        let again = Sealer::open_key(&folder.path().join("seal.key")).expect("opens again");
        assert_eq!(again.open(b"secrets/1", &sealed).expect("opened").as_slice(), b"hunter2");
        assert_ne!(sealer.seal(b"secrets/1", b"hunter2").expect("sealed"), sealed);
    }

    #[test]
    fn a_moved_changed_or_cut_value_does_not_open() {
        let (_folder, sealer) = sealer();
        let sealed = sealer.seal(b"secrets/1", b"hunter2").expect("sealed");
        assert!(matches!(sealer.open(b"secrets/2", &sealed), Err(SealError::Forged)));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(sealer.open(b"secrets/1", &changed).is_err(), "byte {at}");
            assert!(sealer.open(b"secrets/1", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn an_older_key_still_opens_and_the_newest_seals() {
        let (folder, sealer) = sealer();
        let old = sealer.seal(b"x", b"old").expect("sealed");
        files::write_private(&folder.path().join("seal.key.2"), "ab".repeat(32).as_bytes()).expect("second key");
        let both = Sealer::open_key(&folder.path().join("seal.key")).expect("opens");
        assert_eq!(both.open(b"x", &old).expect("opened").as_slice(), b"old");
        let new = both.seal(b"x", b"new").expect("sealed");
        assert!(matches!(sealer.open(b"x", &new), Err(SealError::UnknownKey(2))));
    }

    #[test]
    fn marks_tell_values_apart_and_outlast_a_restart_and_a_newer_key() {
        let (folder, sealer) = sealer();
        let mark = sealer.mark(b"hunter2");
        assert_ne!(mark, sealer.mark(b"hunter3"));
        files::write_private(&folder.path().join("seal.key.2"), "ab".repeat(32).as_bytes()).expect("second key");
        let again = Sealer::open_key(&folder.path().join("seal.key")).expect("opens again");
        assert_eq!(again.mark(b"hunter2"), mark);
        let (_other_folder, other) = self::sealer();
        assert_ne!(other.mark(b"hunter2"), mark, "another farm's key");
    }

    #[test]
    fn a_malformed_key_file_is_named() {
        let (folder, _) = sealer();
        std::fs::write(folder.path().join("seal.key.7"), "short").expect("written");
        let error = Sealer::open_key(&folder.path().join("seal.key")).expect_err("malformed").to_string();
        assert!(error.contains("seal.key.7") && error.contains("backup"), "{error}");
    }
}
