//! The one way a command ends badly: what went wrong, where, what to do, and the exit code that scripts rely on.
//!
//! Every command returns a [`Failure`]; `main` prints it and exits. Refusals of the farm become one here and nowhere
//! else.

use std::fmt;

use kiln_common::{Reason, spec::Violation};
use kiln_proto::status::{LEADER_ADDRESS, StatusFacts};
use tonic::{Code, Status};

/// Exit codes that people script against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    BuildFailed,
    Usage,
    Unreachable,
    NotAllowed,
    Interrupted,
}

impl Exit {
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::BuildFailed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::NotAllowed => 4,
            Self::Interrupted => 130,
        }
    }
}

/// Why a command did not do what it was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    /// What went wrong and where; empty: everything has been said already.
    pub message: String,
    /// One line each, for example the fields of a request that are wrong.
    pub details: Vec<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Failure {
    #[must_use]
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string(), details: Vec::new(), remedy: None }
    }

    #[must_use]
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A failure of the machine the client runs on: a file that cannot be read, a program that is missing.
    #[must_use]
    pub fn local(what: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, format!("{what}: {error}"))
    }

    /// Ends with this code and says nothing more.
    #[must_use]
    pub fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    #[must_use]
    pub fn remedy(self, remedy: impl fmt::Display) -> Self {
        Self { remedy: Some(remedy.to_string()), ..self }
    }

    /// A refusal or a failed call of the farm at `endpoint`.
    #[must_use]
    pub fn from_status(status: &Status, endpoint: &str) -> Self {
        let facts = StatusFacts::from(status);
        let exit = exit_of(status.code(), &facts);
        let message = match status.code() {
            Code::Unimplemented => {
                format!("the farm at {endpoint} does not offer this yet{}", suffix(status.message()))
            }
            Code::Unauthenticated => format!("the farm at {endpoint} refused the token{}", suffix(status.message())),
            Code::PermissionDenied => format!("not allowed by the farm at {endpoint}{}", suffix(status.message())),
            Code::Unavailable | Code::DeadlineExceeded => {
                format!("the farm at {endpoint} does not answer{}", suffix(status.message()))
            }
            Code::Internal | Code::Unknown | Code::DataLoss => {
                format!("the farm at {endpoint} failed{}", suffix(status.message()))
            }
            Code::Ok
            | Code::Cancelled
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange => match status.message() {
                "" => format!("the farm at {endpoint} refused the call"),
                message => message.to_owned(),
            },
        };
        Self { exit, message, details: violations_of(status, &facts), remedy: remedy_of(status.code(), &facts) }
    }
}

/// Whether the farm refused for this reason.
#[must_use]
pub fn is_reason(status: &Status, reason: Reason) -> bool {
    StatusFacts::from(status).is(reason)
}

/// The leader's address in a NOT_LEADER refusal.
#[must_use]
pub fn leader_of(status: &Status) -> Option<String> {
    StatusFacts::from(status).metadata.remove(LEADER_ADDRESS)
}

fn exit_of(code: Code, facts: &StatusFacts) -> Exit {
    if facts.is(Reason::Overloaded) || facts.is(Reason::NotLeader) {
        return Exit::Unreachable;
    }
    match code {
        Code::Unauthenticated | Code::PermissionDenied => Exit::NotAllowed,
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => Exit::Unreachable,
        Code::Internal | Code::Unknown | Code::DataLoss => Exit::BuildFailed,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented => Exit::Usage,
    }
}

fn violations_of(status: &Status, facts: &StatusFacts) -> Vec<String> {
    let said =
        |violation: &&Violation| facts.violations.len() == 1 && status.message().contains(&violation.description);
    let tell = |violation: &Violation| match flag_of(&violation.field) {
        Some(flag) => format!("{flag}: {}", violation.description),
        None => format!("{}: {}", violation.field, violation.description),
    };
    facts.violations.iter().filter(|violation| !said(violation)).map(tell).collect()
}

