//! The gRPC services for people: decode once, ask the driver or the store, encode. Nothing here decides.
//!
//! [`Api`] is what all services share. Every failure becomes a [`Refused`] and from there the one status it has
//! (`kiln_proto::status`).

mod audit;
mod builds;
mod farm;
mod images;
mod images_find;
mod listing;
mod log_stream;
mod resolve;
mod submit;
mod tokens;
mod view;

use std::{sync::Arc, time::Duration};

use kiln_common::Reason;
use kiln_proto::status::Refused;
use tracing::error;

use crate::{
    access::ApiTokens,
    audit::Trail,
    contexts::Contexts,
    driver,
    driver::{Stopped, WatchError},
    logs::{LogError, Logs},
    pki::{JoinTokens, Revocations},
    sessions::AgentRelay,
    store::StoreError,
};

/// What an overloaded farm asks its callers to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What the services work with. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub driver: driver::Handle,
    pub logs: Logs,
    pub contexts: Arc<Contexts>,
    pub join_tokens: Arc<JoinTokens>,
    pub api_tokens: Arc<ApiTokens>,
    pub revocations: Arc<Revocations>,
    pub agents: Arc<AgentRelay>,
    pub trail: Trail,
    pub publisher: Arc<dyn driver::Publisher>,
    /// Where the dashboard is, for [`kiln_proto::v1::FarmInfo`].
    pub dashboard_url: Arc<str>,
}

/// The store's words for a caller: its own detail goes to the log.
fn store_failed(error: &StoreError) -> Refused {
    error!(%error, "the store failed a request");
    Refused::new(Reason::Unavailable, "the farm's store does not answer; try again")
}

fn log_failed(error: &LogError) -> Refused {
    error!(%error, "a log could not be read");
    Refused::new(Reason::Unavailable, "the log cannot be read now; try again")
}

fn stopped(stopped: Stopped) -> Refused {
    Refused::new(Reason::Unavailable, stopped.to_string())
}

fn watch_failed(error: WatchError) -> Refused {
    match error {
        WatchError::Unknown { .. } => Refused::new(Reason::NotFound, error.to_string()),
        WatchError::Ended(end) => Refused::new(Reason::Overloaded, end.to_string()).with_retry_after(RETRY_AFTER),
        WatchError::Store(error) => store_failed(&error),
        WatchError::Stopped => stopped(Stopped),
    }
}
