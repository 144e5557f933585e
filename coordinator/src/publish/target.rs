//! What the tags are to name: pure, and the same bytes for the same legs and options.

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_common::{
    Digest, Platform,
    spec::{AnnotationScope, BuildSpec, MediaTypes},
};

use super::{
    error::{Fault, RegistryError},
    leg::CheckedLeg,
    manifest::{self, Descriptor, Index},
    registry::sha256,
};

/// A manifest or an index, ready to be put under tags.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub media_type: String,
    pub digest: Digest,
    pub bytes: Bytes,
    /// What an index refers to; nothing for a manifest.
    pub children: Vec<Descriptor>,
    pub platform_sizes: BTreeMap<Platform, u64>,
}

/// One platform gives its manifest itself, several give an index; so do attestations and index annotations, which a
/// plain manifest cannot carry.
pub(super) fn merge(spec: &BuildSpec, legs: Vec<CheckedLeg>) -> Result<Target, RegistryError> {
    let platform_sizes = legs.iter().map(|leg| (leg.platform.clone(), leg.size)).collect();
    let annotations = annotations_of(spec, |scope| matches!(scope, AnnotationScope::Index));
    if let ([_], [leg]) = (spec.platforms.as_slice(), legs.as_slice())
        && leg.attestations.is_empty()
        && annotations.is_empty()
    {
        let Descriptor { media_type, digest, .. } = leg.image.clone();
        let (bytes, children) = (leg.image_bytes.clone(), Vec::new());
        return Ok(Target { media_type, digest, bytes, children, platform_sizes });
    }
    let media_type = manifest::index_type(spec.media_types).to_owned();
    let manifests = descriptors(spec, legs);
    let has_annotations = !annotations.is_empty() || manifests.iter().any(|one| !one.annotations.is_empty());
    if spec.media_types == MediaTypes::Docker && has_annotations {
        let message = "Docker's manifest list carries no annotations; leave them out or use --media-types oci";
        return Err(RegistryError::new(Fault::Final, message));
    }
    let index = Index { schema_version: 2, media_type: Some(media_type.clone()), manifests, annotations };
    let bytes = serde_json::to_vec(&index).map_err(|error| RegistryError::new(Fault::Final, error.to_string()))?;
    let (digest, children) = (sha256(&bytes), index.manifests);
    Ok(Target { media_type, digest, bytes: bytes.into(), children, platform_sizes })
}

/// Images in the order of the build's platforms, then the attestations: as BuildKit orders them.
fn descriptors(spec: &BuildSpec, mut legs: Vec<CheckedLeg>) -> Vec<Descriptor> {
    let place = |leg: &CheckedLeg| spec.platforms.iter().position(|request| request.platform == leg.platform);
    legs.sort_by_key(place);
    let (mut images, mut attestations) = (Vec::new(), Vec::new());
    for leg in legs {
        let annotations = annotations_of(spec, |scope| match scope {
            AnnotationScope::ManifestDescriptor(only) => only.as_ref().is_none_or(|only| *only == leg.platform),
            AnnotationScope::Index | AnnotationScope::Manifest(_) => false,
        });
        images.push(Descriptor { annotations, ..leg.image });
        attestations.extend(leg.attestations);
    }
    images.extend(attestations);
    images
}

fn annotations_of(spec: &BuildSpec, is_wanted: impl Fn(&AnnotationScope) -> bool) -> BTreeMap<String, String> {
    let wanted = spec.annotations.iter().filter(|annotation| is_wanted(&annotation.scope));
    wanted.map(|annotation| (annotation.key.clone(), annotation.value.clone())).collect()
}
