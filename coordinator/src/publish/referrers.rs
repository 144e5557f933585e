//! Manifests that refer to another one: listed by registries that know referrers, and by a tag in all others
//! (distribution-spec 1.1, "Pushing Manifests with Subject" and "Referrers Tag Schema").

use bytes::Bytes;
use kiln_common::{Digest, Repository, limits};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    error::{Fault, RegistryError},
    manifest::{OCI_INDEX, OCI_MANIFEST},
    registry::{Call, Fetched, Pointer, Session},
};

/// A manifest with a subject, before it is pushed.
pub(super) struct Referrer<'a> {
    pub subject: &'a Digest,
    pub artifact_type: &'a str,
    pub digest: Digest,
    pub bytes: Bytes,
}

/// The tag under which a registry without referrers lists those of `subject`.
pub(super) fn fallback_tag(subject: &Digest) -> String {
    subject.to_string().replacen(':', "-", 1)
}

impl Session {
    /// Pushes the manifest by its digest, so that whoever asks for the subject's referrers finds it.
    pub async fn put_referrer(&self, repository: &Repository, referrer: &Referrer<'_>) -> Result<(), RegistryError> {
        let reference = referrer.digest.to_string();
        let body = Some((OCI_MANIFEST, &referrer.bytes));
        let call = Call { method: Method::PUT, repository, kind: "manifests", reference, body };
        let pushed = self.retry(|| self.send(&call, "push to")).await?;
        if pushed.headers().contains_key("oci-subject") {
            return Ok(());
        }
        let tag = fallback_tag(referrer.subject);
        let listed = self.find_manifest(repository, Pointer::Tag(&tag)).await?;
        let Some(bytes) = with_entry(listed, referrer)? else { return Ok(()) };
        self.put_manifest(repository, Pointer::Tag(&tag), OCI_INDEX, &bytes).await
    }
}

/// The list with the referrer, every other entry as it was; `None` where it is in it.
fn with_entry(listed: Option<Fetched>, referrer: &Referrer<'_>) -> Result<Option<Bytes>, RegistryError> {
    let unread = |why: String| RegistryError::new(Fault::Final, format!("the list of referrers does not read: {why}"));
    let mut index: Value = match listed {
        Some(fetched) => serde_json::from_slice(&fetched.bytes).map_err(|error| unread(error.to_string()))?,
        None => json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }),
    };
    let entries = index.get_mut("manifests").and_then(Value::as_array_mut);
    let entries = entries.ok_or_else(|| unread("it has no entries".to_owned()))?;
    let digest = referrer.digest.to_string();
    if entries.iter().any(|entry| entry["digest"] == digest.as_str()) {
        return Ok(None);
    }
    if entries.len() >= limits::INDEX_ENTRIES {
        return Err(unread(format!("it has {} entries", entries.len())));
    }
    entries.push(json!({
        "mediaType": OCI_MANIFEST,
        "digest": digest,
        "size": referrer.bytes.len(),
        "artifactType": referrer.artifact_type,
    }));
    Ok(Some(index.to_string().into()))
}
