//! One connection's session, from Hello to its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kiln_common::{AttemptId, limits, runtime::Dialer};
use kiln_proto::{
    Outdated, SESSION_PROTOCOLS,
    convert::duration_from_wire,
    v1::{
        AttemptReport, CoordinatorMessage, Heartbeat, Leaving, Welcome, WorkerMessage, attempt_report::Outcome,
        coordinator_message, worker_message::Message,
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{End, Session, Uplink, client};

/// Heartbeats never come faster or slower than this, whatever the coordinator asks for.
const HEARTBEATS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// One connection that the coordinator has answered on.
struct Live<'a> {
    session: &'a mut Session,
    outbound: mpsc::Sender<WorkerMessage>,
    inbound: Streaming<CoordinatorMessage>,
    /// What the last Hello announced.
    announced: BTreeSet<AttemptId>,
    /// What this connection has carried.
    reported: BTreeMap<AttemptId, Outcome>,
}

/// Runs one session. Says whether the coordinator had welcomed the worker, and how it ended.
pub(super) async fn serve(session: &mut Session, dialer: Dialer) -> (bool, End) {
    match timeout(limits::HANDSHAKE_TIMEOUT * 2, Live::open(session, &dialer)).await {
        Err(_) => (false, End::lost("the coordinator does not answer")),
        Ok(Err(end)) => (false, end),
        Ok(Ok((mut live, welcome))) => {
            live.session.uplink.send_replace(Some(Uplink::new(dialer)));
            let Err(end) = live.run(welcome).await;
            (true, end)
        }
    }
}

impl<'a> Live<'a> {
    async fn open(session: &'a mut Session, dialer: &Dialer) -> Result<(Self, Welcome), End> {
        let channel = dialer.connect().await.map_err(End::lost)?;
        let (outbound, requests) = mpsc::channel(limits::SESSION_QUEUE);
        let announced = session.slots.announce();
        let hello = session.registration.borrow_and_update().hello(&announced);
        outbound.try_send(message(Message::Hello(hello))).map_err(End::lost)?;
        let mut inbound = client(channel).session(ReceiverStream::new(requests)).await?.into_inner();
        let welcome = match inbound.message().await?.and_then(|answer| answer.message) {
            Some(coordinator_message::Message::Welcome(welcome)) => welcome,
            Some(_) | None => return Err(End::lost("the coordinator did not answer the registration")),
        };
        if !SESSION_PROTOCOLS.contains(welcome.protocol) {
            let outdated =
                if welcome.protocol > SESSION_PROTOCOLS.newest { Outdated::Worker } else { Outdated::Coordinator };
            return Err(End::lost(format!(
                "the coordinator (Kiln {}) wants to speak version {} of the session protocol, this worker speaks \
                 {SESSION_PROTOCOLS}; {outdated}",
                welcome.kiln_version, welcome.protocol
            )));
        }
        Ok((Self { session, outbound, inbound, announced, reported: BTreeMap::new() }, welcome))
    }

    async fn run(&mut self, welcome: Welcome) -> Result<std::convert::Infallible, End> {
        let every = welcome.heartbeat_interval.as_ref().and_then(duration_from_wire);
        let every = every.unwrap_or(limits::HEARTBEAT_INTERVAL).clamp(HEARTBEATS.0, HEARTBEATS.1);
        let mut heartbeat = interval_at(Instant::now() + every, every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = self.session.slots.watch();
        let leaving = self.session.leaving.clone();
        let mut told = false;
        tracing::info!(coordinator = welcome.kiln_version, "in session with the coordinator");
        self.welcomed(&welcome);
        self.report().await?;
        loop {
            tokio::select! {
                biased;
                received = self.inbound.message() => match received? {
                    Some(CoordinatorMessage { message: Some(message) }) => self.received(message),
                    Some(CoordinatorMessage { message: None }) => tracing::debug!("a message of a later version"),
                    None => return Err(End::lost("the coordinator closed the session")),
                },
                _ = changes.changed() => self.report().await?,
                changed = self.session.registration.changed(), if !told => match changed {
                    Ok(()) => self.hello().await?,
                    Err(_) => return Err(End::lost("the engine is not watched any more")),
                },
                () = leaving.cancelled(), if !told => {
                    told = true;
                    self.send(Message::Leaving(Leaving { reason: "the worker's program is ending".to_owned() })).await?;
                }
                _ = heartbeat.tick() => {
                    let stats = Some(self.session.builder.stats());
                    self.send(Message::Heartbeat(Heartbeat { stats })).await?;
                }
            }
        }
    }

    fn received(&mut self, message: coordinator_message::Message) {
        match message {
            coordinator_message::Message::Welcome(welcome) => self.welcomed(&welcome),
            coordinator_message::Message::Assignment(assignment) => self.session.jobs.start(assignment),
            coordinator_message::Message::Cancel(cancel) => {
                let stopped = attempt_id(&cancel.attempt_id)
                    .is_some_and(|attempt| self.session.slots.stop(attempt, &cancel.reason));
                tracing::info!(attempt_id = cancel.attempt_id, reason = cancel.reason, stopped, "cancelled");
            }
            coordinator_message::Message::Settings(settings) => {
                tracing::info!(slots = settings.slots, "an operator set this worker's slots");
                self.session.slots.resize((settings.slots > 0).then_some(settings.slots));
            }
            coordinator_message::Message::Ack(ack) => {
                if let Some(attempt) = attempt_id(&ack.attempt_id) {
                    self.session.slots.acknowledge(attempt);
                }
            }
        }
    }

    /// What was announced and is not adopted stops; what came since is not touched.
    fn welcomed(&self, welcome: &Welcome) {
        let adopted = welcome.adopted_attempt_ids.iter().filter_map(|text| attempt_id(text)).collect();
        for attempt_id in self.session.slots.keep_adopted(&self.announced, &adopted) {
            tracing::warn!(%attempt_id, "the farm gave the attempt up while this worker was away; it is stopped");
        }
    }

    async fn hello(&mut self) -> Result<(), End> {
        self.announced = self.session.slots.announce();
        let hello = self.session.registration.borrow_and_update().hello(&self.announced);
        self.send(Message::Hello(hello)).await
    }

    /// Sends what the coordinator has not heard on this connection.
    async fn report(&mut self) -> Result<(), End> {
        let reports = self.session.slots.reports();
        self.reported.retain(|attempt, _| reports.contains_key(attempt));
        for (attempt, outcome) in reports {
            if self.reported.get(&attempt) != Some(&outcome) {
                let report = AttemptReport { attempt_id: attempt.to_string(), outcome: Some(outcome.clone()) };
                self.send(Message::Report(report)).await?;
                self.reported.insert(attempt, outcome);
            }
        }
        Ok(())
    }

    /// A coordinator that does not drain the stream for as long as a handshake may take is as good as gone.
    async fn send(&self, content: Message) -> Result<(), End> {
        match timeout(limits::HANDSHAKE_TIMEOUT, self.outbound.send(message(content))).await {
            Ok(sent) => sent.map_err(|_| End::lost("the session's stream ended")),
            Err(_) => Err(End::lost("the coordinator does not read the session's stream")),
        }
    }
}

const fn message(content: Message) -> WorkerMessage {
    WorkerMessage { message: Some(content) }
}

fn attempt_id(text: &str) -> Option<AttemptId> {
    text.parse().inspect_err(|error| tracing::warn!(%error, "the coordinator named no attempt")).ok()
}
