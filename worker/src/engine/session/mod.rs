//! A session: what BuildKit may ask of its client, served on a connection that the client opened.
//!
//! `build` leases one for each solve. dockerd hands a connection over (`POST /session`); a standalone buildkitd carries the
//! same bytes inside `Control.Session`.

mod auth;
mod directories;
mod health;
mod pool;
mod secrets;
mod served;
mod ssh;
mod tunnel;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bollard_buildkit_proto::{
    health::health_server::HealthServer,
    moby::{
        buildkit::secrets::v1::secrets_server::SecretsServer,
        filesync::{packet::file_sync_server::FileSyncServer, v1::auth_server::AuthServer},
        sshforward::v1::ssh_server::SshServer,
    },
};
use futures_util::StreamExt;
use kiln_common::limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};
use tonic::transport::{Channel, Server, server::Connected};

use self::served::Builds;
pub use self::{
    pool::{Lease, Sessions},
    served::Served,
};
use super::{
    EngineError,
    address::Protocol,
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

/// A running session; dropping it ends it.
pub struct Session {
    pub id: String,
    /// To the engine's control API.
    pub channel: Channel,
    closed: CancellationToken,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Session {
    /// Connects a session to the engine and serves `builds` from then on.
    ///
    /// # Errors
    /// When the engine cannot be reached, or has a session of this id already.
    pub async fn open(dialer: &Dialer, id: String, shared_key: &str, builds: Arc<Builds>) -> Result<Self, EngineError> {
        let channel = dialer.channel().await?;
        let headers = headers(&id, shared_key);
        let unreachable = |source| EngineError::Unreachable { address: dialer.address().to_string(), source };
        let (stream, mut tasks) = match dialer.address().protocol {
            Protocol::Docker => (dialer.upgrade("/session", &headers).await.map_err(unreachable)?, Vec::new()),
            Protocol::BuildKit => {
                let (stream, pumps) = tunnel::open(channel.clone(), &headers).await?;
                (stream, pumps)
            }
        };
        let closed = CancellationToken::new();
        let stream = SessionIo { stream, _closes: closed.clone().drop_guard() };
        tasks.push(AbortOnDropHandle::new(tokio::spawn(serve(stream, builds))));
        Ok(Self { id, channel, closed, _tasks: tasks })
    }

    /// Whether the engine is gone from the other end.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
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

async fn serve(stream: SessionIo, builds: Arc<Builds>) {
    let router = Server::builder()
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(HealthServer::new(health::AlwaysServing))
        .add_service(AuthServer::new(auth::Credentials(builds.clone())))
        .add_service(SecretsServer::new(secrets::SecretStore(builds.clone())))
        .add_service(SshServer::new(ssh::Agents(builds.clone())))
        .add_service(FileSyncServer::new(directories::Directories(builds)));
    let connections = tokio_stream::once(Ok::<_, io::Error>(stream)).chain(tokio_stream::pending());
    if let Err(error) = router.serve_with_incoming(connections).await {
        tracing::debug!(error = super::causes(&error), "a session broke");
    }
}

/// A stream of a session as tonic's server takes it.
struct SessionIo {
    stream: BoxedIo,
    _closes: DropGuard,
}

impl Connected for SessionIo {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for SessionIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SessionIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
