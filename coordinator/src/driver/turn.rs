//! One turn after the other: events in, one transaction, effects out. While a turn's transaction is on its way into the
//! store, the next turn is already taken up.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use kiln_common::{BuildId, WorkerId, limits};
use kiln_scheduler::{Effect, Event, Scheduler, effect::Refusal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    clock::Clock,
    handle::{Accepted, Command, Handle, Request, WatchError},
    hub::{BuildWatch, Hub},
    ledger::Ledger,
    outbox::{Order, Outbox},
    publisher::Publisher,
    publishing::Publishing,
    recovery,
    speakers::{SessionId, Speakers},
    staging::{After, Indexed, Turn},
};
use crate::{
    audit::{Object, Trail},
    secrets::SecretStore,
    store::{Revision, Store, StoreError, keys, records, records::BuildView},
};

/// What a driver is made of.
pub struct Parts {
    pub scheduler: Scheduler,
    pub store: Arc<dyn Store>,
    pub secrets: SecretStore,
    pub outbox: Arc<dyn Outbox>,
    pub publisher: Arc<dyn Publisher>,
    pub ledger: Arc<Ledger>,
    pub trail: Trail,
}

/// Why the loop ended other than when told to.
#[derive(Debug, thiserror::Error)]
pub enum StopCause {
    #[error("the farm's state cannot be read: {0}")]
    Restore(StoreError),
    #[error("a change of the farm's state could not be committed: {0}")]
    Commit(StoreError),
}

pub struct Driver {
    scheduler: Scheduler,
    store: Arc<dyn Store>,
    outbox: Arc<dyn Outbox>,
    ledger: Arc<Ledger>,
    trail: Trail,
    secrets: SecretStore,
    publishing: Publishing,
    hub: Hub,
    speakers: Speakers,
    queue: mpsc::Receiver<Command>,
    /// What is taken up and not yet given to the store.
    turn: Turn,
    indexed: Indexed,
    clock: Clock,
}

/// A turn whose transaction is on its way into the store.
struct Committing {
    turn: Turn,
    commit: BoxFuture<'static, Result<Revision, StoreError>>,
}

impl Driver {
    /// A queue's receiving and sending ends, the sending end made first because sessions and publishes need it too.
    #[must_use]
    pub fn queue(store: Arc<dyn Store>, secrets: SecretStore) -> (Handle, Queue) {
        let (sender, receiver) = mpsc::channel(limits::DRIVER_QUEUE);
        (Handle::new(sender, store, secrets), Queue(receiver))
    }

    /// Reads the state from the store and acts on what follows from it.
    ///
    /// # Errors
    /// [`StopCause`].
    pub async fn restore(parts: Parts, handle: Handle, queue: Queue) -> Result<Self, StopCause> {
        let event = recovery::restore(&*parts.store, &parts.ledger).await.map_err(StopCause::Restore)?;
        parts.secrets.restore().await.map_err(StopCause::Restore)?;
        let mut driver = Self {
            scheduler: parts.scheduler,
            publishing: Publishing::new(parts.publisher, parts.secrets.clone(), handle, parts.trail.clone()),
            secrets: parts.secrets,
            trail: parts.trail,
            store: parts.store,
            outbox: parts.outbox,
            ledger: parts.ledger,
            hub: Hub::default(),
            speakers: Speakers::default(),
            queue: queue.0,
            turn: Turn::default(),
            indexed: Indexed::default(),
            clock: Clock::new(),
        };
        driver.handle(event);
        let committing = driver.begin_commit().map_err(StopCause::Commit)?;
        driver.finish(Some(committing)).await.map_err(StopCause::Commit)?;
        Ok(driver)
    }

