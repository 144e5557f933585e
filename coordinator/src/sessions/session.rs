//! One worker's session from its Hello to its end: orders one way, registration, heartbeats and reports the other.
//!
//! Started by [`super::service`]. Invariants: what the worker says here counts only while this is its latest session, and
//! orders that were meant for an earlier one never come here; [`SessionId`] tells them apart.
//!
//! A session's future has room, for as long as it lives, for whatever it may ever wait for. What it waits for only now and
//! then is boxed meanwhile, so that ten thousand idle sessions are small.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_common::{AttemptId, Reason, WorkerId, limits};
use kiln_proto::{Protocols, SESSION_PROTOCOLS, convert, status::Refused, v1};
use kiln_scheduler::{Event, effect::Dispatch, event::AttemptOutcome};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tracing::{error, info, warn};
use v1::{coordinator_message::Message as Down, worker_message::Message as Up};

use super::{
    decode,
    owner::owner,
    pace::Pace,
    registry::{Place, Sessions},
};
use crate::{
    audit::{Action, Object, Trail, Who},
    credentials::BuildSecrets,
    driver::{Handle, Ledger, Order, SessionId},
    secrets::{SecretError, SecretStore},
};

/// What every session needs.
#[derive(Clone)]
pub(super) struct Farm {
    pub(super) driver: Handle,
    pub(super) sessions: Arc<Sessions>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) secrets: SecretStore,
    /// Registries that speak plain HTTP.
    pub(super) insecure_registries: Arc<Vec<String>>,
    pub(super) heartbeat_interval: Duration,
    pub(super) trail: Trail,
    pub(super) stop: CancellationToken,
}

/// A channel keeps room for 32 items from its start, and an assignment takes a thousand bytes and more: boxed, ten thousand
/// idle sessions cost a few kB each.
pub(super) type Outgoing = mpsc::Sender<Box<Result<v1::CoordinatorMessage, Status>>>;

/// Runs the session to its end and tells the driver of it.
pub(super) async fn run(
    farm: Farm,
    worker: WorkerId,
    who: Who,
    mut incoming: Streaming<v1::WorkerMessage>,
    outgoing: Outgoing,
) {
    let trail = farm.trail.clone();
    let refused = match Box::pin(greet(&mut incoming)).await {
        Ok((hello, protocol)) => {
            let place = farm.sessions.enter(worker);
            info!(%worker, protocol, replaced = place.replaced, "session opened");
            let session = Session { farm, id: place.session, who: who.clone(), protocol };
            session.serve(hello, place, incoming, &outgoing).await
        }
        Err(refused) => refused,
    };
    if is_misbehaviour(refused.reason) {
        trail.refuse(who.was_refused(Action::WorkerSession, Object::Worker(worker), refused.message.as_str()));
    } else {
        info!(%worker, reason = %refused, "session ended");
    }
    // The worker may be gone already.
    let _ = outgoing.try_send(Box::new(Err(refused.into())));
}

/// Whether a session ended by the worker's own doing, and not because a connection or a program ended.
fn is_misbehaviour(reason: Reason) -> bool {
    reason != Reason::Unavailable
}

/// The first message, which says what the worker is, and the version of the protocol to speak with it.
async fn greet(incoming: &mut Streaming<v1::WorkerMessage>) -> Result<(v1::Hello, u32), Refused> {
    let first = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, incoming.message()).await;
    let first = first.map_err(|_| wrong("no Hello came in time"))?;
    let first = first.map_err(|status| broken(&status))?.and_then(|message| message.message);
    let Some(Up::Hello(hello)) = first else { return Err(wrong("the first message must be a Hello")) };
    let spoken = Protocols::of_worker(&hello);
    let agreed = SESSION_PROTOCOLS.agree(spoken).map_err(|outdated| {
        let problem = format!(
            "the worker speaks {spoken} of the session protocol, this coordinator (Kiln {}) {SESSION_PROTOCOLS}; {outdated}",
            env!("CARGO_PKG_VERSION")
        );
        Refused::new(Reason::WrongState, problem)
    })?;
    Ok((hello, agreed))
}

fn wrong(problem: &str) -> Refused {
    Refused::new(Reason::InvalidArgument, problem)
}

struct Session {
    farm: Farm,
    id: SessionId,
    who: Who,
    protocol: u32,
}

impl Session {
    async fn serve(
        &self,
        hello: v1::Hello,
        mut place: Place,
        incoming: Streaming<v1::WorkerMessage>,
        outgoing: &Outgoing,
    ) -> Refused {
        let end = Arc::clone(&place.end);
        let reason = tokio::select! {
            biased;
            () = end.token.cancelled() => Refused::new(Reason::Unavailable, end.reason()),
            () = self.farm.stop.cancelled() => Refused::new(Reason::Unavailable, "the farm is stopping; connect again"),
            refused = self.listen(hello, incoming) => refused,
            refused = self.speak(&mut place.orders, outgoing) => refused,
        };
        self.farm.sessions.leave(self.id);
        // A driver that stopped forgets every session by itself.
        let _ = self.farm.driver.hear(self.id, Event::WorkerDisconnected { worker: self.id.worker }).await;
        reason
    }

