//! The parsers of outside data, for the fuzz targets in `tests/fuzz` alone: each takes any bytes and panics where one of its
//! promises is broken.

pub use super::verify::fuzz::{elf, layer};
use super::{
    auth::Challenge,
    catalog, leg,
    manifest::{self, OCI_INDEX, OCI_MANIFEST},
    registry::{Fetched, sha256},
    sign,
};

fn fetched(data: &[u8], content_type: &str) -> Fetched {
    Fetched { bytes: data.to_vec().into(), content_type: content_type.to_owned(), digest: sha256(data) }
}

/// An image manifest, its configuration, and the manifest of signatures.
pub fn manifest(data: &[u8]) {
    if let Ok((manifest, media_type)) = leg::read_manifest(&fetched(data, OCI_MANIFEST)) {
        assert!(manifest::is_manifest(&media_type));
        for layer in &manifest.layers {
            let json = serde_json::to_vec(layer).expect("a descriptor is JSON");
            assert_eq!(serde_json::from_slice::<manifest::Descriptor>(&json).expect("reads back"), *layer);
        }
    }
    // Any of these may fail; none may take a leg for another platform's.
    let (amd64, arm64) = ("linux/amd64".parse().expect("a platform"), "linux/arm64".parse().expect("a platform"));
    assert!(leg::check_platform(data, &amd64).is_err() || leg::check_platform(data, &arm64).is_err());
    drop(sign::read(data));
}

/// A leg's own index, and a page of tags.
pub fn index(data: &[u8]) {
    if let Ok(Some(index)) = leg::read_index(&fetched(data, OCI_INDEX)) {
        let entries = index.manifests.len();
        if let Ok((image, attestations)) = leg::flatten(index) {
            assert!(!image.is_attestation() && attestations.len() + 1 == entries);
        }
    }
    drop(catalog::read(data));
}

/// `WWW-Authenticate`.
pub fn challenge(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(Challenge::Bearer { realm, service }) = Challenge::parse(text)
    {
        assert!(text.contains(&realm) && service.is_none_or(|service| text.contains(&service)));
    }
}
