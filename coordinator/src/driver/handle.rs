//! How the rest of the coordinator reaches the driver. Cheap to clone.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use kiln_common::{BuildId, BuildSpec, Timestamp, WorkerId};
use kiln_scheduler::{Event, Scheduler, TaskState, effect::Refusal};
use tokio::sync::{mpsc, mpsc::error::TrySendError, oneshot};
use tracing::error;

use super::{
    hub::{self, WatchEnd},
    speakers::SessionId,
};
use crate::{
    audit::{Action, Who},
    credentials::BuildSecrets,
    secrets::SecretStore,
    store::{Store, StoreError, keys, records, records::BuildView},
};

/// Looks at the state and returns what tells of it, once that state is committed.
pub(super) type Query = Box<dyn FnOnce(&Scheduler, Timestamp) -> Box<dyn FnOnce() + Send> + Send>;

/// What waits for the driver.
pub(super) enum Command {
    /// `done` is told once the turn that handled it is committed.
    Event {
        event: Box<Event>,
        done: Option<oneshot::Sender<()>>,
    },
    /// What a worker says in one of its sessions.
    Heard {
        session: SessionId,
        event: Box<Event>,
    },
    Request(Request),
    Query(Query),
    WatchBuild {
        build: BuildId,
        answer: oneshot::Sender<Result<hub::BuildWatch, WatchError>>,
    },
    WatchWorkers {
        answer: oneshot::Sender<hub::WorkerWatch>,
    },
}

/// Events in order; the last one is answered by `Accepted` or `Refused`.
pub(super) struct Request {
    pub(super) events: Vec<Event>,
    pub(super) sealed: Option<Vec<u8>>,
    /// Who asks for what: written into the audit trail together with what is accepted.
    pub(super) act: (Who, Action),
    pub(super) answer: oneshot::Sender<Result<Accepted, Refusal>>,
}

/// A build that is durable, with its audit entry.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub build: BuildId,
    /// As it was when its turn was committed; `None` for one that the scheduler has forgotten since.
    pub snapshot: Option<BuildView>,
}

/// A checked build to accept.
#[derive(Debug)]
pub struct Submission {
    pub build: BuildId,
    pub request_id: Option<String>,
    pub spec: BuildSpec,
    pub secrets: BuildSecrets,
    pub who: Who,
}

/// A build that was accepted now, or earlier with the same request id.
#[derive(Debug, Clone)]
pub struct Submitted {
    pub accepted: Accepted,
    pub existed: bool,
}

/// The driver does not run any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the farm is stopping; try again")]
pub struct Stopped;

/// Why a submit, a retry or a backfill came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the farm has more to do than it can take in; try again later")]
    Overloaded,
    #[error("the farm is stopping; try again")]
    Stopped,
}

/// Why a watch did not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("there is no build {build}")]
    Unknown { build: BuildId },
    #[error(transparent)]
    Ended(#[from] WatchEnd),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the farm is stopping; try again")]
    Stopped,
}

/// A build as of the watch's start, then after every change; ends after the final state.
pub type BuildWatch = Pin<Box<dyn Stream<Item = Result<Arc<BuildView>, WatchError>> + Send>>;
/// Workers that changed, as they do.
pub type WorkerWatch = Pin<Box<dyn Stream<Item = Result<Vec<WorkerId>, WatchError>> + Send>>;

#[derive(Clone)]
pub struct Handle {
    pub(super) queue: mpsc::Sender<Command>,
    secrets: SecretStore,
    store: Arc<dyn Store>,
}

impl Handle {
    pub(super) fn new(queue: mpsc::Sender<Command>, store: Arc<dyn Store>, secrets: SecretStore) -> Self {
        Self { queue, secrets, store }
    }

    /// What is committed: final builds that the scheduler forgot, listings, images.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Hands in a checked build. The answer comes once the build and its sealed secrets are durable.
    ///
    /// # Errors
    /// [`SubmitError`]: nothing was made.
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, SubmitError> {
        let Submission { build, request_id, spec, secrets, who } = submission;
        if let Some(build) = self.earlier(request_id.as_deref()).await? {
            return Ok(Submitted { accepted: Accepted { build, snapshot: None }, existed: true });
        }
        let sealed = self.sealed(build, &secrets)?;
        let credentials = self.secrets.mark(&secrets);
        let event = Event::Submit { build, request_id, spec: Box::new(spec), credentials };
        let accepted = self.request(vec![event], sealed, (who, Action::BuildSubmit)).await?;
        Ok(Submitted { existed: accepted.build != build, accepted })
    }

    /// Runs what failed of a final build again, keeping every digest. The build's own credentials went with its end.
    ///
    /// # Errors
    /// [`SubmitError`]: nothing changed.
    pub async fn retry(&self, who: Who, build: BuildId, secrets: &BuildSecrets) -> Result<Accepted, SubmitError> {
        let mut events = self.recall(build).await?;
        events.push(Event::Retry { build, credentials: self.secrets.mark(secrets) });
        self.request(events, self.sealed(build, secrets)?, (who, Action::BuildRetry)).await
    }

