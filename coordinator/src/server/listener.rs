//! The TLS listener under the gRPC server: accepts, shakes hands within bounds, and hands finished connections to tonic.
//!
//! A client that does not finish its handshake in time, or that comes when the farm holds as many connections as it may, is
//! dropped; nobody else waits for it. The peer's certificates reach the services through tonic's `TlsConnectInfo`.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use kiln_common::limits;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::audit::{Action, Actor, Object, Trail, Who};

/// Finished handshakes that wait for the server to take them.
const ACCEPT_QUEUE: usize = 64;

/// How long to leave a listener alone that cannot accept, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much of a refused client's words, and for how long, is read until it has read why it is refused.
const DRAINED_BYTES: u64 = 64 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection whose handshake is done; counts against the bound for as long as it lives.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
}

/// Accepts until `stop`. `tls` is asked anew for every handshake, so a renewed certificate serves the next client.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    trail: Trail,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(ACCEPT_QUEUE);
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept_all(listener, TlsAcceptor::from(tls), sender, trail) => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn accept_all(
    listener: TcpListener,
    tls: TlsAcceptor,
    sender: mpsc::Sender<io::Result<Connection>>,
    trail: Trail,
) {
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            warn!(%peer, most = limits::CONNECTIONS, "refused a connection: the farm holds as many as it may");
            continue;
        };
        let (tls, sender, trail) = (tls.clone(), sender.clone(), trail.clone());
        tokio::spawn(async move {
            match shake_hands(stream, &tls).await {
                Ok(stream) => drop(sender.send(Ok(Connection { stream, _place: place })).await),
                Err(error) => match certificate_problem(&error) {
                    Some(problem) => {
                        let who = Who { actor: Actor::Unknown, source: Some(peer.ip().to_canonical()) };
                        trail.refuse(who.was_refused(Action::Connect, Object::Farm, problem));
                    }
                    None => debug!(%peer, %error, "no TLS handshake"),
                },
            }
        });
    }
}

/// What is wrong with the client's certificate, where that is why the handshake failed.
fn certificate_problem(error: &io::Error) -> Option<String> {
    let rustls::Error::InvalidCertificate(problem) = error.get_ref()?.downcast_ref()? else { return None };
    Some(format!("the client's certificate: {problem}"))
}

async fn shake_hands(stream: TcpStream, tls: &TlsAcceptor) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, tls.accept(stream).into_fallible()).await? {
        Ok(stream) => Ok(stream),
        Err((error, stream)) => {
            let_alert_arrive(stream).await;
            Err(error)
        }
    }
}

/// A socket that is closed with bytes unread is reset, and the client then never reads the alert that says why (RFC 1122,
/// section 4.2.2.13). With TLS 1.3 it has sent its first request by the time it is refused.
async fn let_alert_arrive(mut stream: TcpStream) {
    let draining = async {
        stream.shutdown().await?;
        let mut rest = (&mut stream).take(DRAINED_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // The connection has failed in any case.
    drop(tokio::time::timeout(DRAIN_TIMEOUT, draining).await);
}

impl Connected for Connection {
    type ConnectInfo = <TlsStream<TcpStream> as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