    /// Everything that the worker says, until it says no more.
    async fn listen(&self, hello: v1::Hello, mut incoming: Streaming<v1::WorkerMessage>) -> Refused {
        let mut pace = Pace::new(limits::SESSION_MESSAGES_PER_SECOND, Instant::now());
        let mut beats = Pace::new(limits::HEARTBEATS_PER_SECOND, Instant::now());
        let mut next: Result<_, Status> = Ok(Some(v1::WorkerMessage { message: Some(Up::Hello(hello)) }));
        loop {
            match next {
                Ok(Some(message)) => {
                    let (now, is_beat) = (Instant::now(), matches!(message.message, Some(Up::Heartbeat(_))));
                    if !pace.allows(now) || is_beat && !beats.allows(now) {
                        let what = if is_beat { "heartbeats" } else { "messages" };
                        let problem = format!("the session sends more {what} than it may; connect again");
                        return Refused::new(Reason::Overloaded, problem);
                    }
                    if let Err(refused) = Box::pin(self.take(message)).await {
                        return refused;
                    }
                }
                Ok(None) => return Refused::new(Reason::Unavailable, "the worker closed the session"),
                Err(status) => return broken(&status),
            }
            next = incoming.message().await;
        }
    }

    async fn take(&self, message: v1::WorkerMessage) -> Result<(), Refused> {
        let worker = self.id.worker;
        let event = match message.message {
            Some(Up::Hello(hello)) => {
                let (facts, attempts) = decode::facts(hello).map_err(|problem| wrong(&problem))?;
                self.check_announced(&attempts);
                Event::WorkerConnected { worker, facts: Box::new(facts), attempts }
            }
            Some(Up::Heartbeat(beat)) => {
                Event::WorkerHeartbeat { worker, stats: decode::stats(beat.stats.unwrap_or_default()) }
            }
            Some(Up::Report(report)) => match decode::report(report) {
                Ok((attempt, outcome)) => self.reported(attempt, outcome).await,
                Err(problem) => {
                    self.refuse_report(Object::Worker(worker), problem);
                    return Ok(());
                }
            },
            Some(Up::Leaving(leaving)) => {
                info!(%worker, reason = leaving.reason, "worker leaves");
                Event::WorkerLeaving { worker, reason: leaving.reason.chars().take(limits::KEY_BYTES).collect() }
            }
            // A newer worker says something that this version does not know.
            None => return Ok(()),
        };
        self.post(event).await
    }

    /// The scheduler does not adopt what is another worker's; the trail keeps that it was claimed.
    fn check_announced(&self, attempts: &[AttemptId]) {
        for attempt in attempts {
            let owner = self.farm.ledger.get(*attempt).map(|live| live.worker);
            if owner.is_some_and(|owner| owner != self.id.worker) {
                self.refuse_report(Object::Attempt(*attempt), "it announces an attempt that is another worker's");
            }
        }
    }

    /// The scheduler ignores what is not the worker's; the trail keeps that it was said.
    async fn reported(&self, attempt: AttemptId, outcome: Result<AttemptOutcome, String>) -> Event {
        let worker = self.id.worker;
        match owner(&self.farm.ledger, &self.farm.driver, attempt).await {
            Ok(Some(owner)) if owner == worker => info!(%worker, %attempt, ?outcome, "attempt reported"),
            Ok(Some(_)) => {
                self.refuse_report(Object::Attempt(attempt), "it reports on an attempt that is another worker's");
            }
            Ok(None) => self.refuse_report(Object::Attempt(attempt), "it reports on an attempt that was never made"),
            Err(error) => warn!(%worker, %attempt, %error, "cannot tell whose attempt a report is on"),
        }
        // A worker that cannot say how its attempt ended has failed at it.
        let outcome = outcome.unwrap_or_else(|problem| {
            self.refuse_report(Object::Attempt(attempt), problem.as_str());
            AttemptOutcome::InfrastructureFailed { message: format!("the worker's report does not read: {problem}") }
        });
        Event::AttemptReported { worker, attempt, outcome }
    }

    fn refuse_report(&self, object: Object, why: impl Into<String>) {
        self.farm.trail.refuse(self.who.was_refused(Action::WorkerReport, object, why));
    }

    async fn post(&self, event: Event) -> Result<(), Refused> {
        self.farm.driver.hear(self.id, event).await.map_err(|_| stopping())
    }

