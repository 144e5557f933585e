//! A coordinator that remembers what it was told. It runs on a runtime of its own, so that killing it cuts every
//! connection at once, as `kill -9` does; what it has acknowledged survives.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use kiln_common::{
    AttemptId, Reason,
    context::{ChunkId, ContextDigest, ManifestEncoder},
    runtime::JoinToken,
};
use kiln_proto::{
    SESSION_PROTOCOLS,
    status::Refused,
    v1::{
        AgentFrame, Assignment, AttemptReport, CancelAttempt, Chunk, CoordinatorMessage, EnrollRequest, EnrollResponse,
        FetchContextRequest, FetchContextResponse, Hello, LogAck, LogBatch, ProgressEntry, ReportAck, Settings,
        Welcome, WorkerMessage,
        attempt_report::Outcome,
        coordinator_message, worker_message,
        worker_service_server::{WorkerService, WorkerServiceServer},
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};

use super::{PATIENCE, pki::Pki};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the coordinator was told and how it behaves.
pub struct Seen {
    pub hellos: Vec<Hello>,
    pub reports: Vec<AttemptReport>,
    /// Durable entries by attempt; numbered without a gap by construction.
    pub logs: BTreeMap<String, Vec<ProgressEntry>>,
    /// Entries that came again and were skipped.
    pub duplicates: usize,
    pub heartbeats: usize,
    pub leaving: bool,
    pub enrolled: usize,
    pub agent_calls: Vec<(String, String)>,
    /// Whether it takes part in what it is asked.
    pub acknowledges_reports: bool,
    pub takes_logs: bool,
    pub adopts: bool,
    pub refuses_sessions: bool,
    pub leader_elsewhere: Option<String>,
    pub renew_after: Duration,
    /// What it answers a Hello with.
    pub protocol: u32,
    session: Option<mpsc::Sender<Result<CoordinatorMessage, Status>>>,
}

pub struct Coordinator {
    pki: Arc<Pki>,
    seen: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    pki: Arc<Pki>,
    seen: Mutex<Seen>,
    changed: watch::Sender<()>,
    chunks: BTreeMap<ChunkId, Bytes>,
    tree: ContextDigest,
}

impl Coordinator {
    pub async fn start() -> Self {
        Self::start_in(Arc::new(Pki::new())).await
    }

    /// Another coordinator of the same farm.
    pub async fn start_with(other: &Self) -> Self {
        Self::start_in(other.pki.clone()).await
    }

    async fn start_in(pki: Arc<Pki>) -> Self {
        let (chunk, root, tree) = ManifestEncoder::default().finish().expect("an empty manifest");
        let chunks = chunk.into_iter().chain([root]).map(|chunk| (ChunkId::of(&chunk.bytes), Bytes::from(chunk.bytes)));
        let seen = Shared {
            pki: pki.clone(),
            seen: Mutex::new(Seen::new()),
            changed: watch::Sender::new(()),
            chunks: chunks.collect(),
            tree,
        };
        let mut coordinator = Self { pki, seen: Arc::new(seen), address: ([127, 0, 0, 1], 0).into(), runtime: None };
        coordinator.restart().await;
        coordinator
    }

    /// Serves again, on the same address once it has one.
    pub async fn restart(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (certificate, key) = self.pki.server();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .client_ca_root(Certificate::from_pem(self.pki.ca_pem()))
            .client_auth_optional(true);
        let (service, address) = (Service(self.seen.clone()), self.address);
        let (bound, port) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let listener = listen(address).await;
            bound.send(listener.local_addr().unwrap()).unwrap();
            let server = Server::builder().tls_config(tls).unwrap().add_service(WorkerServiceServer::new(service));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        self.address = port.await.unwrap();
        self.runtime = Some(runtime);
    }

    /// Cuts every connection at once.
    pub fn kill(&mut self) {
        self.runtime.take().expect("it runs").shutdown_background();
        self.seen().session = None;
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn token(&self) -> JoinToken {
        JoinToken { coordinators: vec![self.address()], ca_fingerprint: self.pki.fingerprint(), secret: [7; 32] }
    }

    pub fn tree(&self) -> ContextDigest {
        self.seen.tree
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.seen.lock().unwrap()
    }

    pub fn assign(&self, assignment: Assignment) {
        self.send(coordinator_message::Message::Assignment(assignment));
    }

    pub fn cancel(&self, attempt: AttemptId) {
        let reason = "the user said so".to_owned();
        self.send(coordinator_message::Message::Cancel(CancelAttempt { attempt_id: attempt.to_string(), reason }));
    }

    pub fn set_slots(&self, slots: u32) {
        self.send(coordinator_message::Message::Settings(Settings { slots }));
    }

    fn send(&self, message: coordinator_message::Message) {
        let session = self.seen().session.clone().expect("a session");
        session.try_send(Ok(CoordinatorMessage { message: Some(message) })).expect("room in the session");
    }

    /// Waits until the coordinator has seen enough.
    pub async fn until(&self, what: &str, condition: impl Fn(&Seen) -> bool) {
        let mut changed = self.seen.changed.subscribe();
        let waiting = async {
            while !condition(&self.seen()) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never happened: {what}"));
    }

    /// Waits for the attempt's final report.
    pub async fn outcome(&self, attempt: AttemptId) -> Outcome {
        self.until("a final report", |seen| seen.outcome(attempt).is_some()).await;
        self.seen().outcome(attempt).expect("reported")
    }
}

/// The coordinator that was killed may hold the port for another moment.
async fn listen(address: SocketAddr) -> TcpListener {
    let listening = async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, listening).await.expect("the port is free")
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Seen {
    fn new() -> Self {
        Self {
            hellos: Vec::new(),
            reports: Vec::new(),
            logs: BTreeMap::new(),
            duplicates: 0,
            heartbeats: 0,
            leaving: false,
            enrolled: 0,
            agent_calls: Vec::new(),
            acknowledges_reports: true,
            takes_logs: true,
            adopts: true,
            refuses_sessions: false,
            leader_elsewhere: None,
            renew_after: Duration::from_secs(3600),
            protocol: SESSION_PROTOCOLS.newest,
            session: None,
        }
    }

    pub fn outcome(&self, attempt: AttemptId) -> Option<Outcome> {
        self.finals(attempt).next()
    }

    pub fn finals(&self, attempt: AttemptId) -> impl Iterator<Item = Outcome> {
        let of_attempt = self.reports.iter().filter(move |report| report.attempt_id == attempt.to_string());
        of_attempt.filter_map(|report| report.outcome.clone()).filter(|outcome| !matches!(outcome, Outcome::Started(_)))
    }

    pub fn log(&self, attempt: AttemptId) -> Vec<ProgressEntry> {
        self.logs.get(&attempt.to_string()).cloned().unwrap_or_default()
    }
}

struct Service(Arc<Shared>);

impl Service {
    fn change<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        change_shared(&self.0, change)
    }
}

fn change_shared<T>(shared: &Shared, change: impl FnOnce(&mut Seen) -> T) -> T {
    let result = change(&mut shared.seen.lock().unwrap());
    shared.changed.send_replace(());
    result
}

#[tonic::async_trait]
impl WorkerService for Service {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let renews = request.peer_certs().is_some_and(|certificates| !certificates.is_empty());
        let request = request.into_inner();
        let known = request.join_token.parse::<JoinToken>().is_ok_and(|token| token.secret == [7; 32]);
        if !renews && !known {
            return Err(Refused::new(Reason::JoinTokenRejected, "the token is unknown").into());
        }
        let (worker_id, renew_after) = self.change(|seen| {
            seen.enrolled += 1;
            ("0198f3c4-5d6e-7f80-9a1b-2c3d4e5f6071", seen.renew_after)
        });
        Ok(Response::new(EnrollResponse {
            worker_id: worker_id.to_owned(),
            name: request.name,
            certificate_pem: self.0.pki.sign(&request.csr_der, worker_id),
            ca_pem: self.0.pki.ca_pem(),
            renew_after: Some(kiln_proto::convert::duration_to_wire(renew_after)),
        }))
    }

    type SessionStream = Answers<CoordinatorMessage>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if request.peer_certs().is_none_or(|certificates| certificates.is_empty()) {
            return Err(Refused::new(Reason::Unauthenticated, "no certificate").into());
        }
        if self.change(|seen| seen.refuses_sessions) {
            return Err(Refused::new(Reason::Unauthenticated, "this worker was removed").into());
        }
        if let Some(leader) = self.change(|seen| seen.leader_elsewhere.clone()) {
            return Err(Refused::new(Reason::NotLeader, "not the leader").with_metadata("leader", leader).into());
        }
        let (answers, stream) = mpsc::channel(4096);
        let (shared, mut messages) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(WorkerMessage { message: Some(message) })) = messages.message().await {
                change_shared(&shared, |seen| heard(seen, message, &answers));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type FetchContextStream = Answers<FetchContextResponse>;

    async fn fetch_context(
        &self,
        request: Request<FetchContextRequest>,
    ) -> Result<Response<Self::FetchContextStream>, Status> {
        let ids =
            kiln_proto::convert::chunk_ids_from_wire(&request.into_inner().ids, 1000).map_err(Status::internal)?;
        let answers: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let data = self.0.chunks.get(&id).cloned().ok_or_else(|| Status::not_found("no such chunk"))?;
                Ok(FetchContextResponse { chunks: vec![Chunk { id: id.as_bytes().to_vec(), data }] })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    type LogsStream = Answers<LogAck>;

    async fn logs(&self, request: Request<Streaming<LogBatch>>) -> Result<Response<Self::LogsStream>, Status> {
        if !self.change(|seen| seen.takes_logs) {
            return Err(Status::unavailable("no logs now"));
        }
        let shared = self.0.clone();
        let acks = request.into_inner().map(move |batch| {
            let batch = batch?;
            change_shared(&shared, |seen| store(seen, batch))
        });
        Ok(Response::new(Box::pin(acks)))
    }

    type ForwardAgentStream = Answers<AgentFrame>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<AgentFrame>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.ok_or_else(|| Status::invalid_argument("no frame"))?;
        self.change(|seen| seen.agent_calls.push((first.id, first.ssh_id)));
        // An agent that says back what it hears, in capitals.
        let answers = frames.map(|frame| {
            let frame = frame?;
            Ok(AgentFrame { data: frame.data.to_ascii_uppercase(), ..AgentFrame::default() })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

fn heard(
    seen: &mut Seen,
    message: worker_message::Message,
    answers: &mpsc::Sender<Result<CoordinatorMessage, Status>>,
) {
    match message {
        worker_message::Message::Hello(hello) => {
            let welcome = Welcome {
                protocol: seen.protocol,
                heartbeat_interval: Some(kiln_proto::convert::duration_to_wire(Duration::from_millis(200))),
                adopted_attempt_ids: if seen.adopts { hello.attempt_ids.clone() } else { Vec::new() },
                kiln_version: "test".to_owned(),
            };
            answer(answers, coordinator_message::Message::Welcome(welcome));
            seen.session = Some(answers.clone());
            seen.hellos.push(hello);
        }
        worker_message::Message::Heartbeat(_) => seen.heartbeats += 1,
        worker_message::Message::Leaving(_) => seen.leaving = true,
        worker_message::Message::Report(report) => {
            let is_final = !matches!(report.outcome, Some(Outcome::Started(_)));
            if is_final && seen.acknowledges_reports {
                let attempt_id = report.attempt_id.clone();
                answer(answers, coordinator_message::Message::Ack(ReportAck { attempt_id }));
            }
            seen.reports.push(report);
        }
    }
}

fn answer(answers: &mpsc::Sender<Result<CoordinatorMessage, Status>>, message: coordinator_message::Message) {
    let _ = answers.try_send(Ok(CoordinatorMessage { message: Some(message) }));
}

/// As a coordinator must: entries that are there are skipped, a gap is an error.
fn store(seen: &mut Seen, batch: LogBatch) -> Result<LogAck, Status> {
    let log = seen.logs.entry(batch.attempt_id.clone()).or_default();
    let known = (log.len() as u64).checked_sub(batch.first_sequence).ok_or_else(|| Status::out_of_range("a gap"))?;
    let known = usize::try_from(known).expect("small").min(batch.entries.len());
    log.extend(batch.entries.into_iter().skip(known));
    let next_sequence = log.len() as u64;
    seen.duplicates += known;
    Ok(LogAck { attempt_id: batch.attempt_id, next_sequence })
}
