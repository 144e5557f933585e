//! The publishes that run. Started and abandoned by the driver, each ends with an event to it.
//!
//! Invariant: a build has at most one publish running; a new one starts once the earlier one has ended.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::join_all;
use kiln_common::{AttemptId, BuildId, Platform, WorkerId};
use kiln_scheduler::{Event, effect::PublishJob, record::Published};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{
    handle::Handle,
    publisher::{PublishOutcome, Publisher},
};
use crate::{
    audit::{Action, Actor, Object, Trail, Who},
    secrets::SecretStore,
};

/// Publishes at once; the others wait.
const CONCURRENT: usize = 64;

pub(super) struct Publishing {
    publisher: Arc<dyn Publisher>,
    secrets: SecretStore,
    driver: Handle,
    trail: Trail,
    permits: Arc<Semaphore>,
    running: HashMap<BuildId, Running>,
}

struct Running {
    publish: u32,
    abandoned: CancellationToken,
    task: JoinHandle<()>,
}

impl Publishing {
    pub(super) fn new(publisher: Arc<dyn Publisher>, secrets: SecretStore, driver: Handle, trail: Trail) -> Self {
        Self {
            publisher,
            secrets,
            driver,
            trail,
            permits: Arc::new(Semaphore::new(CONCURRENT)),
            running: HashMap::new(),
        }
    }

    pub(super) fn start(&mut self, job: PublishJob) {
        self.running.retain(|_, running| !running.task.is_finished());
        let earlier = self.running.remove(&job.build).map(|running| {
            running.abandoned.cancel();
            running.task
        });
        let abandoned = CancellationToken::new();
        let one = One {
            publisher: Arc::clone(&self.publisher),
            secrets: self.secrets.clone(),
            driver: self.driver.clone(),
            trail: self.trail.clone(),
            permits: Arc::clone(&self.permits),
            abandoned: abandoned.clone(),
        };
        let (build, publish) = (job.build, job.publish);
        let task = tokio::spawn(one.run(job, earlier));
        self.running.insert(build, Running { publish, abandoned, task });
    }

    pub(super) fn abandon(&mut self, build: BuildId) {
        if let Some(running) = self.running.get(&build) {
            info!(%build, publish = running.publish, "publish abandoned");
            running.abandoned.cancel();
        }
    }
}

impl Drop for Publishing {
    /// A publish must not outlive the loop that would record what it did.
    fn drop(&mut self) {
        for running in self.running.values() {
            running.abandoned.cancel();
            running.task.abort();
        }
    }
}

struct One {
    publisher: Arc<dyn Publisher>,
    secrets: SecretStore,
    driver: Handle,
    trail: Trail,
    permits: Arc<Semaphore>,
    abandoned: CancellationToken,
}

impl One {
    async fn run(self, job: PublishJob, earlier: Option<JoinHandle<()>>) {
        if let Some(earlier) = earlier {
            // Whether it ended well or was aborted, it has ended.
            drop(earlier.await);
        }
        let (build, publish) = (job.build, job.publish);
        let outcome = self.publish(job).await;
        self.write_down(build, &outcome).await;
        let event = match outcome {
            PublishOutcome::Succeeded(published) => {
                info!(%build, publish, digest = %published.digest, "published");
                Event::PublishSucceeded { build, publish, published }
            }
            PublishOutcome::Failed { published, message } => {
                info!(%build, publish, %message, "publish failed");
                Event::PublishFailed { build, publish, published, message }
            }
            PublishOutcome::LegsMissing { platforms, message } => {
                info!(%build, publish, %message, "legs are missing");
                self.name_workers(build, &platforms, &message).await;
                Event::LegsMissing { build, publish, platforms, message }
            }
        };
        // A driver that stopped recovers the build as publishing and starts again.
        let _ = self.driver.post(event).await;
    }

    /// A move that cannot be written down stands nevertheless: the log says so, and the store's failure stops the driver.
    async fn write_down(&self, build: BuildId, outcome: &PublishOutcome) {
        let published = match outcome {
            PublishOutcome::Succeeded(published) => Some(published),
            PublishOutcome::Failed { published, .. } => published.as_ref(),
            PublishOutcome::LegsMissing { .. } => None,
        };
        let Some(Published { digest, tags, .. }) = published else { return };
        let moves = tags.iter().map(|tag| {
            let detail = format!("to {digest} for build {build}");
            self.trail.record(Who::farm().did(Action::TagMove, Object::Tag(tag.clone()), detail))
        });
        // All at once, for one transaction. The trail has logged why one failed.
        drop(join_all(moves).await);
    }

    /// Whoever reported a digest that is not there stands in the trail with it.
    async fn name_workers(&self, build: BuildId, platforms: &[Platform], message: &str) {
        let platforms = platforms.to_vec();
        let attempts = self.driver.query(move |scheduler, _| {
            let missing = scheduler.tasks_of(build).filter(|task| platforms.contains(&task.platform));
            missing.filter_map(|task| task.attempt.as_ref().map(|attempt| (attempt.id, attempt.worker))).collect()
        });
        // A driver that stopped publishes anew.
        let attempts: Vec<(AttemptId, WorkerId)> = attempts.await.unwrap_or_default();
        for (attempt, id) in attempts {
            let who = Who { actor: Actor::Worker { id }, source: None };
            let why = format!("it reported an image that is not in the registry: {message}");
            self.trail.refuse(who.was_refused(Action::WorkerReport, Object::Attempt(attempt), why));
        }
    }

    async fn publish(&self, job: PublishJob) -> PublishOutcome {
        let _permit = self.permits.acquire().await;
        let build = job.build;
        match self.secrets.open(build).await {
            Ok(secrets) => self.publisher.publish(job, secrets.credentials, self.abandoned.clone()).await,
            Err(error) => {
                error!(%build, %error, "the build's credentials do not open");
                PublishOutcome::Failed { published: None, message: format!("the registry credentials: {error}") }
            }
        }
    }
}
