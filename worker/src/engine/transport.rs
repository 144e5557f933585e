//! Byte streams to an engine: dialling, TLS, and the HTTP/1.1 upgrades that turn a Docker connection into HTTP/2.
//!
//! Everything else in `engine` gets its streams here. Each build dials connections of its own, so that dropping the
//! build drops them and the engine sees it at once.

use std::{io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint as Http2};

use super::{
    EngineError,
    address::{Endpoint, EngineAddress, Protocol},
};

/// How long an engine may take to accept a connection and to answer an upgrade.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a silent TCP peer is trusted before it is asked for a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How much of an engine's refusal is read for the message.
const REFUSAL_BYTES: usize = 4096;

/// A stream of bytes to an engine.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}
pub type BoxedIo = Box<dyn Io>;

/// Opens connections to one engine.
#[derive(Clone)]
pub struct Dialer {
    address: Arc<EngineAddress>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Dialer {
    /// Reads the TLS files, if there are any; connects to nothing yet.
    ///
    /// # Errors
    /// [`EngineError::Address`] and [`EngineError::Tls`].
    pub fn new(address: EngineAddress) -> Result<Self, EngineError> {
        address.check()?;
        let tls = match (&address.endpoint, &address.tls_dir) {
            (Endpoint::Tcp { host, .. }, Some(folder)) => Some(tls(host, folder, address.protocol)?),
            (Endpoint::Tcp { .. } | Endpoint::Unix(_), _) => None,
        };
        Ok(Self { address: Arc::new(address), tls })
    }

    #[must_use]
    pub fn address(&self) -> &EngineAddress {
        &self.address
    }

    /// A fresh connection, in whatever protocol the engine's port speaks.
    pub async fn dial(&self) -> io::Result<BoxedIo> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the engine does not accept the connection");
        timeout(CONNECT_TIMEOUT, self.dial_unbounded()).await.map_err(late)?
    }

    async fn dial_unbounded(&self) -> io::Result<BoxedIo> {
        match &self.address.endpoint {
            Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Endpoint::Tcp { host, port } => {
                let stream = TcpStream::connect((host.trim_matches(['[', ']']), *port)).await?;
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                match &self.tls {
                    Some((connector, name)) => Ok(Box::new(connector.connect(name.clone(), stream).await?)),
                    None => Ok(Box::new(stream)),
                }
            }
        }
    }

    /// A Docker connection handed over by `POST path` with `Upgrade: h2c`: what follows is HTTP/2.
    pub async fn upgrade(&self, path: &str, headers: &[(&'static str, String)]) -> io::Result<BoxedIo> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("the engine does not answer POST {path}"));
        timeout(CONNECT_TIMEOUT, self.upgrade_unbounded(path, headers)).await.map_err(late)?
    }

    async fn upgrade_unbounded(&self, path: &str, headers: &[(&'static str, String)]) -> io::Result<BoxedIo> {
        let stream = TokioIo::new(self.dial_unbounded().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
        tokio::spawn(connection.with_upgrades());
        let mut request = hyper::Request::post(path)
            .header("host", "engine")
            .header("connection", "Upgrade")
            .header("upgrade", "h2c");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let body = Limited::new(response.into_body(), REFUSAL_BYTES).collect().await;
            let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
            return Err(io::Error::other(format!("the engine answered POST {path} with {status}: {body}")));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    /// A connection that speaks HTTP/2 to BuildKit's control API.
    pub async fn dial_control(&self) -> io::Result<BoxedIo> {
        match self.address.protocol {
            Protocol::Docker => self.upgrade("/grpc", &[]).await,
            Protocol::BuildKit => self.dial().await,
        }
    }

    /// A gRPC channel to BuildKit's control API on a connection of its own.
    pub async fn channel(&self) -> Result<Channel, EngineError> {
        let unreachable = |source| EngineError::Unreachable { address: self.address.to_string(), source };
        let first = self.dial_control().await.map_err(unreachable)?;
        let mut first = Some(TokioIo::new(first));
        // One connection and no second: a build's session lives on it, so a new one would find nothing.
        let connector = tower::service_fn(move |_| {
            let stream = first.take().ok_or_else(|| io::Error::other("the connection to the engine is lost"));
            std::future::ready(stream)
        });
        let mut http2 =
            Http2::from_static("http://engine").user_agent("kiln-worker").map_err(EngineError::transport)?;
        if self.address.protocol == Protocol::Docker {
            // A standalone buildkitd ends connections that ping more often than every five minutes (grpc-go's
            // enforcement policy); there the TCP keepalive finds a dead peer.
            http2 = http2.http2_keep_alive_interval(KEEPALIVE).keep_alive_timeout(KEEPALIVE);
        }
        http2.connect_with_connector(connector).await.map_err(EngineError::transport)
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE / 4)?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

fn tls(host: &str, folder: &Path, protocol: Protocol) -> Result<(TlsConnector, ServerName<'static>), EngineError> {
    let file_error = |name: &str, problem: String| EngineError::Tls { file: folder.join(name), problem };
    let certificates = |name: &'static str| {
        CertificateDer::pem_file_iter(folder.join(name))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| file_error(name, error.to_string()))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates("ca.pem")? {
        roots.add(certificate).map_err(|error| file_error("ca.pem", error.to_string()))?;
    }
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem"))
        .map_err(|error| file_error("key.pem", error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| file_error("", error.to_string()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates("cert.pem")?, key)
        .map_err(|error| file_error("cert.pem", error.to_string()))?;
    config.alpn_protocols = match protocol {
        Protocol::BuildKit => vec![b"h2".to_vec()],
        Protocol::Docker => vec![b"http/1.1".to_vec()],
    };
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|error| file_error("", error.to_string()))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}