    /// Every order for the worker, from the answer to its registration on.
    async fn speak(&self, orders: &mut mpsc::Receiver<Order>, outgoing: &Outgoing) -> Refused {
        let (mut welcomed, mut slots) = (false, 0);
        while let Some(order) = orders.recv().await {
            let message = match order {
                Order::Adopted { attempts } if !welcomed => {
                    welcomed = true;
                    if self.send(Down::Welcome(self.welcome(&attempts)), outgoing).await.is_err() {
                        return closed();
                    }
                    slots = Box::pin(self.operator_slots()).await;
                    (slots != 0).then_some(Down::Settings(v1::Settings { slots }))
                }
                Order::Settings { slots: set } if welcomed && set != slots => {
                    slots = set;
                    Some(Down::Settings(v1::Settings { slots }))
                }
                Order::Adopted { .. } | Order::Settings { .. } => None,
                Order::Assign(dispatch) if welcomed => Box::pin(self.assignment(*dispatch)).await.map(Down::Assignment),
                Order::Cancel { attempt, reason } if welcomed => {
                    Some(Down::Cancel(v1::CancelAttempt { attempt_id: attempt.to_string(), reason }))
                }
                Order::Acknowledge { attempt } if welcomed => {
                    Some(Down::Ack(v1::ReportAck { attempt_id: attempt.to_string() }))
                }
                Order::Assign(_) | Order::Cancel { .. } | Order::Acknowledge { .. } | Order::Close { .. } => None,
            };
            let Some(message) = message else { continue };
            if self.send(message, outgoing).await.is_err() {
                return closed();
            }
        }
        stopping()
    }

    fn send(&self, message: Down, outgoing: &Outgoing) -> impl Future<Output = Result<(), ()>> {
        let message = Box::new(Ok(v1::CoordinatorMessage { message: Some(message) }));
        async move { outgoing.send(message).await.map_err(|_| ()) }
    }

    /// What an operator set; 0: nothing.
    async fn operator_slots(&self) -> u32 {
        let worker = self.id.worker;
        let set =
            self.farm.driver.query(move |scheduler, _| scheduler.worker(worker).and_then(|view| view.record.slots));
        set.await.ok().flatten().unwrap_or(0)
    }

    fn welcome(&self, adopted: &[AttemptId]) -> v1::Welcome {
        v1::Welcome {
            protocol: self.protocol,
            heartbeat_interval: Some(convert::duration_to_wire(self.farm.heartbeat_interval)),
            adopted_attempt_ids: adopted.iter().map(ToString::to_string).collect(),
            kiln_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Another build may have inherited the attempt by now. It has the same credentials, and is in the ledger before those of
    /// the first build are forgotten.
    async fn secrets_for(&self, dispatch: &Dispatch) -> Result<BuildSecrets, SecretError> {
        let secrets = self.farm.secrets.open(dispatch.build).await?;
        match self.farm.ledger.get(dispatch.attempt) {
            Some(heir) if secrets.is_empty() && heir.build != dispatch.build => {
                self.farm.secrets.open(heir.build).await
            }
            Some(_) | None => Ok(secrets),
        }
    }

    /// `None` when the build's secrets do not open: the attempt then failed for the farm's reasons.
    async fn assignment(&self, dispatch: Dispatch) -> Option<v1::Assignment> {
        let secrets = match self.secrets_for(&dispatch).await {
            Ok(secrets) => secrets,
            Err(error) => {
                error!(build = %dispatch.build, attempt = %dispatch.attempt, %error, "secrets do not open");
                let message = format!("the build's secrets: {error}");
                let outcome = AttemptOutcome::InfrastructureFailed { message };
                let event = Event::AttemptReported { worker: dispatch.worker, attempt: dispatch.attempt, outcome };
                // A driver that stopped recovers the attempt as live.
                let _ = self.post(event).await;
                return None;
            }
        };
        Some(v1::Assignment {
            attempt_id: dispatch.attempt.to_string(),
            task_id: dispatch.task.to_string(),
            build_id: dispatch.build.to_string(),
            platform: dispatch.platform.to_string(),
            grade: convert::grade_to_wire(dispatch.grade).into(),
            spec: Some(convert::spec::encode(&dispatch.spec)),
            secrets: secrets.secrets.iter().map(|(id, value)| (id.clone(), value.to_vec())).collect(),
            credentials: secrets.credentials.iter().map(|credential| credential.to_wire()).collect(),
            insecure_registries: self.farm.insecure_registries.to_vec(),
            timeout: Some(convert::duration_to_wire(dispatch.time_left)),
            builder_id: builder_id(&dispatch),
        })
    }
}

/// Who built a leg and how, as a URI (SLSA: `builder.id`). Names of workers may hold anything.
fn builder_id(dispatch: &Dispatch) -> String {
    let name = percent_encoding::utf8_percent_encode(&dispatch.worker_name, percent_encoding::NON_ALPHANUMERIC);
    format!(
        "kiln:build/{}/attempt/{}?worker={name}&worker-id={}&grade={}",
        dispatch.build, dispatch.attempt, dispatch.worker, dispatch.grade
    )
}

/// How a stream broke: what cannot be read is the worker's doing, the rest is the network's.
fn broken(status: &Status) -> Refused {
    let is_unreadable = matches!(status.code(), Code::OutOfRange | Code::Internal | Code::InvalidArgument);
    let reason = if is_unreadable { Reason::InvalidArgument } else { Reason::Unavailable };
    Refused::new(reason, format!("the connection broke: {}", status.message()))
}

fn closed() -> Refused {
    Refused::new(Reason::Unavailable, "the connection broke")
}

fn stopping() -> Refused {
    Refused::new(Reason::Unavailable, "the farm is stopping; connect again")
}
