//! Whose failure it is, and what to say of it: a refused solve as a [`BuildError`].
//!
//! `build` calls it. BuildKit's answer carries typed details (`solver/errdefs`), which name the line of the Dockerfile;
//! whether another worker could do better has to be read from the message, by the table in [`CLASSES`].

mod details;

use tonic::{Code, Status};

use super::job::BuildError;
use details::Details;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    User,
    Farm,
    Registry,
}

impl Whose {
    #[must_use]
    pub fn error(self, message: String) -> BuildError {
        match self {
            Self::User => BuildError::Build(message),
            Self::Farm => BuildError::Infrastructure(message),
            Self::Registry => BuildError::Registry(message),
        }
    }
}

/// The first row whose text is in the message decides. What only a user's own step can cause comes first, because
/// such a message quotes the step, which may say anything.
const CLASSES: [(&str, Whose); 50] = [
    ("exit code: ", Whose::User),
    ("dockerfile parse error", Whose::User),
    ("unknown instruction", Whose::User),
    ("no space left on device", Whose::Farm),
    ("disk quota exceeded", Whose::Farm),
    ("cannot allocate memory", Whose::Farm),
    ("input/output error", Whose::Farm),
    ("read-only file system", Whose::Farm),
    ("too many open files", Whose::Farm),
    ("connection refused", Whose::Registry),
    ("connection reset", Whose::Registry),
    ("broken pipe", Whose::Registry),
    ("i/o timeout", Whose::Registry),
    ("timeout exceeded", Whose::Registry),
    ("deadline exceeded", Whose::Registry),
    ("handshake timeout", Whose::Registry),
    ("no such host", Whose::Registry),
    ("temporary failure in name resolution", Whose::Registry),
    ("server misbehaving", Whose::Registry),
    ("network is unreachable", Whose::Registry),
    ("no route to host", Whose::Registry),
    ("unexpected eof", Whose::Registry),
    ("transport is closing", Whose::Farm),
    ("no active session", Whose::Farm),
    ("context canceled", Whose::Farm),
    ("toomanyrequests", Whose::Registry),
    ("too many requests", Whose::Registry),
    ("500 internal server error", Whose::Registry),
    ("502 bad gateway", Whose::Registry),
    ("503 service unavailable", Whose::Registry),
    ("504 gateway", Whose::Registry),
    ("failed to lease content", Whose::Farm),
    ("failed to fetch anonymous token", Whose::User),
    ("denied", Whose::User),
    ("unauthorized", Whose::User),
    ("authorization failed", Whose::User),
    ("401", Whose::User),
    ("403 forbidden", Whose::User),
    ("no match for platform", Whose::User),
    ("not found", Whose::User),
    ("could not be found", Whose::User),
    ("no such file or directory", Whose::User),
    ("failed to parse", Whose::User),
    ("invalid", Whose::User),
    ("unsupported", Whose::User),
    ("not allowed", Whose::User),
    ("no access allowed", Whose::User),
    ("must be", Whose::User),
    ("cannot be empty", Whose::User),
    ("should not be", Whose::User),
];

/// What is only said of requests to a registry. Without one of these, what is a registry's by the table above is the farm's:
/// the engine's own socket refuses in the same words.
const REGISTRY: [&str; 6] = [
    "/v2/",
    "failed to push",
    "failed to do request",
    "failed to authorize",
    "failed to resolve source",
    "load metadata for",
];

/// What to do where a registry does not answer.
pub const UNREACHABLE: &str = "check its name, that it runs, and that the worker reaches it";

/// Wrappers that say nothing to people.
const PREFIXES: [&str; 4] = [
    "failed to solve: ",
    "failed to solve with frontend dockerfile.v0: ",
    "failed to build LLB: ",
    "rpc error: code = Unknown desc = ",
];

/// Why the engine refused a solve; `step` is the one that failed.
#[must_use]
pub fn of_solve(status: &Status, step: Option<&str>) -> BuildError {
    let details = Details::of(status);
    let message = bare(status.message());
    let message = match (details.has_source(), step) {
        (false, Some(step)) if !message.contains(step) => format!("{step}: {message}"),
        (true | false, _) => details.explain(message),
    };
    let whose = whose(status, &details);
    whose.error(match whose {
        Whose::User => with_remedy(message),
        Whose::Registry => format!("{message}; {UNREACHABLE}"),
        Whose::Farm => message,
    })
}

/// A registry that wants a login says so in many words, and never what to do.
fn with_remedy(message: String) -> String {
    let lower = message.to_ascii_lowercase();
    let is_about_a_registry = ["push", "pull", "registry", "token", "/v2/"].iter().any(|word| lower.contains(word));
    let wants_login = ["401", "403 forbidden", "unauthorized", "denied", "authorization failed"];
    if is_about_a_registry && wants_login.iter().any(|word| lower.contains(word)) {
        return format!(
            "{message}; run `docker login` for that registry where `kiln build` runs, with an account that may push"
        );
    }
    message
}

fn bare(mut message: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| message.strip_prefix(prefix)) {
        message = rest;
    }
    message
}

fn whose(status: &Status, details: &Details) -> Whose {
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted => {
            return Whose::Farm;
        }
        Code::InvalidArgument | Code::NotFound | Code::PermissionDenied | Code::Unauthenticated => return Whose::User,
        Code::Ok
        | Code::Unknown
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => {}
    }
    let message = status.message().to_ascii_lowercase();
    let known = CLASSES.iter().find(|(text, _)| message.contains(text)).map(|(_, whose)| *whose);
    // What points at a line of the Dockerfile is about that line.
    let whose = known.unwrap_or(if details.has_source() { Whose::User } else { Whose::Registry });
    let names_a_registry = REGISTRY.iter().any(|text| message.contains(text));
    if whose == Whose::Registry && !names_a_registry { Whose::Farm } else { whose }
}

#[cfg(test)]
mod tests;
