//! One worker's session from its Hello to its end: orders one way, registration, heartbeats and reports the other.
//!
//! Started by [`super::service`]. Invariant: orders that were meant for an earlier session never reach this one, because
//! everything before the answer to its own registration is dropped.

use std::{sync::Arc, time::Instant};

use kiln_common::{AttemptId, Reason, Timestamp, WorkerId, limits};
use kiln_proto::{SESSION_PROTOCOL, convert, status::Refused, v1};
use kiln_scheduler::{Event, effect::Dispatch, event::AttemptOutcome};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{error, info, warn};
use v1::{coordinator_message::Message as Down, worker_message::Message as Up};

use super::{
    decode,
    pace::Pace,
    registry::{Place, Sessions},
};
use crate::{
    driver::{Handle, Ledger, Order},
    secrets::SecretStore,
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
    pub(super) stop: CancellationToken,
}

pub(super) type Outgoing = mpsc::Sender<Result<v1::CoordinatorMessage, Status>>;

/// Runs the session to its end and tells the driver of it.
pub(super) async fn run(farm: Farm, worker: WorkerId, mut incoming: Streaming<v1::WorkerMessage>, outgoing: Outgoing) {
    let hello = match greet(&mut incoming).await {
        Ok(hello) => hello,
        Err(refused) => {
            warn!(%worker, reason = %refused, "session refused");
            // The worker may be gone already.
            let _ = outgoing.send(Err(refused.into())).await;
            return;
        }
    };
    let protocol = hello.protocol.min(SESSION_PROTOCOL);
    let session = Session { farm, worker, protocol };
    let refused = match session.enter().await {
        Ok(place) => session.serve(hello, place, incoming, &outgoing).await,
        Err(refused) => refused,
    };
    info!(%worker, reason = %refused, "session ended");
    let _ = outgoing.try_send(Err(refused.into()));
}

/// The first message, which says what the worker is.
async fn greet(incoming: &mut Streaming<v1::WorkerMessage>) -> Result<v1::Hello, Refused> {
    let first = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, incoming.message()).await;
    let first = first.map_err(|_| wrong("no Hello came in time"))?;
    let first = first.map_err(|status| wrong(status.message()))?.and_then(|message| message.message);
    let Some(Up::Hello(hello)) = first else { return Err(wrong("the first message must be a Hello")) };
    if hello.protocol == 0 || hello.protocol + 1 < SESSION_PROTOCOL {
        let problem = format!(
            "the worker speaks version {} of the session protocol, this coordinator {SESSION_PROTOCOL}; upgrade the worker",
            hello.protocol
        );
        return Err(Refused::new(Reason::WrongState, problem));
    }
    Ok(hello)
}

fn wrong(problem: &str) -> Refused {
    Refused::new(Reason::InvalidArgument, problem)
}

struct Session {
    farm: Farm,
    worker: WorkerId,
    protocol: u32,
}

impl Session {
    /// The worker's attempts are safe with the driver whether it saw the earlier session end or not.
    async fn enter(&self) -> Result<Place, Refused> {
        let _in_order = self.farm.sessions.doorway.lock().await;
        let place = self.farm.sessions.enter(self.worker);
        info!(worker = %self.worker, protocol = self.protocol, replaced = place.replaced, "session opened");
        if place.replaced {
            self.post(Event::WorkerDisconnected { worker: self.worker }).await?;
        }
        Ok(place)
    }

