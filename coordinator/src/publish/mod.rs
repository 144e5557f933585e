//! Publishing: checks every leg, merges them, pushes by digest, reads back, signs, and moves the tags last and together.
//!
//! The driver calls [`RegistryPublisher`] through its `Publisher` trait. Invariants: a tag never names anything with a
//! missing, unchecked or wrong-platform child; a failure says which tags moved; a retry finishes without a rebuild.

mod auth;
mod blobs;
mod catalog;
mod clean;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod leg;
mod manifest;
mod referrers;
mod registry;
mod retry;
mod sign;
mod survey;
mod tags;
mod target;
mod verify;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tags_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod verify_tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use async_trait::async_trait;
use futures_util::future::{join, try_join_all};
use kiln_common::{Digest, ImageReference, Platform, Timestamp};
use kiln_scheduler::{
    effect::{Leg, PublishJob},
    record::Published,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    credentials::RegistryCredential,
    driver::publisher::{PublishOutcome, Publisher, Removed},
    http::metrics,
};
use error::{Fault, RegistryError};
use leg::CheckedLeg;
use registry::{Registries, Session};
pub use sign::{SigningKey, SigningKeyError};
use survey::Survey;
use target::Target;
use verify::Verifier;

/// Publishes to registries over the distribution API.
pub struct RegistryPublisher {
    registries: Registries,
    verifier: Verifier,
    key: Option<SigningKey>,
}

