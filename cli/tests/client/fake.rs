//! A farm that pretends: TLS, tokens, and answers that a test chooses.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::Stream;
use kiln_common::Reason;
use kiln_proto::{
    convert::timestamp_to_wire,
    status::{LEADER_ADDRESS, Refused},
    v1::{
        self, BuildState, Grade, TaskState,
        build_service_server::{BuildService, BuildServiceServer},
        context_service_server::{ContextService, ContextServiceServer},
        farm_service_server::{FarmService, FarmServiceServer},
    },
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    service::Routes,
    transport::{Identity, Server, ServerTlsConfig},
};

type Reply<T> = Result<Response<T>, Status>;
type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The token with which everything is allowed.
pub const TOKEN: &str = "admin-token";
/// The token of somebody who may only look.
pub const VIEWER: &str = "viewer-token";

#[derive(Default)]
pub struct State {
    /// Every submit that was let through.
    pub submitted: Vec<v1::SubmitRequest>,
    pub cancelled: Vec<v1::CancelBuildRequest>,
    /// The build's log, split into messages.
    pub log: Vec<v1::LogsResponse>,
    /// Messages after which the first log stream breaks.
    pub break_log_after: Option<usize>,
    /// Submits to refuse, next first.
    pub refusals: Vec<Refused>,
    pub builds: Vec<v1::Build>,
    pub workers: Vec<v1::Worker>,
    pub chunks: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The service side, shared by all calls.
#[derive(Clone)]
pub struct Handler {
    state: Arc<Mutex<State>>,
    /// The build that is watched; final when the test says so.
    build: Arc<watch::Sender<v1::Build>>,
}

pub struct Fake {
    pub endpoint: String,
    pub ca: String,
    pub handler: Handler,
}

impl Fake {
    pub async fn start() -> Self {
        let build = Arc::new(watch::channel(build(BuildState::Queued)).0);
        let handler = Handler { state: Arc::default(), build };
        Self::serve(handler).await
    }

    async fn serve(handler: Handler) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let routes = Routes::new(BuildServiceServer::new(handler.clone()))
            .add_service(ContextServiceServer::new(handler.clone()).max_decoding_message_size(8 << 20))
            .add_service(FarmServiceServer::new(handler.clone()));
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(&certificate, key));
        let server = Server::builder().tls_config(tls).unwrap().add_routes(routes);
        tokio::spawn(server.serve_with_incoming(incoming));
        Self { endpoint, ca: certificate, handler }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.handler.state()
    }

    /// Makes the watched build this.
    pub fn become_(&self, build: v1::Build) {
        self.handler.build.send_replace(build);
    }
}

pub const BUILD_ID: &str = "0198f3c4-5d6e-7f80-9a1b-2c3d4e5f6071";

/// A build of two platforms, the second emulated.
pub fn build(state: BuildState) -> v1::Build {
    let at =
        |seconds: u64| Some(timestamp_to_wire(kiln_common::Timestamp::from_millis(1_700_000_000_000 + seconds * 1000)));
    let done = matches!(state, BuildState::Succeeded | BuildState::Incomplete);
    let task = |platform: &str, grade: Grade, reason: &str| v1::Task {
        id: format!("task-{platform}"),
        platform: platform.into(),
        state: if done { TaskState::Succeeded } else { TaskState::Running }.into(),
        attempt_id: format!("a-{platform}"),
        attempts: 1,
        worker_name: "tower".into(),
        grade: grade.into(),
        reason: reason.into(),
        started_at: at(1),
        finished_at: if done { at(3) } else { None },
        digest: if done { format!("sha256:{}", "1".repeat(64)) } else { String::new() },
        ..v1::Task::default()
    };
    v1::Build {
        id: BUILD_ID.into(),
        state: state.into(),
        spec: Some(v1::BuildSpec { tags: vec!["r.example/app:1".into()], ..v1::BuildSpec::default() }),
        created_at: at(0),
        finished_at: if done { at(4) } else { None },
        tasks: vec![
            task("linux/amd64", Grade::Native, ""),
            task("linux/arm64", Grade::Emulated, "no native worker is registered"),
        ],
        digest: if done { format!("sha256:{}", "a".repeat(64)) } else { String::new() },
        media_type: if done { "application/vnd.oci.image.index.v1+json".into() } else { String::new() },
        size_bytes: if done { 1609 } else { 0 },
        published_tags: if done { vec!["r.example/app:1".into()] } else { Vec::new() },
        ..v1::Build::default()
    }
}