    /// Runs the optional legs that an incomplete build lacks.
    ///
    /// # Errors
    /// [`SubmitError`]: nothing changed.
    pub async fn backfill(&self, who: Who, build: BuildId, secrets: &BuildSecrets) -> Result<Accepted, SubmitError> {
        let mut events = self.recall(build).await?;
        events.push(Event::Backfill { build, credentials: self.secrets.mark(secrets) });
        self.request(events, self.sealed(build, secrets)?, (who, Action::BuildBackfill)).await
    }

    /// Hands in an event; resolves once the turn that handled it is committed.
    ///
    /// # Errors
    /// [`Stopped`]: it may or may not have happened.
    pub async fn send(&self, event: Event) -> Result<(), Stopped> {
        let (done, is_done) = oneshot::channel();
        let command = Command::Event { event: Box::new(event), done: Some(done) };
        self.queue.send(command).await.map_err(|_| Stopped)?;
        is_done.await.map_err(|_| Stopped)
    }

    /// Hands in an event; resolves once it has its place in the queue.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn post(&self, event: Event) -> Result<(), Stopped> {
        self.queue.send(Command::Event { event: Box::new(event), done: None }).await.map_err(|_| Stopped)
    }

    /// Hands in what a worker says in its session; resolves once it has its place in the queue.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn hear(&self, session: SessionId, event: Event) -> Result<(), Stopped> {
        self.queue.send(Command::Heard { session, event: Box::new(event) }).await.map_err(|_| Stopped)
    }

    /// What the state says, told once it is committed, and the moment of its last turn.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn query<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Scheduler, Timestamp) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        let ask = move |scheduler: &Scheduler, now| {
            let found = ask(scheduler, now);
            Box::new(move || drop(answer.send(found))) as Box<dyn FnOnce() + Send>
        };
        self.queue.send(Command::Query(Box::new(ask))).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }

    /// The build now and after every change.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn watch_build(&self, build: BuildId) -> Result<BuildWatch, WatchError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Command::WatchBuild { build, answer }).await.map_err(|_| WatchError::Stopped)?;
        let watch = answered.await.map_err(|_| WatchError::Stopped)??;
        Ok(Box::pin(watch.into_stream()))
    }

    /// Workers as they change.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn watch_workers(&self) -> Result<WorkerWatch, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Command::WatchWorkers { answer }).await.map_err(|_| Stopped)?;
        let watch = answered.await.map_err(|_| Stopped)?;
        Ok(Box::pin(watch.into_stream()))
    }

    /// The build that the request id made, as the store remembers it; the scheduler knows only the recent ones.
    async fn earlier(&self, request_id: Option<&str>) -> Result<Option<BuildId>, SubmitError> {
        let Some(request_id) = request_id else { return Ok(None) };
        let entry = self.store.get(&keys::request(request_id)).await.map_err(unreadable)?;
        entry.map(|entry| records::decode(&entry)).transpose().map_err(unreadable)
    }

    fn sealed(&self, build: BuildId, secrets: &BuildSecrets) -> Result<Option<Vec<u8>>, SubmitError> {
        let sealed = (!secrets.is_empty()).then(|| self.secrets.seal(build, secrets)).transpose();
        sealed.map_err(|error| {
            error!(%build, %error, "secrets cannot be sealed");
            SubmitError::Stopped
        })
    }

    /// The event that brings a final build back into the scheduler's memory. A leg whose RUN steps want secrets cannot run
    /// again: they went with the build's end. A publish can.
    async fn recall(&self, build: BuildId) -> Result<Vec<Event>, SubmitError> {
        let view = records::build(&*self.store, build).await.map_err(unreadable)?;
        let view = view.ok_or(Refusal::UnknownBuild { build })?;
        let rebuilds = view.tasks.iter().any(|task| !matches!(task.state, TaskState::Succeeded { .. }));
        if view.build.state.is_final() && rebuilds && !view.build.spec.secret_ids.is_empty() {
            let state = "final and its secrets are forgotten";
            return Err(Refusal::WrongState { build, state, remedy: "a new submit can bring them again" }.into());
        }
        Ok(vec![Event::Recall { build: Box::new(view.build), tasks: view.tasks }])
    }

    async fn request(
        &self,
        events: Vec<Event>,
        sealed: Option<Vec<u8>>,
        act: (Who, Action),
    ) -> Result<Accepted, SubmitError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Command::Request(Request { events, sealed, act, answer })).map_err(
            |error| match error {
                TrySendError::Full(_) => SubmitError::Overloaded,
                TrySendError::Closed(_) => SubmitError::Stopped,
            },
        )?;
        Ok(answered.await.map_err(|_| SubmitError::Stopped)??)
    }
}

fn unreadable(error: StoreError) -> SubmitError {
    error!(%error, "the store does not answer");
    SubmitError::Stopped
}
