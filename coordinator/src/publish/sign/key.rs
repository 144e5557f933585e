//! The key that the farm signs with: ECDSA on P-256 with SHA-256, as cosign's keys are, in a file of its own.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, path::PathBuf};

use kiln_common::runtime::files::{self, FileError};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey},
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

/// A PEM file with a key and some comments.
const FILE_BYTES: u64 = 64 * 1024;

/// Signs what the farm publishes.
#[derive(Debug)]
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

/// Why a file is not the farm's signing key.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    #[error(transparent)]
    Unreadable(#[from] FileError),
    #[error("the signing key {} is readable by others (mode {mode:03o}); `chmod 600` it", .path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "the signing key {} is encrypted; a farm signs without anybody there to give a password: make it a key of its own with \
         `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`",
        .path.display()
    )]
    Encrypted { path: PathBuf },
    #[error(
        "{} is no signing key: an unencrypted ECDSA key on the curve P-256 in PKCS#8 and PEM is needed; make one with \
         `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`, or convert one with `openssl pkcs8 -topk8 -nocrypt`",
        .path.display()
    )]
    Unfit { path: PathBuf },
}

impl SigningKey {
    /// Reads the PEM file, which nobody but its owner may read.
    ///
    /// # Errors
    /// [`SigningKeyError`], with what to do about it.
    pub fn read(path: &Path) -> Result<Self, SigningKeyError> {
        let failed = |source: io::Error| FileError { act: "read", path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SigningKeyError::Exposed { path: path.to_owned(), mode });
        }
        let text = files::read_optional(path, FILE_BYTES)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let text = Zeroizing::new(text);
        if memchr::memmem::find(&text, b"BEGIN ENCRYPTED").is_some() {
            return Err(SigningKeyError::Encrypted { path: path.to_owned() });
        }
        Self::from_pem(&text).ok_or_else(|| SigningKeyError::Unfit { path: path.to_owned() })
    }

    fn from_pem(text: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let PrivateKeyDer::Pkcs8(der) = PrivateKeyDer::from_pem_slice(text).ok()? else { return None };
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der(), &random).ok()?;
        Some(Self { pair, random })
    }

    /// The signature in ASN.1; `None` where the system gives no randomness.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.pair.sign(&self.random, message).ok().map(|signature| signature.as_ref().to_vec())
    }

    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.pair.public_key().as_ref());
        public.verify(message, signature).is_ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs::Permissions, process::Command};

    use super::*;

    /// A new key in PEM.
    pub fn pem() -> String {
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key").serialize_pem()
    }

    fn read(text: &str, mode: u32) -> Result<SigningKey, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("signing.pem");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
        SigningKey::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_signs_what_it_knows_again() {
        let (one, other) = (read(&pem(), 0o600).expect("a key"), read(&pem(), 0o400).expect("a key"));
        let signature = one.sign(b"message").expect("signed");
        assert!(one.has_signed(b"message", &signature) && !one.has_signed(b"another", &signature));
        assert!(!other.has_signed(b"message", &signature) && !one.has_signed(b"message", b"nonsense"));
    }

    #[test]
    fn a_key_that_openssl_made_is_taken() {
        let arguments = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
        // Where there is no openssl, the bed's tests still have it.
        let Ok(made) = Command::new("openssl").args(arguments).output() else { return };
        read(&String::from_utf8_lossy(&made.stdout), 0o600).expect("a key");
    }

    #[test]
    fn what_is_no_key_of_the_farm_is_refused_with_a_remedy() {
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key").serialize_pem();
        let encrypted =
            "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\ne30=\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n";
        for (text, mode, part) in [
            (pem().as_str(), 0o644, "`chmod 600`"),
            (pem().as_str(), 0o620, "mode 620"),
            (encrypted, 0o600, "is encrypted"),
            (other.as_str(), 0o600, "P-256"),
            ("not a key", 0o600, "openssl genpkey"),
            ("", 0o600, "openssl genpkey"),
        ] {
            let error = read(text, mode).expect_err(part);
            assert!(error.contains(part) && error.contains("signing.pem"), "{error}");
        }
        let missing = SigningKey::read(Path::new("/nonexistent/key.pem")).expect_err("missing").to_string();
        assert!(missing.contains("/nonexistent/key.pem"), "{missing}");
    }
}
