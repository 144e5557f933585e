//! What the driver asks of whoever merges legs and moves tags. `publish` does it against registries, tests fake it.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use kiln_common::{Digest, ImageReference, Platform};
use kiln_scheduler::{effect::PublishJob, record::Published};
use tokio_util::sync::CancellationToken;

use crate::credentials::RegistryCredential;

/// How a publish ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishOutcome {
    /// The result is pushed, read back, and every tag names it.
    Succeeded(Published),
    /// The budget is used up or the registry refused for good; `published` says which tags moved, where any did.
    Failed { published: Option<Published>, message: String },
    /// No tag moved: images of these platforms, or parts of them, are not in the registry though their workers pushed them.
    LegsMissing { platforms: Vec<Platform>, message: String },
}

/// What was taken out of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    pub tag: Option<String>,
    /// The index before its children.
    pub deleted: Vec<Digest>,
    /// What stays, and why.
    pub kept: Vec<(Digest, String)>,
}

/// Merges the legs of one build and moves its tags.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    /// Whether it has a key to sign with.
    fn signs(&self) -> bool {
        false
    }

    /// What the tags name now.
    ///
    /// # Errors
    /// Why a registry does not say, for people.
    async fn tags(
        &self,
        tags: &[ImageReference],
        credentials: Vec<RegistryCredential>,
    ) -> Result<BTreeMap<ImageReference, Option<Digest>>, String>;

    /// Takes a tag or a digest out of its repository, with the children that neither another tag nor one of `versions` needs.
    ///
    /// # Errors
    /// Why it stays, for people.
    async fn remove(
        &self,
        reference: &ImageReference,
        versions: BTreeSet<Digest>,
        credentials: Vec<RegistryCredential>,
        dry_run: bool,
    ) -> Result<Removed, String>;

    /// Runs to its end within its own budget. Once `abandoned` is cancelled, no further tag moves and it ends soon.
    /// After a restart the same job may come again: what stands already is not an error.
    async fn publish(
        &self,
        job: PublishJob,
        credentials: Vec<RegistryCredential>,
        abandoned: CancellationToken,
    ) -> PublishOutcome;
}