impl Handler {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn allow<T>(request: &Request<T>, writes: bool) -> Result<(), Status> {
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or("");
        match token.strip_prefix("Bearer ") {
            Some(TOKEN) => Ok(()),
            Some(VIEWER) if !writes => Ok(()),
            Some(VIEWER) => Err(Refused::new(Reason::PermissionDenied, "a viewer may not submit builds").into()),
            _ => Err(Refused::new(Reason::Unauthenticated, "the token is unknown").into()),
        }
    }

    fn known(&self, id: &str) -> Result<v1::Build, Status> {
        if BUILD_ID.starts_with(id) && id.len() >= 8 {
            return Ok(self.build.borrow().clone());
        }
        Err(Refused::new(Reason::NotFound, format!("there is no build `{id}`")).into())
    }
}

/// A refusal that names where the leader is.
pub fn not_leader(address: &str) -> Refused {
    Refused::new(Reason::NotLeader, "this coordinator is a standby").with_metadata(LEADER_ADDRESS, address)
}

#[tonic::async_trait]
impl BuildService for Handler {
    type WatchStream = Boxed<v1::Build>;
    type LogsStream = Boxed<v1::LogsResponse>;
    type ForwardAgentStream = Boxed<v1::AgentFrame>;

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Reply<v1::SubmitResponse> {
        Self::allow(&request, true)?;
        let request = request.into_inner();
        let mut state = self.state();
        if !state.refusals.is_empty() {
            return Err(state.refusals.remove(0).into());
        }
        state.submitted.push(request);
        Ok(Response::new(v1::SubmitResponse { build: Some(self.build.borrow().clone()), existed: false }))
    }

    async fn get(&self, request: Request<v1::GetBuildRequest>) -> Reply<v1::Build> {
        Self::allow(&request, false)?;
        self.known(&request.get_ref().id).map(Response::new)
    }

    async fn list(&self, request: Request<v1::ListBuildsRequest>) -> Reply<v1::ListBuildsResponse> {
        Self::allow(&request, false)?;
        let request = request.into_inner();
        let builds = self.state().builds.clone();
        let from: usize = request.page_token.parse().unwrap_or(0);
        let to = (from + request.page_size as usize).min(builds.len());
        let next_page_token = if to < builds.len() { to.to_string() } else { String::new() };
        Ok(Response::new(v1::ListBuildsResponse { builds: builds[from..to].to_vec(), next_page_token }))
    }

