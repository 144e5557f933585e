//! gRPC channels from workers and clients to the farm: over TLS 1.3, to the first coordinator of a list that answers.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use crate::limits;

/// The ways to one farm.
#[derive(Debug, Clone)]
pub struct Dialer {
    addresses: Arc<[HostPort]>,
    config: Arc<ClientConfig>,
    /// Where the last connection succeeded: tried first.
    preferred: Arc<AtomicUsize>,
}

/// `HOST:PORT`, the host as a certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostPort {
    text: String,
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// The addresses cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    #[error("no coordinator address is given; write HOST:PORT")]
    None,
    #[error(
        "`{text}` is not a coordinator address; write HOST:PORT, for example farm.example:7070 or [2001:db8::1]:7070"
    )]
    Malformed { text: String },
}

/// No coordinator of the list could be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the farm: {}", .failures.join("; "))]
pub struct Unreachable {
    /// One for each address.
    pub failures: Vec<String>,
}

impl Dialer {
    /// # Errors
    /// [`InvalidAddress`] for an empty list or one that is not `HOST:PORT`.
    pub fn new<S: AsRef<str>>(addresses: &[S], config: ClientConfig) -> Result<Self, InvalidAddress> {
        let addresses: Result<Vec<_>, _> = addresses.iter().map(|text| HostPort::parse(text.as_ref())).collect();
        let addresses = addresses?;
        if addresses.is_empty() {
            return Err(InvalidAddress::None);
        }
        Ok(Self { addresses: addresses.into(), config: Arc::new(config), preferred: Arc::default() })
    }

    /// Tries this address first from now on, where it is one of the list: for `NOT_LEADER`.
    pub fn prefer(&self, address: &str) {
        if let Some(at) = self.addresses.iter().position(|known| known.text == address) {
            self.preferred.store(at, Ordering::Relaxed);
        }
    }

    /// A channel that connects with its first call, and again after every loss.
    ///
    /// # Errors
    /// [`InvalidAddress`] when the first address is no URI authority.
    pub fn channel(&self) -> Result<Channel, InvalidAddress> {
        Ok(self.endpoint()?.connect_with_connector_lazy(self.clone()))
    }

    /// A channel that is connected.
    ///
    /// # Errors
    /// [`Unreachable`] with what went wrong at each address.
    pub async fn connect(&self) -> Result<Channel, Unreachable> {
        let endpoint = self.endpoint().map_err(|error| Unreachable { failures: vec![error.to_string()] })?;
        endpoint.connect_with_connector(self.clone()).await.map_err(|error| find_unreachable(&error))
    }

    fn endpoint(&self) -> Result<Endpoint, InvalidAddress> {
        let authority = &self.addresses[0].text;
        let malformed = |_| InvalidAddress::Malformed { text: authority.clone() };
        let origin: Uri = format!("https://{authority}").parse().map_err(|_| malformed(()))?;
        // The connector does TLS itself; to tonic the transport looks plain, hence `http` beside the true origin.
        let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(|_| malformed(()))?;
        Ok(endpoint
            .origin(origin)
            .http2_keep_alive_interval(limits::KEEPALIVE_INTERVAL)
            .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES))
    }

    async fn dial(self) -> Result<TlsStream<TcpStream>, Unreachable> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for step in 0..self.addresses.len() {
            let at = (first + step) % self.addresses.len();
            match self.addresses[at].dial(Arc::clone(&self.config)).await {
                Ok(stream) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) => failures.push(explain(&self.addresses[at].text, &error)),
            }
        }
        Err(Unreachable { failures })
    }
}

impl HostPort {
    fn parse(text: &str) -> Result<Self, InvalidAddress> {
        let malformed = || InvalidAddress::Malformed { text: text.chars().take(128).collect() };
        let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if bare.is_none() && host.contains([':', '/', '@']) {
            return Err(malformed());
        }
        let host = bare.unwrap_or(host).to_owned();
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(malformed)?;
        let name = ServerName::try_from(host.clone()).map_err(|_| malformed())?;
        Ok(Self { text: text.to_owned(), host, port, name })
    }

    async fn dial(&self, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        let deadline = Instant::now() + limits::HANDSHAKE_TIMEOUT;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
        let address = (self.host.as_str(), self.port);
        let stream = timeout_at(deadline, TcpStream::connect(address)).await.map_err(late)??;
        stream.set_nodelay(true)?;
        timeout_at(deadline, TlsConnector::from(config).connect(self.name.clone(), stream)).await.map_err(late)?
    }
}

