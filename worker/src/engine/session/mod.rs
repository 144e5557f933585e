//! The session of one build: what BuildKit may ask of its client, served on a connection that the client opened.
//!
//! `build` opens one for each solve and drops it with it. dockerd hands a connection over (`POST /session`); a standalone
//! buildkitd carries the same bytes inside `Control.Session`.

mod auth;
mod health;
mod secrets;
mod ssh;
mod tunnel;

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bollard_buildkit_proto::{
    health::health_server::HealthServer,
    moby::{
        buildkit::secrets::v1::secrets_server::SecretsServer,
        filesync::{
            packet::file_sync_server::{FileSync, FileSyncServer},
            v1::auth_server::AuthServer,
        },
        sshforward::v1::ssh_server::SshServer,
    },
};
use futures_util::StreamExt;
use kiln_common::limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Server, server::Connected};
use zeroize::Zeroizing;

use super::{
    EngineError,
    address::Protocol,
    job::{AgentDialer, RegistryCredential},
    transport::{BoxedIo, Dialer},
};

/// The engine asks for each file of a context in a message of a few bytes, thousands at once. HTTP/2 servers end a
/// connection with too many small frames unread, by a measure that grows with this window; little is ever received in it.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// What BuildKit is told that it may call. Without `GetTokenAuthority` the daemon fetches registry tokens itself.
const METHODS: [&str; 6] = [
    "/grpc.health.v1.Health/Check",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
];
/// Patterns of `.dockerignore` arrive as headers.
const HEADER_LIST_BYTES: u32 = 4 * limits::IGNORE_BYTES as u32;

/// What the services of one session give out.
pub struct Served<F> {
    pub filesync: F,
    pub secrets: BTreeMap<String, Zeroizing<Vec<u8>>>,
    pub credentials: BTreeMap<String, RegistryCredential>,
    pub ssh_ids: Vec<String>,
    pub agents: Arc<dyn AgentDialer>,
    pub shared_key: String,
}

/// A running session; dropping it ends it.
pub struct Session {
    pub id: String,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Session {
    /// Connects the session to the engine and serves it from then on.
    pub async fn open<F: FileSync>(dialer: &Dialer, channel: &Channel, served: Served<F>) -> Result<Self, EngineError> {
        let id = format!("{:032x}", rand::random::<u128>());
        let headers = headers(&id, &served.shared_key);
        let unreachable = |source| EngineError::Unreachable { address: dialer.address().to_string(), source };
        let (stream, mut tasks) = match dialer.address().protocol {
            Protocol::Docker => (dialer.upgrade("/session", &headers).await.map_err(unreachable)?, Vec::new()),
            Protocol::BuildKit => {
                let (stream, pumps) = tunnel::open(channel.clone(), &headers).await?;
                (stream, pumps)
            }
        };
        tasks.push(AbortOnDropHandle::new(tokio::spawn(serve(stream, served))));
        Ok(Self { id, _tasks: tasks })
    }
}

fn headers(id: &str, shared_key: &str) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("x-docker-expose-session-uuid", id.to_owned()),
        ("x-docker-expose-session-name", "kiln".to_owned()),
        ("x-docker-expose-session-sharedkey", shared_key.to_owned()),
    ];
    headers.extend(METHODS.map(|method| ("x-docker-expose-session-grpc-method", method.to_owned())));
    headers
}

async fn serve<F: FileSync>(stream: BoxedIo, served: Served<F>) {
    let router = Server::builder()
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(HealthServer::new(health::AlwaysServing))
        .add_service(AuthServer::new(auth::Credentials(served.credentials)))
        .add_service(SecretsServer::new(secrets::SecretStore(served.secrets)))
        .add_service(SshServer::new(ssh::Agents { ids: served.ssh_ids, dialer: served.agents }))
        .add_service(FileSyncServer::new(served.filesync));
    let connections = tokio_stream::once(Ok::<_, io::Error>(SessionIo(stream))).chain(tokio_stream::pending());
    if let Err(error) = router.serve_with_incoming(connections).await {
        tracing::debug!(error = super::causes(&error), "a session broke");
    }
}

/// A stream of a session as tonic's server takes it.
struct SessionIo(BoxedIo);

impl Connected for SessionIo {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for SessionIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SessionIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
