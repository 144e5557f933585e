//! Caches in registries. Each platform writes one of its own, so that legs never overwrite each other's: the tag gets
//! the platform as a suffix (`app:cache` becomes `app:cache-linux-arm64`). Reading takes both, the platform's own and
//! the one that was named, which may be another tool's or an image with inline cache.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard_buildkit_proto::moby::buildkit::v1::CacheOptionsEntry;
use kiln_common::{
    BuildSpec, ImageReference, Platform,
    limits::TAG_BYTES,
    spec::{CacheKind, CacheOption, MediaTypes},
};
use serde_json::json;

use crate::engine::job::BuildError;

pub fn imports(spec: &BuildSpec, platform: &Platform, insecure: &BTreeSet<String>) -> Vec<CacheOptionsEntry> {
    let mut all: Vec<CacheOptionsEntry> = Vec::new();
    for option in &spec.cache_from {
        // An inline cache is read from the image that carries it, like any other in a registry.
        let Some(named) = option.attributes.get("ref") else { continue };
        let own = named.parse().ok().and_then(|reference| of_platform(&reference, platform));
        for reference in own.as_ref().into_iter().chain([named]) {
            let found = entry("registry", with_ref(&option.attributes, reference), insecure);
            if !all.contains(&found) {
                all.push(found);
            }
        }
    }
    all
}

/// The JSON that the frontend reads (`frontend/dockerui`, `cache-imports`).
pub fn imports_attribute(imports: &[CacheOptionsEntry]) -> String {
    let entries: Vec<_> = imports.iter().map(|entry| json!({ "Type": entry.r#type, "Attrs": entry.attrs })).collect();
    serde_json::Value::from(entries).to_string()
}

pub fn exports(
    spec: &BuildSpec,
    platform: &Platform,
    insecure: &BTreeSet<String>,
) -> Result<Vec<CacheOptionsEntry>, BuildError> {
    spec.cache_to.iter().map(|option| export(option, spec, platform, insecure)).collect()
}

fn export(
    option: &CacheOption,
    spec: &BuildSpec,
    platform: &Platform,
    insecure: &BTreeSet<String>,
) -> Result<CacheOptionsEntry, BuildError> {
    match option.kind {
        CacheKind::Inline => Ok(entry("inline", option.attributes.clone(), insecure)),
        CacheKind::Registry => {
            let named = option.attributes.get("ref").map_or("", String::as_str);
            let own = named.parse().ok().and_then(|reference| of_platform(&reference, platform));
            let own = own.ok_or_else(|| {
                BuildError::Build(format!(
                    "--cache-to type=registry,ref={named}: the reference must have a tag of its own"
                ))
            })?;
            let mut attributes = with_ref(&option.attributes, &own);
            if spec.media_types == MediaTypes::Docker {
                attributes.entry("oci-mediatypes".to_owned()).or_insert_with(|| "false".to_owned());
            }
            Ok(entry("registry", attributes, insecure))
        }
    }
}

/// `None` for a digest, which names one content for ever.
fn of_platform(reference: &ImageReference, platform: &Platform) -> Option<String> {
    if reference.digest().is_some() {
        return None;
    }
    let suffix = format!("-{}", platform.to_string().replace('/', "-"));
    let room = TAG_BYTES - suffix.len();
    let stem: String = reference.tag().unwrap_or("latest").chars().take(room).collect();
    Some(reference.repository().with_tag(&format!("{stem}{suffix}")).to_string())
}

fn with_ref(attributes: &BTreeMap<String, String>, reference: &str) -> BTreeMap<String, String> {
    let mut attributes = attributes.clone();
    attributes.insert("ref".to_owned(), reference.to_owned());
    attributes
}

fn entry(kind: &str, attributes: BTreeMap<String, String>, insecure: &BTreeSet<String>) -> CacheOptionsEntry {
    let mut attrs: HashMap<_, _> = attributes.into_iter().collect();
    let reference = attrs.get("ref").and_then(|reference| reference.parse::<ImageReference>().ok());
    if reference.is_some_and(|reference| insecure.contains(reference.repository().host())) {
        attrs.insert("registry.insecure".to_owned(), "true".to_owned());
    }
    CacheOptionsEntry { r#type: kind.to_owned(), attrs }
}
