//! The one map from refusals to `tonic::Status`, and back for clients.
//!
//! A status carries `google.rpc.ErrorInfo` with a stable reason (domain `kiln.v1`), for bad input `BadRequest` with the
//! fields, and where it helps `RetryInfo`.

use std::{collections::HashMap, time::Duration};

use kiln_common::{Reason, spec::Violation};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The `ErrorInfo.domain` of every status that Kiln makes.
pub const ERROR_DOMAIN: &str = "kiln.v1";

/// Metadata key of [`Reason::NotLeader`]: where the leader listens, `host:port`.
pub const LEADER_ADDRESS: &str = "leader";

/// Metadata key of [`Reason::ContextIncomplete`]: how many chunks the farm lacks.
pub const MISSING_CHUNKS: &str = "missing_chunks";

/// Why a call is refused, complete enough for a person and for a script.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub reason: Reason,
    pub message: String,
    pub violations: Vec<Violation>,
    pub metadata: Vec<(String, String)>,
    pub retry_after: Option<Duration>,
}

impl Refused {
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), violations: Vec::new(), metadata: Vec::new(), retry_after: None }
    }

    /// Bad input: the message names the first field, the details all of them.
    #[must_use]
    pub fn invalid(violations: Vec<Violation>) -> Self {
        let message = violations.first().map_or_else(
            || "the request is not sound".to_owned(),
            |first| match violations.len() {
                1 => format!("{}: {}", first.field, first.description),
                n => format!("{}: {} (and {} more)", first.field, first.description, n - 1),
            },
        );
        Self { violations, ..Self::new(Reason::InvalidArgument, message) }
    }

    #[must_use]
    pub fn with_metadata(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.push((key.to_owned(), value.into()));
        self
    }

    #[must_use]
    pub const fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

/// The gRPC code of each reason.
#[must_use]
pub const fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::InvalidArgument => Code::InvalidArgument,
        Reason::NoWorkerForPlatform
        | Reason::NoWorkerWithFeature
        | Reason::NoWorkerWithLabels
        | Reason::ContextIncomplete
        | Reason::WrongState => Code::FailedPrecondition,
        Reason::NotFound => Code::NotFound,
        Reason::Unauthenticated | Reason::JoinTokenRejected => Code::Unauthenticated,
        Reason::PermissionDenied => Code::PermissionDenied,
        Reason::Overloaded => Code::ResourceExhausted,
        Reason::NotLeader | Reason::Unavailable => Code::Unavailable,
        Reason::Internal => Code::Internal,
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let metadata: HashMap<String, String> = refused.metadata.into_iter().collect();
        let mut details = ErrorDetails::with_error_info(refused.reason.code(), ERROR_DOMAIN, metadata);
        for violation in refused.violations {
            details.add_bad_request_violation(violation.field, violation.description);
        }
        if let Some(after) = refused.retry_after {
            details.set_retry_info(Some(after));
        }
        Self::with_error_details(code_of(refused.reason), refused.message, details)
    }
}

/// What a client reads out of a status; everything is optional because proxies answer too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatusFacts {
    /// `ErrorInfo.reason` where the domain is Kiln's.
    pub reason: Option<String>,
    pub violations: Vec<Violation>,
    pub metadata: HashMap<String, String>,
    pub retry_after: Option<Duration>,
}

impl StatusFacts {
    #[must_use]
    pub fn is(&self, reason: Reason) -> bool {
        self.reason.as_deref() == Some(reason.code())
    }
}

impl From<&Status> for StatusFacts {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == ERROR_DOMAIN);
        let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
        Self {
            reason: info.map(|info| info.reason.clone()),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            violations: violations.into_iter().map(|v| Violation::new(v.field, v.description)).collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_back_from_its_status() {
        let violations = vec![Violation::new("spec.tags[0]", "no tag"), Violation::new("spec.platforms", "none")];
        let refused = Refused::invalid(violations.clone()).with_retry_after(Duration::from_secs(3));
        let status = Status::from(refused.with_metadata(LEADER_ADDRESS, "b:7070"));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "spec.tags[0]: no tag (and 1 more)");
        let facts = StatusFacts::from(&status);
        assert!(facts.is(Reason::InvalidArgument) && !facts.is(Reason::Internal));
        assert_eq!(facts.violations, violations);
        assert_eq!(facts.retry_after, Some(Duration::from_secs(3)));
        assert_eq!(facts.metadata.get(LEADER_ADDRESS).map(String::as_str), Some("b:7070"));
    }

    #[test]
    fn a_foreign_status_has_no_reason() {
        assert_eq!(StatusFacts::from(&Status::unavailable("proxy")), StatusFacts::default());
    }
}
