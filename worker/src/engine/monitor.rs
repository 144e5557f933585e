//! Notices that an engine goes away or comes back, without asking it again and again.
//!
//! `Engine` runs one. It holds an idle HTTP/2 connection, whose end is the event; only a lost engine is dialled
//! repeatedly, with growing pauses.

use std::{future::Future, time::Duration};

use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;

use super::{
    EngineError,
    address::Protocol,
    facts::{self, EngineFacts},
    transport::Dialer,
};

const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(15);

/// Whether the engine answers, and what it is or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    Up(EngineFacts),
    Down { last: EngineFacts, problem: String },
}

impl EngineState {
    #[must_use]
    pub const fn facts(&self) -> &EngineFacts {
        match self {
            Self::Up(facts) | Self::Down { last: facts, .. } => facts,
        }
    }

    #[must_use]
    pub const fn is_up(&self) -> bool {
        match self {
            Self::Up(_) => true,
            Self::Down { .. } => false,
        }
    }
}

/// Probes once, and hands back what then watches; it ends when nobody listens any more.
pub async fn start(
    dialer: Dialer,
) -> Result<(watch::Receiver<EngineState>, impl Future<Output = ()> + Send), EngineError> {
    let facts = facts::probe(&dialer).await?;
    let (sender, receiver) = watch::channel(EngineState::Up(facts));
    Ok((receiver, run(dialer, sender)))
}

async fn run(dialer: Dialer, state: watch::Sender<EngineState>) {
    loop {
        let problem = tokio::select! {
            problem = until_gone(&dialer) => problem,
            () = state.closed() => return,
        };
        tracing::warn!(engine = %dialer.address(), %problem, "the engine went away");
        state.send_modify(|state| *state = EngineState::Down { last: state.facts().clone(), problem });
        let facts = tokio::select! {
            facts = until_back(&dialer) => facts,
            () = state.closed() => return,
        };
        tracing::info!(engine = %dialer.address(), version = facts.version, "the engine is back");
        state.send_replace(EngineState::Up(facts));
    }
}

async fn until_gone(dialer: &Dialer) -> String {
    match hold(dialer).await {
        Ok(()) => "the engine closed the connection".to_owned(),
        Err(error) => error,
    }
}

/// Ends with the connection.
async fn hold(dialer: &Dialer) -> Result<(), String> {
    let stream = dialer.dial_control().await.map_err(|error| error.to_string())?;
    let mut http2 = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    // Nothing is ever received but the peer's settings: the smallest windows that HTTP/2 has.
    http2.timer(TokioTimer::new()).initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    if dialer.address().protocol == Protocol::Docker {
        http2.keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT).keep_alive_while_idle(true);
    }
    let (sender, connection) =
        http2.handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream)).await.map_err(|error| super::causes(&error))?;
    let end = connection.await.map_err(|error| super::causes(&error));
    drop(sender);
    end
}

async fn until_back(dialer: &Dialer) -> EngineFacts {
    let mut pause = RETRY_FIRST;
    loop {
        match facts::probe(dialer).await {
            Ok(facts) => return facts,
            Err(error) => tracing::debug!(engine = %dialer.address(), %error, "the engine is still away"),
        }
        // Up to half of the pause is random, so that a farm does not knock in step.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
        pause = (pause * 2).min(RETRY_MOST);
    }
}
