//! One turn after the other: events in, one transaction, effects out.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kiln_common::{BuildId, WorkerId, limits};
use kiln_scheduler::{Effect, Event, Scheduler, effect::Refusal};
use tokio::sync::{mpsc, oneshot};
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
};
use crate::{
    audit::{Object, Trail},
    secrets::SecretStore,
    store::{Store, StoreError, Txn, keys, records, records::BuildView},
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
    publishing: Publishing,
    hub: Hub,
    speakers: Speakers,
    queue: mpsc::Receiver<Command>,
    clock: Clock,
}

type Answer = (oneshot::Sender<Result<Accepted, Refusal>>, Result<BuildId, Refusal>);

/// What one turn collects before its commit.
#[derive(Default)]
struct Turn {
    txn: Txn,
    /// Each with the session that its worker had when it was decided: what was meant for one never reaches a later one.
    effects: Vec<(Effect, Option<SessionId>)>,
    answers: Vec<Answer>,
    done: Vec<oneshot::Sender<()>>,
    /// What is to be done on the committed state.
    after: Vec<Command>,
    touched: HashSet<WorkerId>,
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
        let mut driver = Self {
            scheduler: parts.scheduler,
            publishing: Publishing::new(parts.publisher, parts.secrets, handle, parts.trail.clone()),
            trail: parts.trail,
            store: parts.store,
            outbox: parts.outbox,
            ledger: parts.ledger,
            hub: Hub::default(),
            speakers: Speakers::default(),
            queue: queue.0,
            clock: Clock::new(),
        };
        let mut turn = Turn::default();
        driver.handle(event, &mut turn);
        driver.finish(turn).await.map_err(StopCause::Commit)?;
        Ok(driver)
    }

    /// Until `stop`.
    ///
    /// # Errors
    /// [`StopCause`]: nothing that was not committed was told to anyone.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StopCause> {
        loop {
            let wait = self.scheduler.poll_deadline().map(|deadline| deadline.since(self.clock.read()));
            let command = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                command = self.queue.recv() => match command {
                    Some(command) => Some(command),
                    None => break,
                },
                () = sleep(wait) => None,
            };
            self.turn(command).await.map_err(StopCause::Commit)?;
        }
        info!("driver stopped");
        Ok(())
    }

    async fn turn(&mut self, first: Option<Command>) -> Result<(), StoreError> {
        let now = self.clock.read();
        let mut turn = Turn::default();
        let mut next = first;
        for taken in 1.. {
            let Some(command) = next else { break };
            self.take(command, &mut turn)?;
            next = if taken < limits::DRIVER_BATCH { self.queue.try_recv().ok() } else { None };
        }
        if self.scheduler.poll_deadline().is_some_and(|deadline| deadline <= now) {
            let effects = self.scheduler.handle_deadline(now);
            self.collect(effects, &mut turn);
        }
        self.finish(turn).await
    }

    fn handle(&mut self, event: Event, turn: &mut Turn) {
        let effects = self.scheduler.handle(event, self.clock.last());
        self.collect(effects, turn);
    }

    fn collect(&self, effects: Vec<Effect>, turn: &mut Turn) {
        let session = |effect: &Effect| addressee(effect).and_then(|worker| self.speakers.current(worker));
        turn.effects.extend(effects.into_iter().map(|effect| {
            let session = session(&effect);
            (effect, session)
        }));
    }

    fn take(&mut self, command: Command, turn: &mut Turn) -> Result<(), StoreError> {
        match command {
            Command::Event { event, done } => {
                turn.touched.extend(worker_of(&event));
                turn.done.extend(done);
                self.handle(*event, turn);
            }
            Command::Heard { session, event } => {
                turn.touched.insert(session.worker);
                for event in self.speakers.hear(session, *event) {
                    self.handle(event, turn);
                }
            }
            Command::Request(request) => self.take_request(request, turn)?,
            after @ (Command::Query(_) | Command::WatchBuild { .. } | Command::WatchWorkers { .. }) => {
                turn.after.push(after);
            }
        }
        Ok(())
    }

    fn take_request(&mut self, request: Request, turn: &mut Turn) -> Result<(), StoreError> {
        let Request { events, sealed, act: (who, action), answer } = request;
        let own = events.last().and_then(build_of);
        let start = turn.effects.len();
        for event in events {
            self.handle(event, turn);
        }
        let outcome = turn.effects[start..].iter().find_map(|(effect, _)| outcome_of(effect));
        if let (Some(Ok(build)), Some(sealed)) = (&outcome, sealed)
            && own == Some(*build)
        {
            // Before the records: an end in the same turn deletes it again.
            turn.txn.put(keys::secrets(*build), sealed);
        }
        if let Some(Ok(build)) = outcome {
            let detail = if own == Some(build) { "" } else { "sent again" };
            self.trail.stage(&mut turn.txn, who.did(action, Object::Build(build), detail))?;
        }
        match outcome {
            Some(outcome) => turn.answers.push((answer, outcome)),
            None => warn!(build = ?own, "the scheduler gave no answer to a request"),
        }
        Ok(())
    }

    async fn finish(&mut self, mut turn: Turn) -> Result<(), StoreError> {
        // Before the commit forgets the secrets of the build that ends, and before its worker might ask for a chunk in vain.
        for (effect, _) in &turn.effects {
            if let Effect::PassOn(pass_on) = effect {
                self.ledger.passed_on(pass_on);
            }
        }
        stage(&mut turn.txn, &turn.effects)?;
        if !turn.txn.is_empty() {
            let writes = turn.txn.writes.len();
            let revision = self.store.commit(std::mem::take(&mut turn.txn)).await?;
            debug!(revision, writes, "turn committed");
        }
        for (effect, session) in std::mem::take(&mut turn.effects) {
            self.act(effect, session);
        }
        for (answer, outcome) in turn.answers {
            // A caller that went away asks again with its request id.
            drop(answer.send(outcome.map(|build| self.accepted(build))));
        }
        for done in turn.done {
            // Whoever does not wait any more needs no answer.
            let _ = done.send(());
        }
        turn.touched.into_iter().for_each(|worker| self.hub.worker_changed(worker));
        self.hub.flush();
        for command in turn.after {
            self.serve(command).await;
        }
        Ok(())
    }

    /// Acts on an effect whose turn is committed; `session` is the one to tell of it.
    fn act(&mut self, effect: Effect, session: Option<SessionId>) {
        match effect {
            Effect::PutBuild(build) => self.hub.build_changed(&build),
            Effect::PutTask(task) => {
                self.ledger.committed(&task);
                self.hub.task_changed(&task);
            }
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
                self.ledger.dispatched(&dispatch);
                self.hub.worker_changed(worker);
                self.send(session, Order::Assign(dispatch));
            }
            Effect::PassOn(pass_on) => {
                info!(build = %pass_on.build, attempt = %pass_on.attempt, worker = %pass_on.worker, "attempt passed on");
                self.ledger.passed_on(&pass_on);
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
            Effect::Finished { build } => info!(%build, "build finished"),
        }
    }

    fn accepted(&self, build: BuildId) -> Accepted {
        let record = self.scheduler.build(build).cloned();
        let tasks = || self.scheduler.tasks_of(build).cloned().collect();
        Accepted { build, snapshot: record.map(|build| BuildView { build, tasks: tasks() }) }
    }

    /// A worker without a session hears of what it missed when it returns.
    fn send(&self, session: Option<SessionId>, order: Order) {
        if let Some(session) = session {
            self.outbox.send(session, order);
        }
    }

    /// Serves what reads the committed state.
    async fn serve(&mut self, command: Command) {
        match command {
            Command::Query(ask) => ask(&self.scheduler, self.clock.last()),
            Command::WatchBuild { build, answer } => drop(answer.send(self.watch(build).await)),
            Command::WatchWorkers { answer } => drop(answer.send(self.hub.watch_workers())),
            Command::Event { .. } | Command::Heard { .. } | Command::Request(_) => {}
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

/// Puts the effects' records, indexes and deletions into the transaction.
fn stage(txn: &mut Txn, effects: &[(Effect, Option<SessionId>)]) -> Result<(), StoreError> {
    for (effect, _) in effects {
        match effect {
            Effect::PutBuild(build) => records::put_build(txn, build)?,
            Effect::PutTask(task) => records::put_task(txn, task)?,
            Effect::PutWorker(worker) => records::put_worker(txn, worker)?,
            Effect::DeleteWorker(worker) => drop(txn.delete(keys::worker(*worker))),
            Effect::Finished { build } => drop(txn.delete(keys::secrets(*build))),
            Effect::Dispatch(dispatch) => records::put_attempt(txn, &records::Attempt::from(&**dispatch))?,
            Effect::PassOn(pass_on) => records::put_attempt(txn, &records::Attempt::from(&**pass_on))?,
            Effect::Accepted { .. }
            | Effect::Refused { .. }
            | Effect::CancelAttempt { .. }
            | Effect::AcknowledgeReport { .. }
            | Effect::Adopted { .. }
            | Effect::CloseSession { .. }
            | Effect::Publish(_)
            | Effect::AbandonPublish { .. } => {}
        }
    }
    Ok(())
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
        | Event::PublishFailed { build, .. } => Some(*build),
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
        | Event::PublishFailed { .. } => None,
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
