//! The Dockerfile frontend's attributes.

use std::collections::HashMap;

use kiln_common::spec::{AddHost, NamedContext, NetworkMode};

use super::Order;
use crate::engine::job::{BuildError, named_dir};

/// Tells frontends that a client with named contexts speaks; one that does not know them refuses.
const NAMED_CONTEXTS_CAP: &str = "moby.buildkit.frontend.contexts+forward";

pub fn frontend(order: &Order<'_>) -> Result<HashMap<String, String>, BuildError> {
    let spec = order.spec;
    let mut all = HashMap::new();
    let mut set = |key: &str, value: String| {
        all.insert(key.to_owned(), value);
    };
    set("filename", spec.dockerfile.filename.clone());
    set("platform", order.platform.to_string());
    set("image-resolve-mode", if spec.pull { "pull" } else { "default" }.to_owned());
    if let Some(target) = &spec.target {
        set("target", target.clone());
    }
    if spec.no_cache {
        set("no-cache", String::new());
    } else if !spec.no_cache_stages.is_empty() {
        set("no-cache", spec.no_cache_stages.join(","));
    }
    match spec.network {
        NetworkMode::Default => {}
        NetworkMode::None => set("force-network-mode", "none".to_owned()),
        NetworkMode::Host => set("force-network-mode", "host".to_owned()),
    }
    if let Some(bytes) = spec.shm_size {
        set("shm-size", bytes.to_string());
    }
    if !spec.ulimits.is_empty() {
        set("ulimit", joined(spec.ulimits.iter().map(ToString::to_string)));
    }
    if !spec.add_hosts.is_empty() {
        let hosts: Result<Vec<_>, _> = spec.add_hosts.iter().map(|host| host_entry(host, order)).collect();
        set("add-hosts", joined(hosts?.into_iter()));
    }
    if let Some(attributes) = &spec.provenance {
        set("attest:provenance", provenance(attributes, order.builder_id));
    }
    if let Some(attributes) = &spec.sbom {
        set("attest:sbom", attributes.clone());
    }
    if !spec.named_contexts.is_empty() {
        set("frontend.caps", NAMED_CONTEXTS_CAP.to_owned());
    }
    all.extend(spec.build_args.iter().map(|(key, value)| (format!("build-arg:{key}"), value.clone())));
    all.extend(spec.labels.iter().map(|(key, value)| (format!("label:{key}"), value.clone())));
    all.extend(spec.named_contexts.iter().map(|(name, context)| (format!("context:{name}"), source(name, context))));
    Ok(all)
}

fn source(name: &str, context: &NamedContext) -> String {
    match context {
        NamedContext::Tree(_) => format!("local:{}", named_dir(name)),
        NamedContext::Reference(reference) => reference.clone(),
    }
}

fn host_entry(host: &AddHost, order: &Order<'_>) -> Result<String, BuildError> {
    let without_gateway = || {
        BuildError::Build(format!(
            "--add-host {}:host-gateway: engine {} {} has no host gateway; name the address itself",
            host.name,
            order.facts.kind.name(),
            order.facts.version
        ))
    };
    let address = match host.address {
        Some(address) => address.to_string(),
        None => order.facts.host_gateway.clone().ok_or_else(without_gateway)?,
    };
    Ok(format!("{}={address}", host.name))
}

/// With the attempt as SLSA's `builder.id`, unless the user names another.
fn provenance(attributes: &str, builder_id: &str) -> String {
    let has_own = attributes.split(',').any(|attribute| attribute.trim_start().starts_with("builder-id="));
    if has_own || builder_id.is_empty() {
        attributes.to_owned()
    } else {
        format!("{attributes},builder-id={builder_id}")
    }
}

fn joined(values: impl Iterator<Item = String>) -> String {
    values.collect::<Vec<_>>().join(",")
}