/// No HTTP client could be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the registry client: {0}")]
pub struct SetUpError(#[from] reqwest::Error);

impl RegistryPublisher {
    /// `insecure_registries`: `host[:port]`s that speak plain HTTP; loopback ones always do. `verdicts`: the file that
    /// remembers which layers were verified.
    ///
    /// # Errors
    /// [`SetUpError`].
    pub fn new(
        insecure_registries: impl IntoIterator<Item = String>,
        verdicts: Option<PathBuf>,
    ) -> Result<Self, SetUpError> {
        Ok(Self { registries: Registries::new(insecure_registries)?, verifier: Verifier::new(verdicts), key: None })
    }

    /// Signs from now on what does not say otherwise.
    #[must_use]
    pub fn signing_with(self, key: Option<SigningKey>) -> Self {
        Self { key, ..self }
    }

    async fn run(&self, job: &PublishJob, session: &Session) -> Result<Published, PublishOutcome> {
        let failed = |error: RegistryError| PublishOutcome::Failed { published: None, message: error.message };
        let preparing = self.prepare(session, job);
        let (target, before) = join(preparing, Survey::take(session, &job.spec.tags)).await;
        let target = target.map_err(failed)?.map_err(PublishOutcome::from)?;
        before.allows(job, &target.digest).map_err(failed)?;
        sign::sign(self.key.as_ref(), session, &job.spec, &target).await.map_err(failed)?;
        let moved = tags::move_all(session, &job.spec.tags, &target, &before).await;
        let published = |tags: Vec<String>| Published {
            digest: target.digest.clone(),
            media_type: target.media_type.clone(),
            size: target.bytes.len() as u64,
            tags,
            platform_sizes: target.platform_sizes.clone(),
            at: Timestamp::now(),
        };
        if moved.failures.is_empty() {
            return Ok(published(moved.tags));
        }
        let message = describe(&moved);
        let published = (!moved.tags.is_empty()).then(|| published(moved.tags));
        Err(PublishOutcome::Failed { published, message })
    }

    /// Checks and merges the legs, and pushes what they make by its digest.
    async fn prepare(&self, session: &Session, job: &PublishJob) -> Result<Result<Target, MissingLegs>, RegistryError> {
        let checks = try_join_all(job.legs.iter().map(|leg| self.check(session, job, leg))).await?;
        let (mut legs, mut missing) = (Vec::with_capacity(checks.len()), MissingLegs::default());
        for (check, leg) in checks.into_iter().zip(&job.legs) {
            match check {
                Ok(checked) => legs.push(checked),
                Err(Missing { message }) => {
                    missing.platforms.push(leg.platform.clone());
                    missing.messages.push(message);
                }
            }
        }
        if !missing.platforms.is_empty() {
            return Ok(Err(missing));
        }
        let target = target::merge(&job.spec, legs)?;
        tags::push(session, &job.spec.tags, &target).await?;
        Ok(Ok(target))
    }

    async fn check(
        &self,
        session: &Session,
        job: &PublishJob,
        leg: &Leg,
    ) -> Result<Result<CheckedLeg, Missing>, RegistryError> {
        match leg::check(session, &self.verifier, &job.spec, leg).await {
            Err(RegistryError { fault: Fault::NotFound, message }) => Ok(Err(Missing { message })),
            checked => checked.map(Ok),
        }
    }
}

/// A leg that is not, or not wholly, in the registry.
struct Missing {
    message: String,
}

/// All of them.
#[derive(Default)]
struct MissingLegs {
    platforms: Vec<Platform>,
    messages: Vec<String>,
}

impl From<MissingLegs> for PublishOutcome {
    fn from(missing: MissingLegs) -> Self {
        Self::LegsMissing { platforms: missing.platforms, message: missing.messages.join("; ") }
    }
}

/// Tag by tag, what moved and what did not.
fn describe(moved: &tags::Moved) -> String {
    let failures: Vec<String> = moved.failures.iter().map(|(tag, error)| format!("`{tag}`: {error}")).collect();
    let failures = failures.join("; ");
    match moved.tags.as_slice() {
        [] => format!("no tag moved; {failures}"),
        some => {
            let total = some.len() + moved.failures.len();
            format!(
                "{} of {total} tags moved ({}); {failures}; `kiln builds retry` moves the rest",
                some.len(),
                some.join(", ")
            )
        }
    }
}

#[async_trait]
impl Publisher for RegistryPublisher {
    fn signs(&self) -> bool {
        self.key.is_some()
    }

    async fn tags(
        &self,
        tags: &[ImageReference],
        credentials: Vec<RegistryCredential>,
    ) -> Result<BTreeMap<ImageReference, Option<Digest>>, String> {
        let session = self.registries.session(credentials, CancellationToken::new());
        Survey::take(&session, tags).await.complete().map_err(|error| error.message)
    }

    async fn remove(
        &self,
        reference: &ImageReference,
        versions: BTreeSet<Digest>,
        credentials: Vec<RegistryCredential>,
        dry_run: bool,
    ) -> Result<Removed, String> {
        let session = self.registries.session(credentials, CancellationToken::new());
        clean::remove(&session, reference, &versions, dry_run).await.map_err(|error| error.message)
    }

    async fn publish(
        &self,
        job: PublishJob,
        credentials: Vec<RegistryCredential>,
        abandoned: CancellationToken,
    ) -> PublishOutcome {
        let began = Instant::now();
        let session = self.registries.session(credentials, abandoned);
        let outcome = match self.run(&job, &session).await {
            Ok(published) => PublishOutcome::Succeeded(published),
            Err(failed) => failed,
        };
        let elapsed = began.elapsed();
        let result = match &outcome {
            PublishOutcome::Succeeded(published) => {
                info!(build_id = %job.build, digest = %published.digest, ?elapsed, "published");
                "succeeded"
            }
            PublishOutcome::Failed { message, .. } => {
                warn!(build_id = %job.build, %message, ?elapsed, "publish failed");
                "failed"
            }
            PublishOutcome::LegsMissing { message, .. } => {
                warn!(build_id = %job.build, %message, ?elapsed, "legs are missing");
                "legs_missing"
            }
        };
        ::metrics::counter!(metrics::PUBLISHES, "result" => result).increment(1);
        ::metrics::histogram!(metrics::PUBLISH_SECONDS).record(elapsed);
        outcome
    }
}
