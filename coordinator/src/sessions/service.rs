//! `WorkerService`: who calls is read from the client certificate, then each call goes to its own module.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use kiln_common::{AttemptId, Reason, WorkerId, limits};
use kiln_proto::{
    status::Refused,
    v1::{self, worker_service_server::WorkerService},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::{
    agents::{AgentRelay, Frames},
    enrol::Enrolment,
    logs::LogIntake,
    registry::Sessions,
    session::{self, Farm},
};
use crate::{
    audit::{Action, Object, Trail, Who},
    contexts::{self, Contexts},
    driver::{Handle, Ledger, LiveAttempt},
    logs::Logs,
    pki::{JoinTokens, Pki, Revocations, worker_of},
    secrets::SecretStore,
};

/// Messages on their way to one worker beside those that HTTP/2 holds.
const OUTGOING: usize = 8;

/// What the service is made of.
pub struct Parts {
    pub driver: Handle,
    pub sessions: Arc<Sessions>,
    pub ledger: Arc<Ledger>,
    pub secrets: SecretStore,
    pub contexts: Arc<Contexts>,
    pub logs: Logs,
    pub agents: AgentRelay,
    pub pki: Arc<Pki>,
    pub join_tokens: Arc<JoinTokens>,
    pub revocations: Arc<Revocations>,
    pub insecure_registries: Vec<String>,
    pub heartbeat_interval: Duration,
    pub trail: Trail,
    pub stop: CancellationToken,
}

pub struct Workers {
    farm: Farm,
    contexts: Arc<Contexts>,
    logs: Logs,
    agents: AgentRelay,
    enrolment: Enrolment,
    revocations: Arc<Revocations>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Workers {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            enrolment: Enrolment::new(parts.pki, parts.join_tokens, parts.driver.clone(), parts.trail.clone()),
            farm: Farm {
                driver: parts.driver,
                sessions: parts.sessions,
                ledger: parts.ledger,
                secrets: parts.secrets,
                insecure_registries: Arc::new(parts.insecure_registries),
                heartbeat_interval: parts.heartbeat_interval,
                trail: parts.trail,
                stop: parts.stop,
            },
            contexts: parts.contexts,
            logs: parts.logs,
            agents: parts.agents,
            revocations: parts.revocations,
        }
    }

    /// The worker that the call's client certificate names.
    fn caller<T>(&self, request: &Request<T>) -> Result<WorkerId, Refused> {
        let refused = |problem: String| Refused::new(Reason::Unauthenticated, problem);
        let certificates = request.peer_certs();
        let certificate = certificates.as_ref().and_then(|chain| chain.first());
        let certificate = certificate
            .ok_or_else(|| refused("this call needs a worker's certificate; join with `kiln-worker`".to_owned()))?;
        let worker = worker_of(certificate).map_err(|error| refused(error.to_string()))?;
        if self.revocations.contains(worker) {
            warn!(%worker, "call of a removed worker refused");
            return Err(refused("this worker was removed from the farm; join it anew with a token".to_owned()));
        }
        Ok(worker)
    }

    /// The attempt, where it is live and this worker's.
    fn own_attempt(&self, worker: WorkerId, who: &Who, attempt_id: &str) -> Result<LiveAttempt, Refused> {
        let attempt: AttemptId =
            attempt_id.parse().map_err(|error| Refused::new(Reason::InvalidArgument, format!("{error}")))?;
        let live = self.farm.ledger.get(attempt);
        if let Some(own) = live.as_ref().filter(|live| live.worker == worker) {
            return Ok(own.clone());
        }
        let problem = format!("attempt {attempt} is not this worker's, or is over");
        if live.is_some() {
            self.refused_fetch(who, attempt, &problem);
        }
        Err(Refused::new(Reason::PermissionDenied, problem))
    }

    fn refused_fetch(&self, who: &Who, attempt: AttemptId, why: &str) {
        self.farm.trail.refuse(who.was_refused(Action::WorkerFetch, Object::Attempt(attempt), why));
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollResponse>, Status> {
        let who = Who::of(&request);
        let answer = if request.get_ref().join_token.is_empty() {
            let worker = self.caller(&request)?;
            self.enrolment.renew(worker, &who, request.into_inner()).await
        } else {
            self.enrolment.join(&who, request.into_inner()).await
        };
        Ok(Response::new(answer?))
    }

    type SessionStream = Answers<v1::CoordinatorMessage>;

    async fn session(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let worker = self.caller(&request)?;
        let who = Who::of(&request);
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        tokio::spawn(session::run(self.farm.clone(), worker, who, request.into_inner(), outgoing));
        Ok(Response::new(ReceiverStream::new(messages).map(|message| *message).boxed()))
    }

    type FetchContextStream = Answers<v1::FetchContextResponse>;

    async fn fetch_context(
        &self,
        request: Request<v1::FetchContextRequest>,
    ) -> Result<Response<Self::FetchContextStream>, Status> {
        let worker = self.caller(&request)?;
        self.own_attempt(worker, &Who::of(&request), &request.get_ref().attempt_id)?;
        let chunks = contexts::fetch_context(&self.contexts, request.get_ref()).await?;
        Ok(Response::new(chunks.boxed()))
    }

    type LogsStream = Answers<v1::LogAck>;

    async fn logs(&self, request: Request<Streaming<v1::LogBatch>>) -> Result<Response<Self::LogsStream>, Status> {
        let worker = self.caller(&request)?;
        let intake = LogIntake {
            logs: self.logs.clone(),
            driver: self.farm.driver.clone(),
            ledger: Arc::clone(&self.farm.ledger),
            trail: self.farm.trail.clone(),
            worker,
            who: Who::of(&request),
        };
        let (sender, acknowledgements) = mpsc::channel(OUTGOING);
        tokio::spawn(intake.run(request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(acknowledgements).boxed()))
    }

    type ForwardAgentStream = Frames;

    async fn forward_agent(
        &self,
        request: Request<Streaming<v1::AgentFrame>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let worker = self.caller(&request)?;
        let who = Who::of(&request);
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, incoming.message()).await;
        let first = first.ok().transpose()?.flatten();
        let first = first.ok_or_else(|| Refused::new(Reason::InvalidArgument, "no first frame came in time"))?;
        let live = self.own_attempt(worker, &who, &first.id)?;
        if !live.spec.ssh_ids.contains(&first.ssh_id) {
            let problem = format!("the build did not ask for the ssh agent `{}`", first.ssh_id);
            self.farm.trail.refuse(who.was_refused(Action::WorkerFetch, Object::Build(live.build), problem.as_str()));
            return Err(Refused::new(Reason::PermissionDenied, problem).into());
        }
        Ok(Response::new(self.agents.worker(live.build, first, incoming)?))
    }
}