    async fn watch(&self, request: Request<v1::WatchBuildRequest>) -> Reply<Self::WatchStream> {
        Self::allow(&request, false)?;
        self.known(&request.get_ref().id)?;
        let mut build = self.build.subscribe();
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            loop {
                let now = build.borrow_and_update().clone();
                let is_final = now.state() as i32 >= BuildState::Succeeded as i32;
                if sender.send(Ok(now)).await.is_err() || is_final || build.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Reply<Self::LogsStream> {
        Self::allow(&request, false)?;
        self.known(&request.get_ref().id)?;
        let (log, broken) = {
            let mut state = self.state();
            (state.log.clone(), state.break_log_after.take())
        };
        let mut build = self.build.subscribe();
        let follow = request.get_ref().follow;
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            for (at, message) in log.into_iter().enumerate() {
                if Some(at) == broken {
                    drop(sender.send(Err(Status::unavailable("the coordinator restarts"))).await);
                    return;
                }
                drop(sender.send(Ok(message)).await);
            }
            if follow {
                drop(build.wait_for(|build| build.state() as i32 >= BuildState::Succeeded as i32).await.map(drop));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn cancel(&self, request: Request<v1::CancelBuildRequest>) -> Reply<v1::Build> {
        Self::allow(&request, true)?;
        self.known(&request.get_ref().id)?;
        self.state().cancelled.push(request.into_inner());
        self.build.send_modify(|build| build.state = BuildState::Cancelled.into());
        Ok(Response::new(self.build.borrow().clone()))
    }

    async fn retry(&self, _: Request<v1::RetryBuildRequest>) -> Reply<v1::Build> {
        Err(Status::unimplemented(""))
    }

    async fn backfill(&self, _: Request<v1::BackfillBuildRequest>) -> Reply<v1::Build> {
        Err(Status::unimplemented(""))
    }

    async fn explain(&self, _: Request<v1::ExplainBuildRequest>) -> Reply<v1::ExplainBuildResponse> {
        Err(Status::unimplemented(""))
    }

    async fn diff_images(&self, _: Request<v1::DiffImagesRequest>) -> Result<Response<v1::DiffImagesResponse>, Status> {
        Err(Status::unimplemented("no versions here"))
    }

    async fn remove_image(
        &self,
        _: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        Err(Status::unimplemented("no versions here"))
    }

    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Reply<v1::ListImagesResponse> {
        Self::allow(&request, false)?;
        let version = v1::ImageVersion {
            tags: vec!["1".into(), "latest".into()],
            digest: format!("sha256:{}", "a".repeat(64)),
            build_id: BUILD_ID.into(),
            complete: true,
            ..v1::ImageVersion::default()
        };
        Ok(Response::new(v1::ListImagesResponse { versions: vec![version], next_page_token: String::new() }))
    }

    async fn forward_agent(&self, _: Request<Streaming<v1::AgentFrame>>) -> Reply<Self::ForwardAgentStream> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl ContextService for Handler {
    async fn find_missing(&self, request: Request<v1::FindMissingRequest>) -> Reply<v1::FindMissingResponse> {
        Self::allow(&request, true)?;
        let state = self.state();
        let ids = request.get_ref().ids.chunks(32).filter(|id| !state.chunks.contains_key(*id));
        Ok(Response::new(v1::FindMissingResponse { ids: ids.flatten().copied().collect() }))
    }

    async fn upload(&self, request: Request<Streaming<v1::UploadRequest>>) -> Reply<v1::UploadResponse> {
        Self::allow(&request, true)?;
        let mut stream = request.into_inner();
        let mut stored = v1::UploadResponse::default();
        while let Some(message) = stream.message().await? {
            for chunk in message.chunks {
                stored.chunks += 1;
                stored.bytes += chunk.data.len() as u64;
                self.state().chunks.insert(chunk.id.to_vec(), chunk.data.to_vec());
            }
        }
        Ok(Response::new(stored))
    }
}

#[tonic::async_trait]
impl FarmService for Handler {
    type WatchWorkersStream = Boxed<v1::Worker>;

    async fn list_workers(&self, request: Request<v1::ListWorkersRequest>) -> Reply<v1::ListWorkersResponse> {
        Self::allow(&request, false)?;
        Ok(Response::new(v1::ListWorkersResponse { workers: self.state().workers.clone() }))
    }

    async fn get_worker(&self, request: Request<v1::GetWorkerRequest>) -> Reply<v1::Worker> {
        Self::allow(&request, false)?;
        let name = &request.get_ref().id;
        let found = self.state().workers.iter().find(|worker| worker.name == *name).cloned();
        let missing = || Refused::new(Reason::NotFound, format!("there is no worker `{name}`")).into();
        found.map(Response::new).ok_or_else(missing)
    }

    async fn watch_workers(&self, _: Request<v1::WatchWorkersRequest>) -> Reply<Self::WatchWorkersStream> {
        Err(Status::unimplemented(""))
    }

    async fn update_worker(&self, _: Request<v1::UpdateWorkerRequest>) -> Reply<v1::Worker> {
        Err(Status::unimplemented(""))
    }

    async fn cordon(&self, _: Request<v1::CordonRequest>) -> Reply<v1::Worker> {
        Err(Status::unimplemented(""))
    }

    async fn drain(&self, _: Request<v1::DrainRequest>) -> Reply<v1::Worker> {
        Err(Status::unimplemented(""))
    }

    async fn remove_worker(&self, _: Request<v1::RemoveWorkerRequest>) -> Reply<v1::RemoveWorkerResponse> {
        Err(Status::unimplemented(""))
    }

    async fn create_join_token(&self, _: Request<v1::CreateJoinTokenRequest>) -> Reply<v1::CreateJoinTokenResponse> {
        Ok(Response::new(v1::CreateJoinTokenResponse {
            token: "join-token".into(),
            expires_at: None,
            coordinator: "farm.example:7070".into(),
            id: "3fa9".into(),
        }))
    }

    async fn list_join_tokens(&self, request: Request<v1::ListJoinTokensRequest>) -> Reply<v1::ListJoinTokensResponse> {
        Self::allow(&request, true)?;
        let used_up = v1::JoinToken { id: "3fa9".into(), ended: "all its uses are taken".into(), ..Default::default() };
        Ok(Response::new(v1::ListJoinTokensResponse { tokens: vec![used_up] }))
    }

    async fn revoke_join_token(&self, _: Request<v1::RevokeJoinTokenRequest>) -> Reply<v1::RevokeJoinTokenResponse> {
        Ok(Response::new(v1::RevokeJoinTokenResponse {}))
    }

    /// Two pages of one entry each.
    async fn list_audit(&self, request: Request<v1::ListAuditRequest>) -> Reply<v1::ListAuditResponse> {
        Self::allow(&request, true)?;
        let request = request.get_ref();
        let actor = v1::AuditActor { kind: "token".into(), name: "ann".into(), ..Default::default() };
        let entry = v1::AuditEntry {
            actor: Some(actor),
            source: "192.0.2.7".into(),
            action: format!("{}.cordon", request.action),
            object: Some(v1::AuditObject { kind: "worker".into(), id: "0198f3c4-5d6e-7f80-9a1b-2c3d4e5f6071".into() }),
            outcome: v1::AuditOutcome::Done.into(),
            repeats: 3,
            ..Default::default()
        };
        let next_page_token = if request.page_token.is_empty() { "2" } else { "" }.to_owned();
        Ok(Response::new(v1::ListAuditResponse { entries: vec![entry], next_page_token }))
    }

    async fn create_api_token(&self, request: Request<v1::CreateApiTokenRequest>) -> Reply<v1::CreateApiTokenResponse> {
        Self::allow(&request, true)?;
        let request = request.into_inner();
        let token = v1::ApiToken { id: "t1".into(), name: request.name, role: request.role, ..v1::ApiToken::default() };
        Ok(Response::new(v1::CreateApiTokenResponse { secret: "s3cret".into(), token: Some(token) }))
    }

    async fn list_api_tokens(&self, request: Request<v1::ListApiTokensRequest>) -> Reply<v1::ListApiTokensResponse> {
        Self::allow(&request, true)?;
        Ok(Response::new(v1::ListApiTokensResponse::default()))
    }

    async fn revoke_api_token(&self, _: Request<v1::RevokeApiTokenRequest>) -> Reply<v1::RevokeApiTokenResponse> {
        Ok(Response::new(v1::RevokeApiTokenResponse {}))
    }

    async fn get_info(&self, request: Request<v1::GetInfoRequest>) -> Reply<v1::FarmInfo> {
        Self::allow(&request, false)?;
        let platforms = vec![v1::WorkerPlatform { platform: "linux/amd64".into(), grade: Grade::Native.into() }];
        Ok(Response::new(v1::FarmInfo {
            version: "9.9.9".into(),
            online_workers: 2,
            platforms,
            ..v1::FarmInfo::default()
        }))
    }
}
