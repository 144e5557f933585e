//! Manifests, indexes and configurations as registries hold them, in OCI's and in Docker's media types.
//!
//! Reading is lenient where the specification is (unknown fields), writing is deterministic: the same legs, options and
//! annotations give the same bytes (OCI image-spec, image-index.md).

use std::collections::BTreeMap;

use kiln_common::{Digest, Platform, spec::MediaTypes};
use serde::{Deserialize, Serialize};

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// All of them, for `Accept`.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// BuildKit's marks on an attestation manifest's descriptor (BuildKit, docs/attestations/attestation-storage.md).
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const ATTESTATION: &str = "attestation-manifest";

/// Something by its digest (OCI image-spec, descriptor.md). Fields are written in the order of the specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<WirePlatform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WirePlatform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    #[serde(default)]
    pub media_type: Option<String>,
    pub config: Descriptor,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: Option<String>,
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a configuration says that it runs on (OCI image-spec, config.md).
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Descriptor {
    pub fn is_attestation(&self) -> bool {
        self.annotations.get(REFERENCE_TYPE).is_some_and(|kind| kind == ATTESTATION)
    }
}

impl WirePlatform {
    pub fn is(&self, platform: &Platform) -> bool {
        Platform::new(&self.os, &self.architecture, self.variant.as_deref()).is_ok_and(|own| own == *platform)
    }
}

impl From<&Platform> for WirePlatform {
    fn from(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture().to_owned(),
            os: platform.os().to_owned(),
            variant: platform.variant().map(str::to_owned),
        }
    }
}

/// Which family a media type of a manifest, an index, a configuration or a layer belongs to; `None` for artifacts' own.
pub(super) fn family(media_type: &str) -> Option<MediaTypes> {
    if media_type.starts_with("application/vnd.oci.") {
        Some(MediaTypes::Oci)
    } else if media_type.starts_with("application/vnd.docker.") {
        Some(MediaTypes::Docker)
    } else {
        None
    }
}

pub(super) fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

pub(super) fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

pub(super) const fn index_type(family: MediaTypes) -> &'static str {
    match family {
        MediaTypes::Oci => OCI_INDEX,
        MediaTypes::Docker => DOCKER_LIST,
    }
}

/// The name of a family in messages.
pub(super) const fn family_name(family: MediaTypes) -> &'static str {
    match family {
        MediaTypes::Oci => "OCI",
        MediaTypes::Docker => "Docker",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_written_without_what_it_does_not_have() {
        let digest: Digest = format!("sha256:{}", "1".repeat(64)).parse().expect("digest");
        let platform = "linux/arm/v7".parse::<Platform>().expect("platform");
        let descriptor = Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: digest.clone(),
            size: 7,
            annotations: BTreeMap::new(),
            platform: Some(WirePlatform::from(&platform)),
        };
        let json = serde_json::to_string(&descriptor).expect("json");
        assert_eq!(
            json,
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":7,"platform":{{"architecture":"arm","os":"linux","variant":"v7"}}}}"#
            )
        );
        assert_eq!(serde_json::from_str::<Descriptor>(&json).expect("reads back"), descriptor);
    }

    #[test]
    fn media_types_belong_to_one_family() {
        assert_eq!(family(OCI_INDEX), Some(MediaTypes::Oci));
        assert_eq!(family("application/vnd.docker.image.rootfs.diff.tar.gzip"), Some(MediaTypes::Docker));
        assert_eq!(family("application/vnd.in-toto+json"), None);
    }
}
