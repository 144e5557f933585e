//! Encryption at rest for what is secret: ChaCha20-Poly1305 (RFC 8439) under one key that lies beside the store.
//!
//! Used by `secrets`. Invariant: a sealed text opens only with this farm's key and under the context that it was sealed
//! for, so that one build's secrets cannot be passed off as another's.

use std::path::Path;

use kiln_common::runtime::files::{self, FileError};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
/// First byte of every sealed text, for a later change of the form.
const VERSION: u8 = 1;

/// Why nothing can be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path} is not a key of {KEY_BYTES} bytes; restore it from a backup")]
    Key { path: String },
    #[error("the system gives no randomness")]
    Randomness,
    #[error("a sealed secret does not open: it was changed, or sealed with another key")]
    Opens,
}

pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Sealer {
    /// Reads the key in `path`, or makes one there on the first start.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open_key(path: &Path) -> Result<Self, SealError> {
        let random = SystemRandom::new();
        let bytes = match files::read_optional(path, 1024)? {
            Some(bytes) => Zeroizing::new(bytes),
            None => {
                let mut fresh = Zeroizing::new(vec![0; KEY_BYTES]);
                random.fill(&mut fresh).map_err(|_| SealError::Randomness)?;
                files::write_private(path, &fresh)?;
                fresh
            }
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes);
        let key = key.map_err(|_| SealError::Key { path: path.display().to_string() })?;
        Ok(Self { key: LessSafeKey::new(key), random })
    }

    /// Version, nonce, then the encrypted text with its tag. Random nonces do for fewer than 2^32 texts under one key.
    ///
    /// # Errors
    /// [`SealError::Randomness`].
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError::Randomness)?;
        let mut text = Zeroizing::new(plain.to_vec());
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut text)
            .map_err(|_| SealError::Randomness)?;
        Ok([&[VERSION], &nonce[..], &text, tag.as_ref()].concat())
    }

    /// # Errors
    /// [`SealError::Opens`].
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (version, rest) = sealed.split_first().ok_or(SealError::Opens)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Opens)?;
        if *version != VERSION {
            return Err(SealError::Opens);
        }
        let mut text = Zeroizing::new(text.to_vec());
        let length = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), &mut text)
            .map_err(|_| SealError::Opens)?
            .len();
        text.truncate(length);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_text_opens_with_its_key_and_context_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("seal.key");
        let sealed = Sealer::open_key(&path).expect("makes a key").seal(b"build 1", b"hunter2").expect("seals");
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        let again = Sealer::open_key(&path).expect("reads the key");
        assert_eq!(again.open(b"build 1", &sealed).expect("opens").as_slice(), b"hunter2");
        assert!(again.open(b"build 2", &sealed).is_err());
        let mut changed = sealed.clone();
        changed[20] ^= 1;
        assert!(again.open(b"build 1", &changed).is_err());
        let other = Sealer::open_key(&directory.path().join("other.key")).expect("makes a key");
        assert!(other.open(b"build 1", &sealed).is_err());
    }

    #[test]
    fn a_damaged_key_is_refused_by_its_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("seal.key");
        std::fs::write(&path, b"short").expect("writes");
        assert!(Sealer::open_key(&path).err().expect("refused").to_string().contains("seal.key"));
    }
}