    /// Until `stop`.
    ///
    /// # Errors
    /// [`StopCause`]: nothing that was not committed was told to anyone.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StopCause> {
        let mut committing = None;
        while !stop.is_cancelled() {
            if committing.is_none() && !self.turn.is_empty() {
                committing = Some(self.begin_commit().map_err(StopCause::Commit)?);
            }
            let wait = self.scheduler.poll_deadline().map(|deadline| deadline.since(self.clock.read()));
            let has_room = self.turn.taken < limits::DRIVER_BATCH;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                committed = committed(&mut committing) => {
                    let turn = committed.map_err(StopCause::Commit)?;
                    committing = None;
                    self.conclude(turn).await;
                }
                command = self.queue.recv(), if has_room => match command {
                    Some(command) => self.take_up(command).map_err(StopCause::Commit)?,
                    None => break,
                },
                () = sleep(wait) => self.take_up_deadline(),
            }
        }
        self.finish(committing).await.map_err(StopCause::Commit)?;
        let last = self.begin_commit().map_err(StopCause::Commit)?;
        self.finish(Some(last)).await.map_err(StopCause::Commit)?;
        info!("driver stopped");
        Ok(())
    }

    /// Takes up a command and those that wait behind it, as far as the turn has room.
    fn take_up(&mut self, first: Command) -> Result<(), StoreError> {
        self.clock.read();
        let mut next = Some(first);
        while let Some(command) = next {
            self.turn.taken += 1;
            self.take(command)?;
            next = if self.turn.taken < limits::DRIVER_BATCH { self.queue.try_recv().ok() } else { None };
        }
        self.take_up_deadline();
        Ok(())
    }

    fn take_up_deadline(&mut self) {
        self.clock.read();
        if self.scheduler.poll_deadline().is_some_and(|deadline| deadline <= self.clock.last()) {
            let effects = self.scheduler.handle_deadline(self.clock.last());
            self.collect(effects);
        }
    }

    fn handle(&mut self, event: Event) {
        let effects = self.scheduler.handle(event, self.clock.last());
        self.collect(effects);
    }

    fn collect(&mut self, effects: Vec<Effect>) {
        let session = |effect: &Effect| addressee(effect).and_then(|worker| self.speakers.current(worker));
        self.turn.effects.extend(effects.into_iter().map(|effect| {
            let session = session(&effect);
            (effect, session)
        }));
    }

    fn take(&mut self, command: Command) -> Result<(), StoreError> {
        match command {
            Command::Event { event, done } => {
                self.turn.touched.extend(worker_of(&event));
                self.turn.done.extend(done);
                self.handle(*event);
            }
            Command::Heard { session, event } => {
                self.turn.touched.insert(session.worker);
                for event in self.speakers.hear(session, *event) {
                    self.handle(event);
                }
            }
            Command::Request(request) => self.take_request(request)?,
            Command::Query(ask) => {
                let tell = ask(&self.scheduler, self.clock.last());
                self.turn.after.push(After::Tell(tell));
            }
            Command::WatchBuild { build, answer } => self.turn.after.push(After::WatchBuild { build, answer }),
            Command::WatchWorkers { answer } => self.turn.after.push(After::WatchWorkers { answer }),
        }
        Ok(())
    }

    fn take_request(&mut self, request: Request) -> Result<(), StoreError> {
        let Request { events, sealed, act: (who, action), answer } = request;
        let own = events.last().and_then(build_of);
        let start = self.turn.effects.len();
        for event in events {
            self.handle(event);
        }
        let outcome = self.turn.effects[start..].iter().find_map(|(effect, _)| outcome_of(effect));
        if let (Some(Ok(build)), Some(sealed)) = (&outcome, sealed)
            && own == Some(*build)
        {
            // Before the records: an end in the same turn deletes it again.
            self.turn.txn.put(keys::secrets(*build), sealed);
            self.secrets.came(*build);
        }
        if let Some(Ok(build)) = outcome {
            let detail = if own == Some(build) { "" } else { "sent again" };
            self.trail.stage(&mut self.turn.txn, who.did(action, Object::Build(build), detail))?;
        }
        match outcome {
            Some(outcome) => {
                let outcome = outcome.map(|build| self.accepted(build));
                self.turn.answers.push((answer, outcome));
            }
            None => warn!(build = ?own, "the scheduler gave no answer to a request"),
        }
        Ok(())
    }

    fn accepted(&self, build: BuildId) -> Accepted {
        let record = self.scheduler.build(build).cloned();
        let tasks = || self.scheduler.tasks_of(build).cloned().collect();
        Accepted { build, snapshot: record.map(|build| BuildView { build, tasks: tasks() }) }
    }

    /// Gives what was taken up to the store. Call it when nothing else is on its way there and what was is concluded: after a
    /// commit that failed, no later one may stand.
    fn begin_commit(&mut self) -> Result<Committing, StoreError> {
        let mut turn = std::mem::take(&mut self.turn);
        // The commit deletes the secrets of a build that ends. Whoever finds none there finds its heir in the ledger.
        for (effect, _) in &turn.effects {
            if let Effect::PassOn(pass_on) = effect {
                self.ledger.passed_on(pass_on);
            }
        }
        self.indexed.stage(&mut turn.txn, &turn.effects)?;
        let (store, txn) = (Arc::clone(&self.store), std::mem::take(&mut turn.txn));
        let commit = async move { if txn.is_empty() { store.revision().await } else { store.commit(txn).await } };
        Ok(Committing { turn, commit: commit.boxed() })
    }

    async fn finish(&mut self, mut committing: Option<Committing>) -> Result<(), StoreError> {
        if committing.is_some() {
            let turn = committed(&mut committing).await?;
            self.conclude(turn).await;
        }
        Ok(())
    }

    /// Acts on a turn that is committed.
    async fn conclude(&mut self, turn: Turn) {
        // Before any order is sent: an assignment may have been passed on in the turn in which it was made.
        for (effect, _) in &turn.effects {
            self.ledger.concluded(effect);
        }
        for (effect, session) in turn.effects {
            self.act(effect, session);
        }
        for (answer, outcome) in turn.answers {
            // A caller that went away asks again with its request id.
            drop(answer.send(outcome));
        }
        for done in turn.done {
            // Whoever does not wait any more needs no answer.
            let _ = done.send(());
        }
        turn.touched.into_iter().for_each(|worker| self.hub.worker_changed(worker));
        self.hub.flush();
        for after in turn.after {
            self.serve(after).await;
        }
    }

    /// Acts on an effect whose turn is committed; `session` is the one to tell of it.
    fn act(&mut self, effect: Effect, session: Option<SessionId>) {
        match effect {
            Effect::PutBuild(build) => self.hub.build_changed(&build),
            Effect::PutTask(task) => self.hub.task_changed(&task),
            Effect::PutWorker(worker) => {
                self.hub.worker_changed(worker.id);
                self.send(session, Order::Settings { slots: worker.slots.unwrap_or(0) });
            }
            Effect::DeleteWorker(worker) => self.hub.worker_changed(worker),
            // Answered with the turn's other requests.
            Effect::Accepted { .. } | Effect::Refused { .. } => {}
            Effect::Dispatch(dispatch) => {
                let worker = dispatch.worker;
                info!(
                    build = %dispatch.build, attempt = %dispatch.attempt, %worker, platform = %dispatch.platform,
                    grade = %dispatch.grade, "task assigned"
                );
                self.hub.worker_changed(worker);
                self.send(session, Order::Assign(dispatch));
            }
            Effect::PassOn(pass_on) => {
                info!(build = %pass_on.build, attempt = %pass_on.attempt, worker = %pass_on.worker, "attempt passed on");
                self.hub.worker_changed(pass_on.worker);
            }
            Effect::CancelAttempt { worker, attempt, reason } => {
                self.hub.worker_changed(worker);
                self.send(session, Order::Cancel { attempt, reason });
            }
            Effect::AcknowledgeReport { worker: _, attempt } => self.send(session, Order::Acknowledge { attempt }),
            Effect::Adopted { worker: _, attempts } => self.send(session, Order::Adopted { attempts }),
            Effect::CloseSession { worker, reason } => {
                self.hub.worker_changed(worker);
                self.send(session, Order::Close { reason });
            }
            Effect::Publish(job) => self.publishing.start(*job),
            Effect::AbandonPublish { build } => self.publishing.abandon(build),
            Effect::Finished { build } => {
                info!(%build, "build finished");
                self.secrets.went(build);
            }
        }
    }

    /// A worker without a session hears of what it missed when it returns.
    fn send(&self, session: Option<SessionId>, order: Order) {
        if let Some(session) = session {
            self.outbox.send(session, order);
        }
    }

    async fn serve(&mut self, after: After) {
        match after {
            After::Tell(tell) => tell(),
            After::WatchBuild { build, answer } => drop(answer.send(self.watch(build).await)),
            After::WatchWorkers { answer } => drop(answer.send(self.hub.watch_workers())),
        }
    }

    async fn watch(&mut self, build: BuildId) -> Result<BuildWatch, WatchError> {
        if let Some(joined) = self.hub.join(build) {
            return Ok(joined?);
        }
        let view = records::build(&*self.store, build).await?.ok_or(WatchError::Unknown { build })?;
        Ok(self.hub.watch(view))
    }
}

