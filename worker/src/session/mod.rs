//! The one stream to the coordinator: registration, heartbeats and reports one way, assignments and cancels the other.
//!
//! `run` owns the connection and nothing else: attempts live in [`Slots`] and go on while there is none. What the
//! coordinator must hear is read from there again after every change, so that a report is sent on every new connection
//! until it is acknowledged. Invariant: nothing is sent before the coordinator has answered the Hello.

mod farm;
mod link;
mod live;
mod registration;

use std::{convert::Infallible, sync::Arc, time::Duration};

use kiln_common::{Reason, runtime::dial};
use kiln_proto::status::{LEADER_ADDRESS, StatusFacts};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use self::link::Uplink;
pub(crate) use self::link::client;
pub use self::{
    farm::{Farm, FarmError},
    link::{Bulk, Link},
    registration::{Profile, Registration, follow},
};
use crate::{builder::Builder, job::Jobs, pause::Pause, slots::Slots};

/// So many refusals in a row are an answer, not an accident.
const REFUSALS: u32 = 3;

/// What a session works with.
pub struct Session {
    pub farm: Farm,
    pub slots: Arc<Slots>,
    pub jobs: Jobs,
    pub builder: Arc<dyn Builder>,
    pub registration: watch::Receiver<Registration>,
    /// Once it ends, the coordinator is told that this worker leaves.
    pub leaving: CancellationToken,
    uplink: watch::Sender<Option<Uplink>>,
}

/// Why there will be no further session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(
        "the farm does not accept this worker: {message}; to join it again make a token with \
         `kiln workers token create` and start it with --join-token-file"
    )]
    Refused { message: String },
    #[error(transparent)]
    Farm(#[from] FarmError),
}

/// How one connection ended.
#[derive(Debug)]
enum End {
    Lost { message: String, retry_after: Duration },
    NotLeader { leader: Option<String> },
    Refused { message: String },
}

/// The sending half of the link that jobs share.
#[derive(Debug)]
pub struct LinkControl(watch::Sender<Option<Uplink>>);

/// The link of jobs, down until a session stands, and what [`Session::new`] moves it with.
#[must_use]
pub fn link() -> (LinkControl, Link) {
    let (sender, link) = Link::new();
    (LinkControl(sender), link)
}

impl Session {
    #[must_use]
    pub fn new(
        farm: Farm,
        slots: Arc<Slots>,
        jobs: Jobs,
        builder: Arc<dyn Builder>,
        registration: watch::Receiver<Registration>,
        leaving: CancellationToken,
        link: LinkControl,
    ) -> Self {
        Self { farm, slots, jobs, builder, registration, leaving, uplink: link.0 }
    }

    /// Keeps a session up for ever.
    ///
    /// # Errors
    /// [`SessionError`] when the farm refuses this worker for good, or its identity cannot be used.
    pub async fn run(mut self) -> Result<Infallible, SessionError> {
        let mut pause = Pause::default();
        let mut refusals = 0;
        loop {
            let dialer = self.farm.dialer()?;
            let (accepted, end) = live::serve(&mut self, dialer).await;
            self.uplink.send_replace(None);
            if accepted {
                pause.reset();
                refusals = 0;
            }
            match end {
                End::Lost { message, retry_after } => {
                    tracing::warn!(reason = message, "no session with the coordinator; builds go on, trying again");
                    self.farm.rotate();
                    pause.wait_at_least(retry_after).await;
                }
                End::NotLeader { leader } => {
                    tracing::info!(leader = leader.as_deref().unwrap_or("unknown"), "another coordinator leads");
                    match leader {
                        Some(leader) => self.farm.lead_by(&leader),
                        None => self.farm.rotate(),
                    }
                    pause.wait().await;
                }
                End::Refused { message } if refusals + 1 >= REFUSALS => return Err(SessionError::Refused { message }),
                End::Refused { message } => {
                    refusals += 1;
                    tracing::error!(reason = message, "the farm does not accept this worker");
                    pause.wait().await;
                }
            }
        }
    }
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        let facts = StatusFacts::from(&status);
        if let Some(problem) = dial::certificate_refused_behind(&status) {
            return Self::Refused { message: problem.to_owned() };
        }
        let reached = dial::unreachable_behind(&status);
        let message = reached.map_or_else(|| status.message().to_owned(), |unreachable| unreachable.to_string());
        if facts.is(Reason::NotLeader) {
            return Self::NotLeader { leader: facts.metadata.get(LEADER_ADDRESS).cloned() };
        }
        if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
            return Self::Refused { message };
        }
        Self::Lost { message, retry_after: facts.retry_after.unwrap_or_default() }
    }
}

impl End {
    fn lost(message: impl ToString) -> Self {
        Self::Lost { message: message.to_string(), retry_after: Duration::ZERO }
    }
}