    async fn leave(&self, place: &Place) {
        let _in_order = self.farm.sessions.doorway.lock().await;
        if self.farm.sessions.leave(place) {
            // A driver that stopped forgets every session by itself.
            let _ = self.farm.driver.post(Event::WorkerDisconnected { worker: self.worker }).await;
        }
    }

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
        self.leave(&place).await;
        reason
    }

    /// Everything that the worker says, until it says no more.
    async fn listen(&self, hello: v1::Hello, mut incoming: Streaming<v1::WorkerMessage>) -> Refused {
        let mut pace = Pace::new(Instant::now());
        let mut next: Result<_, Status> = Ok(Some(v1::WorkerMessage { message: Some(Up::Hello(hello)) }));
        loop {
            match next {
                Ok(Some(message)) if pace.allows(Instant::now()) => match self.take(message).await {
                    Ok(()) => {}
                    Err(refused) => return refused,
                },
                Ok(Some(_)) => {
                    warn!(worker = %self.worker, most = limits::SESSION_MESSAGES_PER_SECOND, "worker floods its session");
                    return Refused::new(
                        Reason::Overloaded,
                        "the session sends more messages than it may; connect again",
                    );
                }
                Ok(None) => return Refused::new(Reason::Unavailable, "the worker closed the session"),
                Err(status) => {
                    return Refused::new(Reason::Unavailable, format!("the connection broke: {}", status.message()));
                }
            }
            next = incoming.message().await;
        }
    }

    async fn take(&self, message: v1::WorkerMessage) -> Result<(), Refused> {
        let worker = self.worker;
        let event = match message.message {
            Some(Up::Hello(hello)) => {
                let (facts, attempts) = decode::facts(hello).map_err(|problem| wrong(&problem))?;
                Event::WorkerConnected { worker, facts: Box::new(facts), attempts }
            }
            Some(Up::Heartbeat(beat)) => {
                Event::WorkerHeartbeat { worker, stats: decode::stats(beat.stats.unwrap_or_default()) }
            }
            Some(Up::Report(report)) => match decode::report(report) {
                Ok((attempt, outcome)) => self.reported(attempt, outcome),
                Err(problem) => {
                    warn!(%worker, problem, "report refused");
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

    /// The scheduler ignores what is not the worker's; the log keeps that it was said.
    fn reported(&self, attempt: AttemptId, outcome: AttemptOutcome) -> Event {
        let worker = self.worker;
        match self.farm.ledger.get(attempt) {
            Some(live) if live.worker == worker => info!(%worker, %attempt, ?outcome, "attempt reported"),
            Some(live) => warn!(%worker, %attempt, owner = %live.worker, "report on another worker's attempt ignored"),
            None => info!(%worker, %attempt, ?outcome, "report on an attempt that is over ignored"),
        }
        Event::AttemptReported { worker, attempt, outcome }
    }

    async fn post(&self, event: Event) -> Result<(), Refused> {
        self.farm.driver.post(event).await.map_err(|_| stopping())
    }

    /// Every order for the worker, from the answer to its registration on.
    async fn speak(&self, orders: &mut mpsc::Receiver<Order>, outgoing: &Outgoing) -> Refused {
        let (mut welcomed, mut slots) = (false, 0);
        while let Some(order) = orders.recv().await {
            let message = match order {
                Order::Adopted { attempts } if !welcomed => {
                    welcomed = true;
                    if self.send(Down::Welcome(self.welcome(&attempts)), outgoing).await.is_err() {
                        return broken();
                    }
                    slots = self.operator_slots().await;
                    (slots != 0).then_some(Down::Settings(v1::Settings { slots }))
                }
                Order::Settings { slots: set } if welcomed && set != slots => {
                    slots = set;
                    Some(Down::Settings(v1::Settings { slots }))
                }
                Order::Adopted { .. } | Order::Settings { .. } => None,
                Order::Assign(dispatch) if welcomed => self.assignment(*dispatch).await.map(Down::Assignment),
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
                return broken();
            }
        }
        stopping()
    }

    async fn send(&self, message: Down, outgoing: &Outgoing) -> Result<(), ()> {
        outgoing.send(Ok(v1::CoordinatorMessage { message: Some(message) })).await.map_err(|_| ())
    }

    /// What an operator set; 0: nothing.
    async fn operator_slots(&self) -> u32 {
        let worker = self.worker;
        let set =
            self.farm.driver.query(move |scheduler, _| scheduler.worker(worker).and_then(|view| view.record.slots));
        set.await.ok().flatten().unwrap_or(0)
    }

    fn welcome(&self, adopted: &[AttemptId]) -> v1::Welcome {
        v1::Welcome {
            protocol: self.protocol,
            heartbeat_interval: Some(convert::duration_to_wire(limits::HEARTBEAT_INTERVAL)),
            adopted_attempt_ids: adopted.iter().map(ToString::to_string).collect(),
            kiln_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// `None` when the build's secrets do not open: the attempt then failed for the farm's reasons.
    async fn assignment(&self, dispatch: Dispatch) -> Option<v1::Assignment> {
        let secrets = match self.farm.secrets.open(dispatch.build).await {
            Ok(secrets) => secrets,
            Err(error) => {
                error!(build = %dispatch.build, attempt = %dispatch.attempt, %error, "secrets do not open");
                let message = format!("the build's secrets: {error}");
                let outcome = AttemptOutcome::InfrastructureFailed { message };
                let event = Event::AttemptReported { worker: self.worker, attempt: dispatch.attempt, outcome };
                let _ = self.farm.driver.post(event).await;
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
            timeout: Some(convert::duration_to_wire(dispatch.deadline.since(Timestamp::now()))),
        })
    }
}

fn broken() -> Refused {
    Refused::new(Reason::Unavailable, "the connection broke")
}

fn stopping() -> Refused {
    Refused::new(Reason::Unavailable, "the farm is stopping; connect again")
}