/// The receiving end of a driver's queue.
pub struct Queue(mpsc::Receiver<Command>);

/// The turn that was on its way, once it is durable; never while none is.
async fn committed(committing: &mut Option<Committing>) -> Result<Turn, StoreError> {
    match committing {
        Some(Committing { turn, commit }) => {
            let revision = commit.await?;
            debug!(revision, events = turn.taken, "turn committed");
            Ok(std::mem::take(turn))
        }
        None => std::future::pending().await,
    }
}

/// The worker that an order is for.
const fn addressee(effect: &Effect) -> Option<WorkerId> {
    match effect {
        Effect::PutWorker(worker) => Some(worker.id),
        Effect::Dispatch(dispatch) => Some(dispatch.worker),
        Effect::CancelAttempt { worker, .. }
        | Effect::AcknowledgeReport { worker, .. }
        | Effect::Adopted { worker, .. }
        | Effect::CloseSession { worker, .. } => Some(*worker),
        Effect::PutBuild(_)
        | Effect::PutTask(_)
        | Effect::DeleteWorker(_)
        | Effect::Accepted { .. }
        | Effect::Refused { .. }
        | Effect::PassOn(_)
        | Effect::Publish(_)
        | Effect::AbandonPublish { .. }
        | Effect::Finished { .. } => None,
    }
}

