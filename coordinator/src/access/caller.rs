//! Who is behind a request, as the services see it.

use kiln_common::{Reason, WorkerId, id::TokenId};
use kiln_proto::status::Refused;

use super::Role;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The holder of an API token.
    Token { id: TokenId, name: String, role: Role },
    /// A worker, by its certificate.
    Worker(WorkerId),
    /// Nobody that the farm knows; only open methods get this.
    Anonymous,
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token { name, role, .. } => write!(f, "{role} `{name}`"),
            Self::Worker(worker) => write!(f, "worker {worker}"),
            Self::Anonymous => f.write_str("nobody"),
        }
    }
}

/// The caller that [`super::AccessLayer`] found.
pub fn caller_of<T>(request: &tonic::Request<T>) -> Caller {
    request.extensions().get().cloned().unwrap_or(Caller::Anonymous)
}

/// The worker that calls.
///
/// # Errors
/// [`Reason::Unauthenticated`] when it is no worker.
pub fn worker_of_request<T>(request: &tonic::Request<T>) -> Result<WorkerId, Refused> {
    match caller_of(request) {
        Caller::Worker(worker) => Ok(worker),
        Caller::Token { .. } | Caller::Anonymous => {
            Err(Refused::new(Reason::Unauthenticated, "this call needs a worker's certificate"))
        }
    }
}
