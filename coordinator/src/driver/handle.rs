//! How the rest of the coordinator reaches the driver. Cheap to clone.

use kiln_common::{BuildId, BuildSpec};
use kiln_scheduler::{Event, Scheduler, effect::Refusal};
use tokio::sync::{mpsc, mpsc::error::TrySendError, oneshot};

use super::hub::{BuildWatch, WatchEnd, WorkerWatch};
use crate::store::{StoreError, records::BuildView};

/// What waits for the driver.
pub(super) enum Command {
    /// No answer is wanted.
    Event(Box<Event>),
    /// Events in order; the last one is answered by `Accepted` or `Refused`.
    Request { events: Vec<Event>, sealed: Option<Vec<u8>>, answer: oneshot::Sender<Result<BuildId, Refusal>> },
    /// Runs on the committed state, between two turns.
    Query(Box<dyn FnOnce(&Scheduler) + Send>),
    WatchBuild { build: BuildId, answer: oneshot::Sender<Result<BuildWatch, WatchBuildError>> },
    WatchWorkers { answer: oneshot::Sender<WorkerWatch> },
}

/// Why a build cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchBuildError {
    #[error("there is no build {build}")]
    Unknown { build: BuildId },
    #[error(transparent)]
    End(#[from] WatchEnd),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// The driver did not take the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    #[error("the farm is stopping; try again")]
    Stopped,
    #[error("the farm has more to do than it can take in; try again later")]
    Busy,
}

/// Why a submit, a retry or a backfill came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Driver(#[from] DriverError),
}

#[derive(Clone)]
pub struct Handle {
    queue: mpsc::Sender<Command>,
}

impl Handle {
    pub(super) const fn new(queue: mpsc::Sender<Command>) -> Self {
        Self { queue }
    }

    /// Hands in a checked build with its sealed secrets. The answer is the build's id once it is durable: another one than
    /// `build` where the request id had made that before.
    ///
    /// # Errors
    /// [`SubmitError`]: nothing was made.
    pub async fn submit(
        &self,
        build: BuildId,
        request_id: Option<String>,
        spec: BuildSpec,
        sealed: Option<Vec<u8>>,
    ) -> Result<BuildId, SubmitError> {
        self.request(vec![Event::Submit { build, request_id, spec: Box::new(spec) }], sealed).await
    }

    /// Runs what failed again. `known` is the build as the store holds it.
    ///
    /// # Errors
    /// [`SubmitError`]: nothing changed.
    pub async fn retry(&self, known: BuildView) -> Result<BuildId, SubmitError> {
        let build = known.build.id;
        self.request(vec![recall(known), Event::Retry { build }], None).await
    }

    /// Runs the missing optional legs. `known` is the build as the store holds it.
    ///
    /// # Errors
    /// [`SubmitError`]: nothing changed.
    pub async fn backfill(&self, known: BuildView) -> Result<BuildId, SubmitError> {
        let build = known.build.id;
        self.request(vec![recall(known), Event::Backfill { build }], None).await
    }

    /// Hands in an event and waits for a place in the queue, not for what comes of it.
    ///
    /// # Errors
    /// [`DriverError::Stopped`].
    pub async fn event(&self, event: Event) -> Result<(), DriverError> {
        self.queue.send(Command::Event(Box::new(event))).await.map_err(|_| DriverError::Stopped)
    }

    /// Hands in events that belong together and waits until they are committed.
    ///
    /// # Errors
    /// [`DriverError::Stopped`].
    pub async fn settle(&self, event: Event) -> Result<(), DriverError> {
        self.event(event).await?;
        self.query(|_| ()).await
    }

    /// What the committed state says.
    ///
    /// # Errors
    /// [`DriverError::Stopped`].
    pub async fn query<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Scheduler) -> T + Send + 'static,
    ) -> Result<T, DriverError> {
        let (answer, answered) = oneshot::channel();
        let ask = move |scheduler: &Scheduler| drop(answer.send(ask(scheduler)));
        self.queue.send(Command::Query(Box::new(ask))).await.map_err(|_| DriverError::Stopped)?;
        answered.await.map_err(|_| DriverError::Stopped)
    }

    /// The build now and after every change.
    ///
    /// # Errors
    /// [`WatchBuildError`].
    pub async fn watch_build(&self, build: BuildId) -> Result<BuildWatch, WatchBuildError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Command::WatchBuild { build, answer }).await.map_err(|_| DriverError::Stopped)?;
        answered.await.map_err(|_| DriverError::Stopped)?
    }

    /// Ids of workers as they change.
    ///
    /// # Errors
    /// [`DriverError::Stopped`].
    pub async fn watch_workers(&self) -> Result<WorkerWatch, DriverError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Command::WatchWorkers { answer }).await.map_err(|_| DriverError::Stopped)?;
        answered.await.map_err(|_| DriverError::Stopped)
    }

    async fn request(&self, events: Vec<Event>, sealed: Option<Vec<u8>>) -> Result<BuildId, SubmitError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Command::Request { events, sealed, answer }).map_err(|error| match error {
            TrySendError::Full(_) => DriverError::Busy,
            TrySendError::Closed(_) => DriverError::Stopped,
        })?;
        Ok(answered.await.map_err(|_| DriverError::Stopped)??)
    }
}

fn recall(known: BuildView) -> Event {
    Event::Recall { build: Box::new(known.build), tasks: known.tasks }
}
