//! One leg before it may stand under a tag: it exists in every repository, it and its programs are of its platform, its
//! media types fit.
//!
//! [`check`] is the only way to a [`CheckedLeg`], and only checked legs are merged.

use futures_util::future::{try_join, try_join_all};
use kiln_common::{
    Platform, Repository, limits,
    spec::{BuildSpec, MediaTypes},
};
use kiln_scheduler::effect::Leg;

use super::{
    error::{Fault, RegistryError},
    manifest::{self, Config, Descriptor, Index, Manifest, WirePlatform},
    registry::{Fetched, Pointer, Session},
    verify::Verifier,
};

/// A leg that may be merged.
#[derive(Debug, Clone)]
pub(super) struct CheckedLeg {
    pub platform: Platform,
    /// The image's manifest with its platform.
    pub image: Descriptor,
    pub image_bytes: bytes::Bytes,
    /// Attestation manifests that belong to it.
    pub attestations: Vec<Descriptor>,
    /// Bytes of configuration and layers.
    pub size: u64,
}

/// Checks one leg in all repositories of the build.
pub(super) async fn check(
    session: &Session,
    verifier: &Verifier,
    spec: &BuildSpec,
    leg: &Leg,
) -> Result<CheckedLeg, RegistryError> {
    let checked = check_in_repositories(session, verifier, spec, leg).await;
    checked.map_err(|error| RegistryError { message: format!("{}: {}", leg.platform, error.message), ..error })
}

async fn check_in_repositories(
    session: &Session,
    verifier: &Verifier,
    spec: &BuildSpec,
    leg: &Leg,
) -> Result<CheckedLeg, RegistryError> {
    let repositories = spec.repositories();
    let (first, others) = repositories.split_first().ok_or_else(|| wrong("the build names no repository"))?;
    let checked = check_content(session, verifier, first, spec, leg).await?;
    let wanted: Vec<&Descriptor> = [&checked.image].into_iter().chain(&checked.attestations).collect();
    let attestations = checked.attestations.iter().map(|descriptor| exists(session, first, descriptor));
    let elsewhere = others.iter().flat_map(|repository| wanted.iter().map(|one| exists(session, repository, one)));
    try_join(try_join_all(attestations), try_join_all(elsewhere)).await?;
    Ok(checked)
}

async fn exists(session: &Session, repository: &Repository, descriptor: &Descriptor) -> Result<(), RegistryError> {
    session.digest_of(repository, Pointer::Digest(&descriptor.digest)).await.map(drop)
}

async fn check_content(
    session: &Session,
    verifier: &Verifier,
    repository: &Repository,
    spec: &BuildSpec,
    leg: &Leg,
) -> Result<CheckedLeg, RegistryError> {
    let top = session.manifest(repository, Pointer::Digest(&leg.image.digest)).await?;
    let (fetched, attestations) = match read_index(&top)? {
        None => (top, Vec::new()),
        Some(index) => {
            let (image, attestations) = flatten(index)?;
            let fetched = session.manifest(repository, Pointer::Digest(&image.digest)).await?;
            let keeps = spec.provenance.is_some() || spec.sbom.is_some();
            (fetched, if keeps { attestations } else { Vec::new() })
        }
    };
    let (manifest, media_type) = read_manifest(&fetched)?;
    check_family(spec.media_types, &media_type, &manifest, &attestations)?;
    if manifest.config.size > limits::IMAGE_CONFIG_BYTES as u64 {
        return Err(wrong(format!("its configuration has {} bytes", manifest.config.size)));
    }
    let config = session.blob(repository, &manifest.config.digest, limits::IMAGE_CONFIG_BYTES).await?;
    check_platform(&config, &leg.platform)?;
    verifier.check(session, repository, spec, leg, &manifest.layers).await?;
    let size = manifest.layers.iter().fold(manifest.config.size, |sum, layer| sum.saturating_add(layer.size));
    let image = Descriptor {
        media_type,
        digest: fetched.digest,
        size: fetched.bytes.len() as u64,
        annotations: Default::default(),
        platform: Some(WirePlatform::from(&leg.platform)),
    };
    Ok(CheckedLeg { platform: leg.platform.clone(), image, image_bytes: fetched.bytes, attestations, size })
}

pub(super) fn read_index(fetched: &Fetched) -> Result<Option<Index>, RegistryError> {
    if !manifest::is_index(&fetched.content_type) {
        return Ok(None);
    }
    let index: Index = serde_json::from_slice(&fetched.bytes)
        .map_err(|error| wrong(format!("{} is not an index: {error}", fetched.digest)))?;
    if index.manifests.len() > limits::INDEX_ENTRIES {
        return Err(wrong(format!("{} has {} entries", fetched.digest, index.manifests.len())));
    }
    Ok(Some(index))
}

/// The one image of a leg's own index, and its attestations.
pub(super) fn flatten(index: Index) -> Result<(Descriptor, Vec<Descriptor>), RegistryError> {
    let (attestations, mut images): (Vec<_>, Vec<_>) =
        index.manifests.into_iter().partition(Descriptor::is_attestation);
    match (images.pop(), images.len()) {
        (Some(image), 0) => Ok((image, attestations)),
        (None, _) => Err(wrong("its index has no image")),
        (Some(_), more) => Err(wrong(format!("its index has {} images instead of one", more + 1))),
    }
}

pub(super) fn read_manifest(fetched: &Fetched) -> Result<(Manifest, String), RegistryError> {
    let manifest: Manifest = serde_json::from_slice(&fetched.bytes)
        .map_err(|error| wrong(format!("{} is not an image manifest: {error}", fetched.digest)))?;
    let media_type = manifest.media_type.clone().unwrap_or_else(|| fetched.content_type.clone());
    if manifest::is_manifest(&media_type) {
        Ok((manifest, media_type))
    } else {
        Err(wrong(format!("{} is a `{media_type}`, not an image manifest", fetched.digest)))
    }
}

/// Every media type of the leg is of the family that the build asked for: registries and clients choke on mixes.
fn check_family(
    asked: MediaTypes,
    media_type: &str,
    manifest: &Manifest,
    attestations: &[Descriptor],
) -> Result<(), RegistryError> {
    let parts = [&manifest.config].into_iter().chain(&manifest.layers).chain(attestations);
    let all = parts.map(|descriptor| descriptor.media_type.as_str()).chain([media_type]);
    match all.into_iter().find(|one| manifest::family(one).is_some_and(|family| family != asked)) {
        None => Ok(()),
        Some(other) => {
            let name = manifest::family_name(asked);
            Err(wrong(format!(
                "`{other}` is not one of the {name} media types that the build asked for; choose others with --media-types"
            )))
        }
    }
}

pub(super) fn check_platform(config: &[u8], wanted: &Platform) -> Result<(), RegistryError> {
    let config: Config =
        serde_json::from_slice(config).map_err(|error| wrong(format!("its configuration does not read: {error}")))?;
    let found = Platform::new(&config.os, &config.architecture, config.variant.as_deref())
        .map_err(|error| wrong(format!("its configuration has no platform: {error}")))?;
    if found == *wanted {
        Ok(())
    } else {
        Err(wrong(format!(
            "the image is for {found}; a `FROM --platform=...` of the last stage in the Dockerfile is the usual cause"
        )))
    }
}

fn wrong(message: impl Into<String>) -> RegistryError {
    RegistryError::new(Fault::Final, message)
}
