//! Manifests on their way through the proxy: Docker's media types become OCI's where the build asks for them, and a
//! configuration gets the variant that older engines leave out. Pure.
//!
//! Blobs stay as they are: both families share their formats (image-spec, `media-types.md`, "Compatibility Matrix").

use kiln_common::{Digest, Platform, spec::MediaTypes};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Docker's media types and what OCI calls the same.
const TYPES: [(&str, &str); 6] = [
    (DOCKER_MANIFEST, OCI_MANIFEST),
    ("application/vnd.docker.container.image.v1+json", "application/vnd.oci.image.config.v1+json"),
    ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ),
];

/// An image manifest that the engine wants to push.
#[derive(Debug)]
pub struct Manifest(Map<String, Value>);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine pushes a manifest that is no image manifest: {0}")]
pub struct InvalidManifest(&'static str);

impl Manifest {
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidManifest> {
        let value: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|_| InvalidManifest("it is not a JSON object"))?;
        if value.get("schemaVersion") != Some(&Value::from(2)) {
            return Err(InvalidManifest("its schema version is not 2"));
        }
        let manifest = Self(value);
        manifest.config_digest().ok_or(InvalidManifest("it has no configuration"))?;
        manifest.0.get("layers").and_then(Value::as_array).ok_or(InvalidManifest("it has no layers"))?;
        Ok(manifest)
    }

    pub fn config_digest(&self) -> Option<Digest> {
        self.0.get("config")?.get("digest")?.as_str()?.parse().ok()
    }

    /// Another configuration takes the place of the engine's.
    pub fn set_config(&mut self, config: &[u8]) {
        if let Some(descriptor) = self.0.get_mut("config").and_then(Value::as_object_mut) {
            descriptor.insert("digest".to_owned(), digest_of(config).to_string().into());
            descriptor.insert("size".to_owned(), config.len().into());
        }
    }

    pub fn set_media_types(&mut self, wanted: MediaTypes) {
        rewrite(&mut self.0, wanted);
        let parts = ["config", "layers"].map(|key| self.0.remove(key));
        for (key, part) in ["config", "layers"].into_iter().zip(parts) {
            let Some(mut part) = part else { continue };
            match &mut part {
                Value::Array(layers) => layers
                    .iter_mut()
                    .filter_map(Value::as_object_mut)
                    .for_each(|descriptor| rewrite(descriptor, wanted)),
                Value::Object(descriptor) => rewrite(descriptor, wanted),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
            self.0.insert(key.to_owned(), part);
        }
    }

    pub fn media_type(&self) -> &str {
        self.0.get("mediaType").and_then(Value::as_str).unwrap_or(OCI_MANIFEST)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        Value::Object(self.0.clone()).to_string().into_bytes()
    }
}

fn rewrite(object: &mut Map<String, Value>, wanted: MediaTypes) {
    let Some(Value::String(media_type)) = object.get_mut("mediaType") else { return };
    let found = match wanted {
        MediaTypes::Oci => TYPES.iter().find(|(docker, _)| docker == media_type).map(|(_, oci)| oci),
        MediaTypes::Docker => TYPES.iter().find(|(_, oci)| oci == media_type).map(|(docker, _)| docker),
    };
    if let Some(found) = found {
        *media_type = (*found).to_owned();
    }
}

/// The configuration with the task's variant, where it has the architecture and no variant at all; `None` where nothing
/// is to be mended. A wrong platform stays wrong, for the coordinator's check to name.
#[must_use]
pub fn with_variant(config: &[u8], platform: &Platform) -> Option<Vec<u8>> {
    let variant = platform.variant()?;
    let mut config: Map<String, Value> = serde_json::from_slice(config).ok()?;
    let says = |key: &str, value: &str| config.get(key).and_then(Value::as_str) == Some(value);
    let has_variant = config.get("variant").and_then(Value::as_str).is_some_and(|variant| !variant.is_empty());
    if has_variant || !says("architecture", platform.architecture()) || !says("os", platform.os()) {
        return None;
    }
    config.insert("variant".to_owned(), variant.into());
    Some(Value::Object(config).to_string().into_bytes())
}

#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn docker_manifest() -> Vec<u8> {
        let digest = format!("sha256:{}", "0".repeat(64));
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": { "mediaType": TYPES[1].0, "size": 7, "digest": digest },
            "layers": [
                { "mediaType": TYPES[3].0, "size": 8, "digest": digest },
                { "mediaType": "application/octet-stream", "size": 9, "digest": digest },
            ],
        })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn docker_s_media_types_become_oci_s_and_back_without_a_mix() {
        let mut manifest = Manifest::parse(&docker_manifest()).expect("well formed");
        manifest.set_media_types(MediaTypes::Oci);
        assert_eq!(manifest.media_type(), OCI_MANIFEST);
        let text = String::from_utf8(manifest.to_bytes()).unwrap();
        assert!(!text.contains("vnd.docker") && text.contains("layer.v1.tar+gzip"), "{text}");
        assert!(text.contains("application/octet-stream"), "what is neither is kept");
        manifest.set_media_types(MediaTypes::Docker);
        let before: Value = serde_json::from_slice(&docker_manifest()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&manifest.to_bytes()).unwrap(), before);
    }

    #[test]
    fn what_is_no_image_manifest_is_refused() {
        for text in ["", "[]", "{}", r#"{"schemaVersion":1}"#, r#"{"schemaVersion":2,"manifests":[]}"#] {
            assert!(Manifest::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn only_an_absent_variant_of_the_right_architecture_is_filled_in() {
        let v6: Platform = "linux/arm/v6".parse().unwrap();
        let mended = with_variant(br#"{"architecture":"arm","os":"linux","rootfs":{}}"#, &v6).expect("mended");
        let mended: Value = serde_json::from_slice(&mended).unwrap();
        assert_eq!((mended["variant"].as_str(), mended["rootfs"].is_object()), (Some("v6"), true));
        for config in [
            r#"{"architecture":"arm","os":"linux","variant":"v7"}"#,
            r#"{"architecture":"amd64","os":"linux"}"#,
            r#"{"architecture":"arm","os":"windows"}"#,
            "not json",
        ] {
            assert_eq!(with_variant(config.as_bytes(), &v6), None, "{config}");
        }
        let arm64 = "linux/arm64".parse().unwrap();
        assert_eq!(with_variant(br#"{"architecture":"arm64","os":"linux"}"#, &arm64), None);
    }
}