fn outcome_of(effect: &Effect) -> Option<Result<BuildId, Refusal>> {
    match effect {
        Effect::Accepted { build } => Some(Ok(*build)),
        Effect::Refused { refusal, .. } => Some(Err(Refusal::clone(refusal))),
        Effect::PutBuild(_)
        | Effect::PutTask(_)
        | Effect::PutWorker(_)
        | Effect::DeleteWorker(_)
        | Effect::Dispatch(_)
        | Effect::PassOn(_)
        | Effect::CancelAttempt { .. }
        | Effect::AcknowledgeReport { .. }
        | Effect::Adopted { .. }
        | Effect::CloseSession { .. }
        | Effect::Publish(_)
        | Effect::AbandonPublish { .. }
        | Effect::Finished { .. } => None,
    }
}

const fn build_of(event: &Event) -> Option<BuildId> {
    match event {
        Event::Submit { build, .. }
        | Event::Cancel { build, .. }
        | Event::Retry { build, .. }
        | Event::Backfill { build, .. }
        | Event::PublishSucceeded { build, .. }
        | Event::PublishFailed { build, .. }
        | Event::LegsMissing { build, .. } => Some(*build),
        Event::Restore { .. }
        | Event::Recall { .. }
        | Event::WorkerEnrolled { .. }
        | Event::WorkerConnected { .. }
        | Event::WorkerHeartbeat { .. }
        | Event::WorkerDisconnected { .. }
        | Event::WorkerLeaving { .. }
        | Event::WorkerUpdated { .. }
        | Event::WorkerRemoved { .. }
        | Event::AttemptReported { .. } => None,
    }
}

/// The worker whose listing an event may change.
const fn worker_of(event: &Event) -> Option<WorkerId> {
    match event {
        Event::WorkerConnected { worker, .. }
        | Event::WorkerHeartbeat { worker, .. }
        | Event::WorkerDisconnected { worker }
        | Event::WorkerLeaving { worker, .. }
        | Event::WorkerUpdated { worker, .. }
        | Event::WorkerRemoved { worker }
        | Event::AttemptReported { worker, .. } => Some(*worker),
        Event::Restore { .. }
        | Event::Submit { .. }
        | Event::Cancel { .. }
        | Event::Recall { .. }
        | Event::Retry { .. }
        | Event::Backfill { .. }
        | Event::WorkerEnrolled { .. }
        | Event::PublishSucceeded { .. }
        | Event::PublishFailed { .. }
        | Event::LegsMissing { .. } => None,
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
