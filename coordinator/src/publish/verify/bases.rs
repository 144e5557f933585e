//! What came with a base image is not the build's own.
//!
//! Asked only when a layer holds something that is out of place, which is rare: a build that is in order never needs its
//! base images' registries.

use std::time::Duration;

use futures_util::future::join_all;
use kiln_common::{Digest, ImageReference, Platform};

use crate::publish::{
    error::RegistryError,
    manifest::{self, Index, Manifest},
    registry::{Pointer, Session},
};

/// How long the registries of base images may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a layer came with a base image.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    Base,
    Build,
    /// This base image could not be read, and why.
    Unknown(String),
}

/// Looks for the layer in the base images.
pub async fn origin(session: &Session, bases: &[ImageReference], platform: &Platform, layer: &Digest) -> Origin {
    let looks = bases.iter().map(|base| async move {
        let layers = tokio::time::timeout(PATIENCE, layers(session, base, platform)).await;
        let layers = layers.unwrap_or_else(|_| Err(RegistryError::transient("its registry does not answer in time")));
        layers.map(|layers| layers.contains(layer)).map_err(|error| format!("{base} cannot be read: {error}"))
    });
    let looks = join_all(looks).await;
    if looks.contains(&Ok(true)) {
        return Origin::Base;
    }
    looks.into_iter().find_map(Result::err).map_or(Origin::Build, Origin::Unknown)
}

async fn layers(session: &Session, base: &ImageReference, platform: &Platform) -> Result<Vec<Digest>, RegistryError> {
    let Some(digest) = base.digest() else { return Ok(Vec::new()) };
    let repository = base.repository();
    let mut fetched = session.manifest_once(repository, Pointer::Digest(digest)).await?;
    if manifest::is_index(&fetched.content_type) {
        let index: Index = serde_json::from_slice(&fetched.bytes).map_err(malformed)?;
        let Some(child) =
            index.manifests.iter().find(|child| child.platform.as_ref().is_some_and(|own| own.is(platform)))
        else {
            return Ok(Vec::new());
        };
        fetched = session.manifest_once(repository, Pointer::Digest(&child.digest)).await?;
    }
    let manifest: Manifest = serde_json::from_slice(&fetched.bytes).map_err(malformed)?;
    Ok(manifest.layers.into_iter().map(|layer| layer.digest).collect())
}

fn malformed(error: serde_json::Error) -> RegistryError {
    RegistryError::transient(format!("its manifest does not read: {error}"))
}
