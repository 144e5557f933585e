//! What can go wrong with a registry, and whether trying again can help.

use std::time::Duration;

use kiln_common::Repository;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// 429, 5xx, resets, timeouts, bodies that arrive broken.
    Transient { retry_after: Option<Duration> },
    /// 404: at first it may mean "not yet".
    NotFound,
    /// 401 with the best credentials at hand, or 403.
    Denied,
    /// A layer holds what is out of place.
    Foreign,
    /// A tag that may not move.
    Immutable,
    /// Any other answer that will be the same next time.
    Final,
    /// Someone gave the publish up.
    Abandoned,
}

/// A registry did not do what it was asked; the message names it, the thing and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct RegistryError {
    pub fault: Fault,
    pub message: String,
}

impl RegistryError {
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into() }
    }

    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(Fault::Transient { retry_after: None }, message)
    }

    pub fn abandoned() -> Self {
        Self::new(Fault::Abandoned, "the publish was abandoned")
    }

    pub fn denied(repository: &Repository, act: &str, detail: &str, had_credential: bool) -> Self {
        let host = repository.host();
        let remedy = if had_credential {
            format!("check that the credentials for {host} may push to it")
        } else {
            format!("no credentials for {host} came with the build; run `docker login {host}` and build again")
        };
        let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        Self::new(Fault::Denied, format!("{host} does not allow to {act} {repository}{detail}; {remedy}"))
    }

    /// The connection failed, in the words of what lies deepest.
    pub fn connection(host: &str, error: &reqwest::Error) -> Self {
        let mut cause: &(dyn std::error::Error + 'static) = error;
        while let Some(deeper) = next_cause(cause) {
            cause = deeper;
        }
        if let Some(rustls::Error::InvalidCertificate(problem)) = cause.downcast_ref() {
            let message = format!(
                "the certificate of {host} is not trusted ({problem:?}); add its CA to the coordinator's system certificates"
            );
            return Self::new(Fault::Final, message);
        }
        if error.is_timeout() {
            Self::transient(format!("{host} does not answer in time"))
        } else if error.is_connect() {
            Self::transient(format!("cannot connect to {host}: {cause}"))
        } else {
            Self::transient(format!("the connection to {host} failed: {cause}"))
        }
    }
}

/// An I/O error shows as its source what its inner error has as source, and so hides the inner error itself.
fn next_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}
