//! Who may call what. Every gRPC request passes [`AccessLayer`] before any service sees it.
//!
//! People and CI bring an API token, workers their certificate; [`table`] says what each method needs. Services read the
//! [`Caller`] from the request's extensions. Invariant: a method that has no row in the table is refused.

mod caller;
mod layer;
pub mod table;
mod token;

pub use caller::{Caller, caller_of, worker_of_request};
pub use layer::AccessLayer;
pub use token::{AdminFileError, ApiToken, ApiTokens, NewToken, TokenError};

use serde::{Deserialize, Serialize};

/// What the holder of an API token may do; later ones may all that earlier ones may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Also submits, cancels and retries builds.
    Submitter,
    /// Also looks after workers, tokens and projects.
    Admin,
}

impl Role {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Submitter => "submitter",
            Self::Admin => "admin",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
