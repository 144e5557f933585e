//! What a signature looks like in a registry: cosign's payload ("simple signing") in an image manifest whose layers carry
//! the signatures as annotations (cosign, specs/SIGNATURE_SPEC.md). Pure.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use kiln_common::{Digest, Repository, limits};
use serde_json::{Value, json};

use super::key::SigningKey;
use crate::publish::{
    manifest::{Descriptor, OCI_MANIFEST},
    referrers::fallback_tag,
    registry::sha256,
};

/// What cosign looks for among referrers.
pub const ARTIFACT_TYPE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// The tag under which cosign looks for the signatures of a manifest.
pub fn tag(signed: &Digest) -> String {
    format!("{}.sig", fallback_tag(signed))
}

/// What is signed: this manifest, in this repository. The same bytes each time.
pub fn payload(repository: &Repository, signed: &Digest) -> Bytes {
    let payload = json!({
        "critical": {
            "identity": { "docker-reference": repository.to_string() },
            "image": { "docker-manifest-digest": signed.to_string() },
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    payload.to_string().into()
}

/// The layers of the signatures' manifest that is there; none where what is there is something else.
pub fn layers(manifest: &[u8]) -> Vec<Value> {
    let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
    layers.into_iter().filter(|layer| layer["mediaType"] == PAYLOAD_TYPE).take(limits::INDEX_ENTRIES).collect()
}

/// Whether one of the layers is this key's signature of the payload.
pub fn is_among(layers: &[Value], key: &SigningKey, payload: &[u8]) -> bool {
    let digest = sha256(payload).to_string();
    layers.iter().filter(|layer| layer["digest"] == digest.as_str()).any(|layer| {
        let text = layer["annotations"][SIGNATURE].as_str().unwrap_or_default();
        STANDARD.decode(text).is_ok_and(|signature| key.has_signed(payload, &signature))
    })
}

/// A layer that carries a signature.
pub fn layer(payload: &Bytes, signature: &[u8]) -> Value {
    json!({
        "mediaType": PAYLOAD_TYPE,
        "digest": sha256(payload).to_string(),
        "size": payload.len(),
        "annotations": { SIGNATURE: STANDARD.encode(signature) },
    })
}

/// The configuration that goes with the layers, as cosign writes it.
pub fn config(layers: &[Value]) -> Bytes {
    let layers: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "architecture": "",
        "os": "",
        "config": {},
        "created": "0001-01-01T00:00:00Z",
        "rootfs": { "type": "layers", "diff_ids": layers },
    });
    config.to_string().into()
}

/// The manifest that refers to what is signed.
pub fn manifest(signed: &Descriptor, config: &Bytes, layers: &[Value]) -> Bytes {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": ARTIFACT_TYPE, "digest": sha256(config).to_string(), "size": config.len() },
        "layers": layers,
        "subject": { "mediaType": signed.media_type, "digest": signed.digest.to_string(), "size": signed.size },
    });
    manifest.to_string().into()
}
