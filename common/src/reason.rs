//! Stable reason codes: what `google.rpc.ErrorInfo.reason` says and what people script against.

use std::fmt;

/// Why a call was refused. The text form never changes once released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field of the request is malformed or out of bounds; `BadRequest` says which.
    InvalidArgument,
    /// No registered worker can ever run one of the platforms.
    NoWorkerForPlatform,
    /// Workers have the platform, but none has a feature that the build needs.
    NoWorkerWithFeature,
    /// Workers have the platform, but none carries the required labels.
    NoWorkerWithLabels,
    /// Chunks of the context are not in the farm; upload them and submit again.
    ContextIncomplete,
    /// The object does not exist, or the caller may not see it.
    NotFound,
    /// The object is in a state that does not allow the call.
    WrongState,
    /// The token is missing, unknown, expired or revoked.
    Unauthenticated,
    /// The token's role does not allow the call.
    PermissionDenied,
    /// The join token is unknown, expired or used up.
    JoinTokenRejected,
    /// The farm holds as much as it may; try later.
    Overloaded,
    /// This coordinator is not the leader; the metadata names the leader's address.
    NotLeader,
    /// The farm is stopping or the store does not answer; try again.
    Unavailable,
    /// A defect in Kiln; the log of the coordinator has the details.
    Internal,
}

impl Reason {
    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NoWorkerForPlatform => "NO_WORKER_FOR_PLATFORM",
            Self::NoWorkerWithFeature => "NO_WORKER_WITH_FEATURE",
            Self::NoWorkerWithLabels => "NO_WORKER_WITH_LABELS",
            Self::ContextIncomplete => "CONTEXT_INCOMPLETE",
            Self::NotFound => "NOT_FOUND",
            Self::WrongState => "WRONG_STATE",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::JoinTokenRejected => "JOIN_TOKEN_REJECTED",
            Self::Overloaded => "OVERLOADED",
            Self::NotLeader => "NOT_LEADER",
            Self::Unavailable => "UNAVAILABLE",
            Self::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