/// The flag that filled a field of the request, so that people read what they typed.
#[must_use]
pub fn flag_of(field: &str) -> Option<&'static str> {
    let name = field.strip_prefix("spec.")?.split(['[', '.']).next()?;
    let flags = [
        ("platforms", "--platform"),
        ("tags", "--tag"),
        ("build_args", "--build-arg"),
        ("labels", "--label"),
        ("annotations", "--annotation"),
        ("named_contexts", "--build-context"),
        ("secrets", "--secret"),
        ("ssh_ids", "--ssh"),
        ("cache_from", "--cache-from"),
        ("cache_to", "--cache-to"),
        ("network", "--network"),
        ("add_hosts", "--add-host"),
        ("shm_size_bytes", "--shm-size"),
        ("shm_size", "--shm-size"),
        ("ulimits", "--ulimit"),
        ("provenance", "--provenance"),
        ("sbom", "--sbom"),
        ("verify", "--verify"),
        ("verify_allow", "--verify-allow"),
        ("compression", "--compression"),
        ("rewrite_timestamp", "--rewrite-timestamp"),
        ("if_unchanged", "--if-unchanged"),
        ("smoke", "--smoke"),
        ("sign", "--sign"),
        ("emulation", "--emulation"),
        ("required_labels", "--require"),
        ("priority", "--priority"),
        ("timeout", "--timeout"),
        ("target", "--target"),
        ("project", "--project"),
    ];
    flags.into_iter().find_map(|(known, flag)| (known == name).then_some(flag))
}

fn remedy_of(code: Code, facts: &StatusFacts) -> Option<String> {
    let text = if facts.is(Reason::NoWorkerForPlatform) || facts.is(Reason::NoWorkerWithLabels) {
        "see what the farm can run with `kiln workers ls`, or join a worker with `kiln workers token create`"
    } else if facts.is(Reason::NoWorkerWithFeature) {
        "see the engines with `kiln workers ls -o json`, or leave the option out"
    } else if facts.is(Reason::Overloaded) || code == Code::ResourceExhausted {
        "try again in a while; `kiln builds ls` shows what it is busy with"
    } else {
        match code {
            Code::Unauthenticated => "log in again: `kiln login ENDPOINT --token-file FILE`, or check KILN_TOKEN",
            Code::PermissionDenied => "use a token whose role allows it: `kiln token create --role submitter|admin`",
            Code::Unavailable | Code::DeadlineExceeded => "check it with `kiln doctor`, then try again",
            Code::Unimplemented => "upgrade the farm, or use a client of its version (`kiln version`)",
            Code::Internal | Code::Unknown | Code::DataLoss => "the coordinator's log has the details",
            Code::Ok
            | Code::Cancelled
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange => return None,
        }
    };
    Some(text.to_owned())
}

fn suffix(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.details.iter().try_for_each(|detail| write!(f, "\n  {detail}"))?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, "\n  {remedy}"))
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use kiln_proto::status::Refused;

    use super::*;

    #[test]
    fn each_kind_of_refusal_has_its_exit_code_and_a_remedy() {
        for (reason, exit) in [
            (Reason::Unauthenticated, 4),
            (Reason::PermissionDenied, 4),
            (Reason::Unavailable, 3),
            (Reason::NotLeader, 3),
            (Reason::Overloaded, 3),
            (Reason::InvalidArgument, 2),
            (Reason::NoWorkerForPlatform, 2),
            (Reason::NotFound, 2),
            (Reason::Internal, 1),
        ] {
            let failure = Failure::from_status(&Refused::new(reason, "why").into(), "farm:7070");
            assert_eq!(failure.exit.code(), exit, "{reason}");
            assert!(failure.message.contains("why"), "{failure}");
        }
        let unauthenticated = Failure::from_status(&Status::unauthenticated(""), "farm:7070");
        assert!(unauthenticated.message.contains("farm:7070") && unauthenticated.remedy.is_some());
    }

    #[test]
    fn violations_are_told_by_the_flag_that_caused_them() {
        let violations = vec![
            Violation::new("spec.tags[1]", "`A:1` is not an image reference"),
            Violation::new("request_id", "too long"),
        ];
        let failure = Failure::from_status(&Refused::invalid(violations).into(), "farm:7070");
        assert_eq!(failure.details, ["--tag: `A:1` is not an image reference", "request_id: too long"]);
    }
}
