//! What an engine may be unable to do. A build needs some features, a worker has some; placement compares the sets.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub type FeatureSet = BTreeSet<Feature>;

/// One ability of an engine that some supported engines lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// `--build-context NAME=...`: the Dockerfile frontend's named contexts (BuildKit 0.10; not Docker 20.10).
    NamedContexts,
    /// `--cache-to type=registry`: cache export to a registry (not the classic image store).
    CacheExportRegistry,
    /// `--cache-to type=inline`: cache metadata inside the image.
    CacheExportInline,
    /// `--provenance`, `--sbom`: attestations attached to the image (BuildKit 0.11 with an OCI exporter).
    Attestations,
    /// `--annotation`: annotations on the manifest (BuildKit 0.11 with an OCI exporter).
    Annotations,
    /// `--compression`: layer compressions other than gzip (an OCI exporter).
    LayerCompression,
    /// `--compression estargz`: an exporter whose estargz writer works. Built with Go 1.27, that of BuildKit of its time ends the
    /// engine (stargz-snapshotter issue 2330), so that trying it proves nothing that the engine survives.
    Estargz,
    /// `--rewrite-timestamp`: file times of the layers (BuildKit 0.13 with an OCI exporter).
    RewriteTimestamp,
    /// `--shm-size`, `--ulimit` of RUN steps (BuildKit 0.9; Docker 20.10 drops them without a word).
    StepLimits,
    /// `--add-host NAME:host-gateway`: the engine knows its machine's address (dockerd with a bridge; not buildkitd).
    HostGateway,
    /// `--network host`: the engine grants BuildKit's entitlement `network.host` (dockerd, unless it is told otherwise;
    /// buildkitd only with `insecure-entitlements`).
    HostNetwork,
}

impl Feature {
    pub const ALL: [Self; 11] = [
        Self::NamedContexts,
        Self::CacheExportRegistry,
        Self::CacheExportInline,
        Self::Attestations,
        Self::Annotations,
        Self::LayerCompression,
        Self::Estargz,
        Self::RewriteTimestamp,
        Self::StepLimits,
        Self::HostGateway,
        Self::HostNetwork,
    ];

    /// The name in the API, in listings and in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NamedContexts => "named-contexts",
            Self::CacheExportRegistry => "cache-export-registry",
            Self::CacheExportInline => "cache-export-inline",
            Self::Attestations => "attestations",
            Self::Annotations => "annotations",
            Self::LayerCompression => "layer-compression",
            Self::Estargz => "estargz",
            Self::RewriteTimestamp => "rewrite-timestamp",
            Self::StepLimits => "step-limits",
            Self::HostGateway => "host-gateway",
            Self::HostNetwork => "host-network",
        }
    }

    /// What asked for it, for the message that refuses a build.
    #[must_use]
    pub const fn asked_by(self) -> &'static str {
        match self {
            Self::NamedContexts => "--build-context",
            Self::CacheExportRegistry => "--cache-to type=registry",
            Self::CacheExportInline => "--cache-to type=inline",
            Self::Attestations => "--provenance or --sbom",
            Self::Annotations => "--annotation",
            Self::LayerCompression => "--compression",
            Self::Estargz => "--compression estargz",
            Self::RewriteTimestamp => "--rewrite-timestamp",
            Self::StepLimits => "--shm-size or --ulimit",
            Self::HostGateway => "--add-host NAME:host-gateway",
            Self::HostNetwork => "--network host",
        }
    }
}

/// No feature has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an engine feature")]
pub struct UnknownFeature {
    pub text: String,
}

impl FromStr for Feature {
    type Err = UnknownFeature;

    fn from_str(text: &str) -> Result<Self, UnknownFeature> {
        Self::ALL
            .into_iter()
            .find(|feature| feature.name() == text)
            .ok_or_else(|| UnknownFeature { text: text.chars().take(64).collect() })
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_reads_back_by_its_name() {
        for feature in Feature::ALL {
            assert_eq!(feature.name().parse::<Feature>(), Ok(feature));
        }
    }
}
