//! Relays ssh agent connections: from a worker's RUN step to the client that submitted the build, and back.
//!
//! `BuildService.ForwardAgent` registers a client for a build, `WorkerService.ForwardAgent` opens one connection to it.
//! Invariant: a worker reaches only the agents of a build whose attempt it has, and only ids that the build asked for.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{Stream, StreamExt};
use kiln_common::{BuildId, Reason, limits};
use kiln_proto::{status::Refused, v1::AgentFrame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Frames that wait in one direction of one connection.
const QUEUE: usize = 64;

pub type Frames = Pin<Box<dyn Stream<Item = Result<AgentFrame, Status>> + Send>>;
type Sender = mpsc::Sender<Result<AgentFrame, Status>>;

/// All forwarded agents of this coordinator. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct AgentRelay {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    numbered: u64,
    clients: HashMap<BuildId, Client>,
    /// To the worker's end of each connection.
    connections: HashMap<u64, Connection>,
}

#[derive(Debug)]
struct Client {
    number: u64,
    sender: Sender,
}

#[derive(Debug)]
struct Connection {
    build: BuildId,
    sender: Sender,
}

impl AgentRelay {
    /// A client offers its agents for a build, until its call ends. A later client of the same build takes its place.
    ///
    /// # Errors
    /// When the first frame, which names the build, is malformed or does not come.
    pub async fn serve_client(&self, mut incoming: Streaming<AgentFrame>) -> Result<Frames, Status> {
        let wrong = |problem: String| Refused::new(Reason::InvalidArgument, problem);
        let first = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, incoming.message()).await;
        let first = first.ok().transpose()?.flatten();
        let first = first.ok_or_else(|| wrong("no first frame, which names the build, came in time".to_owned()))?;
        let build = first.id.parse::<BuildId>().map_err(|error| wrong(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let number = {
            let mut shared = self.shared();
            shared.numbered += 1;
            let number = shared.numbered;
            shared.clients.insert(build, Client { number, sender });
            number
        };
        let relay = self.clone();
        tokio::spawn(async move {
            relay.take_from_client(build, incoming).await;
            relay.client_left(build, number);
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }

    async fn take_from_client(&self, build: BuildId, mut incoming: Streaming<AgentFrame>) {
        while let Ok(Some(frame)) = incoming.message().await {
            let number = frame.connection;
            let (close, sender) = {
                let mut shared = self.shared();
                let own = shared.connections.get(&number).filter(|connection| connection.build == build);
                let Some(sender) = own.map(|connection| connection.sender.clone()) else { continue };
                if frame.close {
                    shared.connections.remove(&number);
                }
                (frame.close, sender)
            };
            let sent = sender.send(Ok(AgentFrame { connection: 0, ..frame })).await;
            if sent.is_err() && !close {
                self.shared().connections.remove(&number);
            }
        }
    }

    fn client_left(&self, build: BuildId, number: u64) {
        let mut shared = self.shared();
        if shared.clients.get(&build).is_some_and(|client| client.number == number) {
            shared.clients.remove(&build);
            shared.connections.retain(|_, connection| connection.build != build);
        }
    }

    /// One connection of a worker's RUN step; `first` is the call's first frame, already checked to be the worker's.
    ///
    /// # Errors
    /// [`Refused`] when no client forwards agents for the build now.
    pub(super) fn worker(
        &self,
        build: BuildId,
        first: AgentFrame,
        incoming: Streaming<AgentFrame>,
    ) -> Result<Frames, Refused> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (number, client) = {
            let mut shared = self.shared();
            let Some(client) = shared.clients.get(&build).map(|client| client.sender.clone()) else {
                let problem = format!("no client forwards its ssh agent for build {build}; keep `kiln build` running");
                return Err(Refused::new(Reason::NotFound, problem));
            };
            shared.numbered += 1;
            let number = shared.numbered;
            shared.connections.insert(number, Connection { build, sender });
            (number, client)
        };
        let relay = self.clone();
        tokio::spawn(async move {
            let close = AgentFrame { connection: number, close: true, ..Default::default() };
            relay.take_from_worker(number, first, incoming, &client).await;
            if relay.shared().connections.remove(&number).is_some() {
                // A client that is gone needs no farewell.
                let _ = client.send(Ok(close)).await;
            }
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }

    async fn take_from_worker(
        &self,
        number: u64,
        first: AgentFrame,
        mut incoming: Streaming<AgentFrame>,
        client: &Sender,
    ) {
        let mut next = Ok(Some(AgentFrame { id: String::new(), ..first }));
        while let Ok(Some(frame)) = next {
            let close = frame.close || frame.data.len() > limits::AGENT_FRAME_BYTES;
            let is_open = self.shared().connections.contains_key(&number);
            if close || !is_open || client.send(Ok(AgentFrame { connection: number, ..frame })).await.is_err() {
                return;
            }
            next = incoming.message().await;
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
