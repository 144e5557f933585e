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
use kiln_common::{Digest, ImageReference, Timestamp};
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
        let preparing = self.prepare(session, job);
        let (target, before) = join(preparing, Survey::take(session, &job.spec.tags)).await;
        let target = target?;
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
    async fn prepare(&self, session: &Session, job: &PublishJob) -> Result<Target, PublishOutcome> {
        let checks = try_join_all(job.legs.iter().map(|leg| self.check(session, job, leg))).await.map_err(failed)?;
        let (mut legs, mut platforms, mut messages) = (Vec::with_capacity(checks.len()), Vec::new(), Vec::new());
        for (check, leg) in checks.into_iter().zip(&job.legs) {
            match check {
                Ok(checked) => legs.push(checked),
                Err(missing) => {
                    platforms.push(leg.platform.clone());
                    messages.push(missing);
                }
            }
        }
        if !platforms.is_empty() {
            return Err(PublishOutcome::LegsMissing { platforms, message: messages.join("; ") });
        }
        let target = target::merge(&job.spec, legs).map_err(failed)?;
        tags::push(session, &job.spec.tags, &target).await.map_err(failed)?;
        Ok(target)
    }

    /// The inner error says what of the leg is not in the registry: all such legs are told together.
    async fn check(
        &self,
        session: &Session,
        job: &PublishJob,
        leg: &Leg,
    ) -> Result<Result<CheckedLeg, String>, RegistryError> {
        match leg::check(session, &self.verifier, &job.spec, leg).await {
            Err(RegistryError { fault: Fault::NotFound, message }) => Ok(Err(message)),
            checked => checked.map(Ok),
        }
    }
}

/// No tag has moved.
fn failed(error: RegistryError) -> PublishOutcome {
    PublishOutcome::Failed { published: None, message: error.message }
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
