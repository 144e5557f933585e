//! The farm as the commands see it: calls go to the leader, wherever it is, and survive a short absence.

use std::{sync::Mutex, time::Duration};

use kiln_common::Reason;
use tonic::{Code, Response, Status};

use super::{Endpoint, Link, Target};
use crate::failure::{self, Failure};

/// Tries of one call, pauses between them growing from [`FIRST_PAUSE`] by doubling: about six seconds in all.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

pub struct Farm {
    target: Target,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    /// Index of the endpoint to dial next.
    next: usize,
    /// Where a standby said that the leader is; dialled before the list.
    leader: Option<Endpoint>,
}

impl Farm {
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self { target, state: Mutex::new(State::default()) }
    }

    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// The live link, dialled where there is none: the leader that was named last, then each endpoint in turn.
    ///
    /// # Errors
    /// No endpoint answers; the failure tells of each.
    pub async fn link(&self) -> Result<Link, Failure> {
        let (leader, first) = {
            let state = self.lock();
            if let Some(link) = &state.link {
                return Ok(link.clone());
            }
            (state.leader.clone(), state.next)
        };
        let count = self.target.endpoints.len();
        let listed = (0..count).map(|offset| (first + offset) % count).map(|at| (at, &self.target.endpoints[at]));
        let mut failed: Option<Failure> = None;
        for (at, endpoint) in leader.iter().map(|leader| (first, leader)).chain(listed) {
            match Link::dial(endpoint, &self.target).await {
                Ok(link) => {
                    let mut state = self.lock();
                    state.next = at;
                    state.link = Some(link.clone());
                    return Ok(link);
                }
                Err(failure) => match &mut failed {
                    None => failed = Some(failure),
                    Some(first) => first.details.push(failure.message),
                },
            }
        }
        self.lock().leader = None;
        Err(failed.unwrap_or_else(|| Failure::usage("no endpoint is configured")))
    }

    /// An idempotent call, tried again while the farm is briefly away.
    ///
    /// # Errors
    /// The farm's refusal, or that it cannot be reached.
    pub async fn call<T>(&self, call: impl AsyncFn(Link) -> Result<Response<T>, Status>) -> Result<T, Failure> {
        self.attempt(call, true).await.map_err(Refusal::into_failure)
    }

    /// As [`Farm::call`], for a caller who decides by the status.
    ///
    /// # Errors
    /// The status as the farm sent it, or that no endpoint answers.
    pub async fn call_status<T>(&self, call: impl AsyncFn(Link) -> Result<Response<T>, Status>) -> Result<T, Refusal> {
        self.attempt(call, true).await
    }

    /// A call that must not happen twice: it is repeated only where the farm said that it did nothing.
    ///
    /// # Errors
    /// The farm's refusal, or that it cannot be reached.
    pub async fn call_once<T>(&self, call: impl AsyncFn(Link) -> Result<Response<T>, Status>) -> Result<T, Failure> {
        self.attempt(call, false).await.map_err(Refusal::into_failure)
    }

    async fn attempt<T>(
        &self,
        call: impl AsyncFn(Link) -> Result<Response<T>, Status>,
        idempotent: bool,
    ) -> Result<T, Refusal> {
        let mut pause = FIRST_PAUSE;
        let mut tried = 1;
        loop {
            // Where the first dial fails nobody is there; after that, the farm was there and may come back.
            let (status, endpoint) = match self.link().await {
                Ok(link) => match call(link.clone()).await {
                    Ok(response) => return Ok(response.into_inner()),
                    Err(status) => (status, link.endpoint().to_string()),
                },
                Err(failure) if tried == 1 || tried == TRIES => return Err(Refusal::Unreachable(failure)),
                Err(failure) => (Status::unavailable(failure.message), self.target.endpoints[0].to_string()),
            };
            let moved = self.redirect(&status);
            let away = status.code() == Code::Unavailable;
            if away {
                self.forget();
            }
            if tried == TRIES || !(moved || (away && idempotent)) {
                return Err(Refusal::Status { status, endpoint });
            }
            if !moved || tried > 1 {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            tried += 1;
        }
    }

    /// Follows a NOT_LEADER refusal; whether there was one.
    pub fn redirect(&self, status: &Status) -> bool {
        if !failure::is_reason(status, Reason::NotLeader) {
            return false;
        }
        let mut state = self.lock();
        state.link = None;
        state.next = (state.next + 1) % self.target.endpoints.len();
        state.leader = failure::leader_of(status).and_then(|address| address.parse().ok());
        true
    }

    /// Drops the link after it broke; the next call dials the next endpoint.
    pub fn forget(&self) {
        let mut state = self.lock();
        if state.link.take().is_some() {
            state.next = (state.next + 1) % self.target.endpoints.len();
            state.leader = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Why a call did not succeed.
pub enum Refusal {
    Unreachable(Failure),
    Status { status: Status, endpoint: String },
}

impl Refusal {
    #[must_use]
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Unreachable(failure) => failure,
            Self::Status { status, endpoint } => Failure::from_status(&status, &endpoint),
        }
    }

    #[must_use]
    pub fn is(&self, reason: Reason) -> bool {
        match self {
            Self::Unreachable(_) => false,
            Self::Status { status, .. } => failure::is_reason(status, reason),
        }
    }
}
