//! A build spec as the solve request that an engine of its shape understands. Pure; `build` sends it.
//!
//! The attributes' names are those of BuildKit's Dockerfile frontend (`frontend/dockerui/config.go`,
//! `frontend/dockerfile/builder`) and exporters (`exporter/containerimage/opts.go`). The deprecated fields for a single
//! exporter are filled too, because Docker 20.10 reads no others.

mod attributes;
mod cache;

use std::collections::{BTreeSet, HashMap};

use bollard_buildkit_proto::moby::buildkit::v1::{CacheOptions, Exporter, SolveRequest};
use kiln_common::{
    BuildSpec, Platform, Repository,
    spec::{AnnotationScope, MediaTypes, NetworkMode},
};

use super::{
    facts::{EngineFacts, EngineKind, HOST_NETWORK},
    job::BuildError,
};

const FRONTEND: &str = "dockerfile.v0";

/// What a request is made from.
pub struct Order<'a> {
    pub spec: &'a BuildSpec,
    pub platform: &'a Platform,
    pub facts: &'a EngineFacts,
    pub insecure_registries: &'a BTreeSet<String>,
    /// Names the attempt in the provenance.
    pub builder_id: &'a str,
}

/// Where the image goes.
pub enum Target<'a> {
    /// BuildKit pushes it by digest to every repository of the spec.
    Registries,
    /// Into the classic image store, under these names.
    Store { names: &'a [String] },
    /// The steps run, and nothing is kept of them.
    Nowhere,
}

/// The request, complete but for the ids of its session and of itself.
///
/// # Errors
/// [`BuildError::Build`] for what this engine cannot do at all.
pub fn solve_request(order: &Order<'_>, target: &Target<'_>) -> Result<SolveRequest, BuildError> {
    let exporters = match target {
        Target::Registries => image_exporters(order)?,
        Target::Store { names } => vec![store_exporter(names)],
        Target::Nowhere => Vec::new(),
    };
    let first = exporters.first().cloned().unwrap_or_default();
    let mut frontend_attrs = attributes::frontend(order)?;
    let imports = cache::imports(order.spec, order.platform, order.insecure_registries);
    if !imports.is_empty() {
        frontend_attrs.insert("cache-imports".to_owned(), cache::imports_attribute(&imports));
    }
    let exports = cache::exports(order.spec, order.platform, order.insecure_registries)?;
    Ok(SolveRequest {
        frontend: FRONTEND.to_owned(),
        frontend_attrs,
        exporter_deprecated: first.r#type,
        exporter_attrs_deprecated: first.attrs,
        exporters,
        cache: Some(CacheOptions { exports, imports, ..Default::default() }),
        entitlements: entitlements(order.spec),
        // No record in the engine's own history: the farm keeps one, and the engine syncs its to disk before it answers,
        // a tenth of a second that also wears a board's card.
        internal: true,
        ..Default::default()
    })
}

fn entitlements(spec: &BuildSpec) -> Vec<String> {
    match spec.network {
        NetworkMode::Host => vec![HOST_NETWORK.to_owned()],
        NetworkMode::Default | NetworkMode::None => Vec::new(),
    }
}

/// One exporter for all repositories whose registries are spoken to in the same way.
fn image_exporters(order: &Order<'_>) -> Result<Vec<Exporter>, BuildError> {
    let is_insecure = |repository: &&Repository| order.insecure_registries.contains(repository.host());
    let (insecure, secure): (Vec<_>, Vec<_>) = order.spec.repositories().into_iter().partition(is_insecure);
    if !insecure.is_empty() && !secure.is_empty() && !order.facts.several_exporters {
        return Err(BuildError::Build(format!(
            "engine {} {} cannot push to registries with and without TLS in one build; push to one kind, or use \
             BuildKit 0.13 or newer",
            order.facts.kind.name(),
            order.facts.version
        )));
    }
    let groups = [(secure, false), (insecure, true)];
    Ok(groups
        .into_iter()
        .filter(|(repositories, _)| !repositories.is_empty())
        .map(|(repositories, insecure)| image_exporter(order, &repositories, insecure))
        .collect())
}

fn image_exporter(order: &Order<'_>, repositories: &[&Repository], insecure: bool) -> Exporter {
    let names: Vec<_> = repositories.iter().map(ToString::to_string).collect();
    let mut attrs: HashMap<_, _> = [
        ("name", names.join(",").as_str()),
        ("push", "true"),
        ("push-by-digest", "true"),
        ("name-canonical", "true"),
        ("store", "false"),
        ("oci-mediatypes", if order.spec.media_types == MediaTypes::Oci { "true" } else { "false" }),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    if insecure {
        attrs.insert("registry.insecure".to_owned(), "true".to_owned());
    }
    if let Some(kind) = order.spec.compression.name() {
        attrs.insert("compression".to_owned(), kind.to_owned());
    }
    if order.spec.rewrite_timestamp {
        attrs.insert("rewrite-timestamp".to_owned(), "true".to_owned());
    }
    for annotation in &order.spec.annotations {
        let here = match &annotation.scope {
            AnnotationScope::Manifest(None) => true,
            AnnotationScope::Manifest(Some(platform)) => platform == order.platform,
            // The coordinator writes the index and its descriptors.
            AnnotationScope::Index | AnnotationScope::ManifestDescriptor(_) => false,
        };
        if here {
            attrs.insert(format!("annotation-manifest.{}", annotation.key), annotation.value.clone());
        }
    }
    Exporter { r#type: "image".to_owned(), attrs }
}

fn store_exporter(names: &[String]) -> Exporter {
    Exporter { r#type: "moby".to_owned(), attrs: HashMap::from([("name".to_owned(), names.join(","))]) }
}

/// Whether BuildKit itself pushes.
#[must_use]
pub const fn pushes(kind: EngineKind) -> bool {
    match kind {
        EngineKind::DockerdContainerd | EngineKind::Buildkitd => true,
        EngineKind::DockerdClassic => false,
    }
}

#[cfg(test)]
mod tests;
