//! Publishing: checks every leg, merges them, pushes by digest, reads back, and moves the tags last and together.
//!
//! The driver calls [`RegistryPublisher`] through its `Publisher` trait. Invariants: a tag never names anything with a
//! missing, unchecked or wrong-platform child; a failure says which tags moved; a retry finishes without a rebuild.

mod auth;
mod error;
mod leg;
mod manifest;
mod registry;
mod tags;
mod target;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use kiln_common::Timestamp;
use kiln_scheduler::{effect::PublishJob, record::Published};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    credentials::RegistryCredential,
    driver::publisher::{PublishOutcome, Publisher},
    http::metrics,
};
use error::RegistryError;
use registry::{Registries, Session};
use target::Target;

/// Publishes to registries over the distribution API.
pub struct RegistryPublisher {
    registries: Registries,
}

/// No HTTP client could be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the registry client: {0}")]
pub struct SetUpError(#[from] reqwest::Error);

impl RegistryPublisher {
    /// `insecure_registries`: `host[:port]`s that speak plain HTTP; loopback ones always do.
    ///
    /// # Errors
    /// [`SetUpError`].
    pub fn new(insecure_registries: impl IntoIterator<Item = String>) -> Result<Self, SetUpError> {
        Ok(Self { registries: Registries::new(insecure_registries)? })
    }

    async fn run(&self, job: &PublishJob, session: &Session) -> Result<Published, PublishOutcome> {
        let failed = |error: RegistryError| PublishOutcome::Failed { published: None, message: error.message };
        let target = prepare(session, job).await.map_err(failed)?;
        // A publish that was interrupted may have moved some tags without anyone having noted it.
        let is_retry = job.publish > 1 || job.earlier.is_some();
        let moved = tags::move_all(session, &job.spec.tags, &target, is_retry).await;
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
}

/// Everything before the first tag moves.
async fn prepare(session: &Session, job: &PublishJob) -> Result<Target, RegistryError> {
    let legs = try_join_all(job.legs.iter().map(|leg| leg::check(session, &job.spec, leg))).await?;
    let target = target::merge(&job.spec, legs)?;
    tags::push(session, &job.spec.tags, &target).await?;
    Ok(target)
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
        };
        ::metrics::counter!(metrics::PUBLISHES, "result" => result).increment(1);
        ::metrics::histogram!(metrics::PUBLISH_SECONDS).record(elapsed);
        outcome
    }
}
