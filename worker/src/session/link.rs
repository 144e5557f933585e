//! The way to the coordinator for everything bulky: logs, context chunks, ssh agents.
//!
//! It is a connection of its own beside the session's, so that bulk never delays a heartbeat or a cancel. It is opened
//! by the first job that needs it and closed with the last, so that an idle worker holds one connection only.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use kiln_common::{limits, runtime::Dialer};
use kiln_proto::v1::worker_service_client::WorkerServiceClient;
use tokio::sync::watch;
use tonic::transport::Channel;

/// What jobs hold: gives a connection while a session stands, waits while none does.
#[derive(Debug, Clone)]
pub struct Link {
    current: watch::Receiver<Option<Uplink>>,
}

/// One session's coordinator.
#[derive(Debug, Clone)]
pub(super) struct Uplink {
    dialer: Dialer,
    bulk: Arc<Mutex<Weak<Bulk>>>,
}

/// A connection that lives as long as someone holds it.
#[derive(Debug)]
pub struct Bulk(Channel);

impl Link {
    pub(super) fn new() -> (watch::Sender<Option<Uplink>>, Self) {
        let (sender, current) = watch::channel(None);
        (sender, Self { current })
    }

    /// Whether a session stands.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// The bulk connection, once a session stands.
    pub async fn bulk(&self) -> Arc<Bulk> {
        let mut current = self.current.clone();
        loop {
            let uplink = current.borrow_and_update().clone();
            if let Some(bulk) = uplink.and_then(|uplink| uplink.bulk()) {
                return bulk;
            }
            if current.changed().await.is_err() {
                // The worker is ending: whoever waits here ends with it.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Uplink {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self { dialer, bulk: Arc::default() }
    }

    fn bulk(&self) -> Option<Arc<Bulk>> {
        let mut slot = self.bulk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bulk) = slot.upgrade() {
            return Some(bulk);
        }
        let channel = self.dialer.channel().inspect_err(|error| tracing::error!(%error, "no bulk connection")).ok()?;
        let bulk = Arc::new(Bulk(channel));
        *slot = Arc::downgrade(&bulk);
        Some(bulk)
    }
}

impl Bulk {
    #[must_use]
    pub fn client(&self) -> WorkerServiceClient<Channel> {
        client(self.0.clone())
    }
}

/// A client with the farm's bounds.
pub(crate) fn client(channel: Channel) -> WorkerServiceClient<Channel> {
    WorkerServiceClient::new(channel)
        .max_decoding_message_size(limits::MESSAGE_BYTES)
        .max_encoding_message_size(limits::MESSAGE_BYTES)
}