/// What happened, where, and what to do.
fn explain(address: &str, error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            format!("{address}: its certificate is not signed by the farm's CA; check the CA file or the join token")
        }
        Some(rustls::Error::InvalidCertificate(
            rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
        )) => format!(
            "{address}: its certificate is for another name; use the address that the coordinator advertises (--advertise)"
        ),
        Some(rustls::Error::InvalidCertificate(
            problem @ (rustls::CertificateError::Expired
            | rustls::CertificateError::ExpiredContext { .. }
            | rustls::CertificateError::NotValidYet
            | rustls::CertificateError::NotValidYetContext { .. }),
        )) => format!("{address}: by this machine's clock its certificate is not valid now ({problem}); set the clock"),
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion)) => {
            format!("{address}: it does not speak TLS 1.3")
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            format!("{address}: it does not speak TLS; is this Kiln's gRPC port?")
        }
        Some(other) => format!("{address}: {other}"),
        None if error.kind() == io::ErrorKind::ConnectionRefused => {
            format!("{address}: nothing listens there; is the coordinator running?")
        }
        None => format!("{address}: {error}"),
    }
}

/// tonic wraps the connector's error; its own text says only "transport error".
fn find_unreachable(error: &(dyn std::error::Error + 'static)) -> Unreachable {
    let mut source = Some(error);
    let mut last = error.to_string();
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<Unreachable>() {
            return Unreachable { failures: found.failures.clone() };
        }
        last = error.to_string();
        source = error.source();
    }
    Unreachable { failures: vec![last] }
}

/// The reason behind a failed call: for a transport failure what [`Unreachable`] says, else `None`.
#[must_use]
pub fn unreachable_behind(status: &tonic::Status) -> Option<Unreachable> {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<Unreachable>() {
            return Some(Unreachable { failures: found.failures.clone() });
        }
        source = error.source();
    }
    None
}

/// Why the other side does not take this side's certificate, where a failed call ended with that.
///
/// TLS 1.3 tells a client so only after it has sent its first bytes (RFC 8446, section 4.4.2.4 and 6.2).
#[must_use]
pub fn certificate_refused_behind(status: &tonic::Status) -> Option<&'static str> {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            return refusal_of_certificate(inner);
        }
        source = error.source();
    }
    None
}

/// Of an error that came through h2 only the text is left.
fn refusal_of_certificate(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Option<&'static str> {
    use rustls::AlertDescription as Alert;
    const REFUSALS: [(Alert, &str); 7] = [
        (Alert::CertificateExpired, "the certificate has expired"),
        (Alert::UnknownCA, "the certificate is of another farm"),
        (Alert::BadCertificate, NOT_THE_FARMS),
        (Alert::UnsupportedCertificate, NOT_THE_FARMS),
        (Alert::CertificateRevoked, NOT_THE_FARMS),
        (Alert::CertificateUnknown, NOT_THE_FARMS),
        (Alert::DecryptError, NOT_THE_FARMS),
    ];
    const NOT_THE_FARMS: &str = "the certificate is not the farm's";
    let text = error.to_string();
    let told = |alert: &Alert| rustls::Error::AlertReceived(*alert).to_string() == text;
    REFUSALS.iter().find(|(alert, _)| told(alert)).map(|(_, problem)| *problem)
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = Unreachable;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Unreachable>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { dialer.dial().await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tls::{Trust, client_config};

    fn dialer(addresses: &[&str]) -> Result<Dialer, InvalidAddress> {
        Dialer::new(addresses, client_config(Trust::Fingerprint([0; 32]), None).expect("configuration"))
    }

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["farm.example:7070", "127.0.0.1:7070", "[::1]:7070", "localhost:1"] {
            assert!(dialer(&[good]).is_ok(), "{good}");
        }
        for bad in ["", "farm", "farm:", "farm:0", "farm:99999", "https://farm:7070", "::1:7070", "a b:1"] {
            assert!(matches!(dialer(&[bad]), Err(InvalidAddress::Malformed { .. })), "{bad}");
        }
        assert_eq!(dialer(&[]).err(), Some(InvalidAddress::None));
    }

    #[tokio::test]
    async fn an_unreachable_farm_names_every_address_and_the_reason() {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let (one, two) = (free().to_string(), free().to_string());
        let error = dialer(&[&one, &two]).expect("valid").connect().await.expect_err("nobody listens").to_string();
        assert!(error.contains(&one) && error.contains(&two) && error.contains("nothing listens there"), "{error}");
    }
}
