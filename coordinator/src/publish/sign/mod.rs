//! Signatures of what is published, as `cosign verify --key` reads them: found by cosign's own tag and as OCI referrers.
//!
//! `publish` signs between the push by digest and the first move of a tag. Invariants: every child is signed before the
//! index, in every repository; signatures of others stay; what this key has signed already is not signed again.

mod key;
mod signature;
#[cfg(test)]
mod tests;

use futures_util::{StreamExt, TryStreamExt, stream};
use kiln_common::{Repository, spec::BuildSpec};

pub use self::key::{SigningKey, SigningKeyError};
pub(super) use self::signature::{layers as read, tag as signature_tag};
use super::{
    error::{Fault, RegistryError},
    manifest::{Descriptor, OCI_MANIFEST},
    referrers::Referrer,
    registry::{Pointer, Session, sha256},
    target::Target,
};

/// Signatures on their way at once.
const CONCURRENT: usize = 8;

/// Signs the target and its children in the repositories of the build, if the build wants that.
///
/// # Errors
/// The first signature that a registry did not take.
pub(super) async fn sign(
    key: Option<&SigningKey>,
    session: &Session,
    spec: &BuildSpec,
    target: &Target,
) -> Result<(), RegistryError> {
    let key = match (key, spec.sign) {
        (_, Some(false)) | (None, None) => return Ok(()),
        (Some(key), Some(true) | None) => key,
        (None, Some(true)) => {
            return Err(RegistryError::new(
                Fault::Final,
                "the build is to be signed, and this farm has no signing key",
            ));
        }
    };
    let top = Descriptor {
        media_type: target.media_type.clone(),
        digest: target.digest.clone(),
        size: target.bytes.len() as u64,
        annotations: Default::default(),
        platform: None,
    };
    for signed in [target.children.as_slice(), &[top]] {
        let mut work = Vec::new();
        for repository in spec.repositories() {
            work.extend(signed.iter().map(|one| sign_one(key, session, repository, one)));
        }
        stream::iter(work).buffer_unordered(CONCURRENT).try_collect::<()>().await?;
    }
    Ok(())
}

async fn sign_one(
    key: &SigningKey,
    session: &Session,
    repository: &Repository,
    signed: &Descriptor,
) -> Result<(), RegistryError> {
    let attached = attach(key, session, repository, signed).await;
    attached.map_err(|error| {
        let message = format!("cannot sign {repository}@{}: {}", signed.digest, error.message);
        RegistryError { message, ..error }
    })
}

async fn attach(
    key: &SigningKey,
    session: &Session,
    repository: &Repository,
    signed: &Descriptor,
) -> Result<(), RegistryError> {
    let (tag, payload) = (signature::tag(&signed.digest), signature::payload(repository, &signed.digest));
    let there = session.find_manifest(repository, Pointer::Tag(&tag)).await?;
    let mut layers = there.map(|fetched| signature::layers(&fetched.bytes)).unwrap_or_default();
    if signature::is_among(&layers, key, &payload) {
        return Ok(());
    }
    let made = key.sign(&payload);
    let made = made.ok_or_else(|| RegistryError::new(Fault::Final, "the system gives no randomness"))?;
    layers.push(signature::layer(&payload, &made));
    let config = signature::config(&layers);
    session.put_blob(repository, &sha256(&payload), &payload).await?;
    session.put_blob(repository, &sha256(&config), &config).await?;
    let bytes = signature::manifest(signed, &config, &layers);
    let digest = sha256(&bytes);
    let artifact_type = signature::ARTIFACT_TYPE;
    let referrer = Referrer { subject: &signed.digest, artifact_type, digest, bytes: bytes.clone() };
    session.put_referrer(repository, &referrer).await?;
    // Last: whoever finds it finds all of it.
    session.put_manifest(repository, Pointer::Tag(&tag), OCI_MANIFEST, &bytes).await
}
