//! Whose failure it is, and what to say of it: a refused solve as a [`BuildError`].
//!
//! `build` calls it. BuildKit's answer carries typed details (`solver/errdefs`), which name the line of the Dockerfile;
//! whether another worker could do better has to be read from the message, by the table in [`CLASSES`].

mod details;

use tonic::{Code, Status};

use super::job::BuildError;
use details::Details;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    User,
    Farm,
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
    ("connection refused", Whose::Farm),
    ("connection reset", Whose::Farm),
    ("broken pipe", Whose::Farm),
    ("i/o timeout", Whose::Farm),
    ("timeout exceeded", Whose::Farm),
    ("deadline exceeded", Whose::Farm),
    ("handshake timeout", Whose::Farm),
    ("no such host", Whose::Farm),
    ("temporary failure in name resolution", Whose::Farm),
    ("server misbehaving", Whose::Farm),
    ("network is unreachable", Whose::Farm),
    ("no route to host", Whose::Farm),
    ("unexpected eof", Whose::Farm),
    ("transport is closing", Whose::Farm),
    ("no active session", Whose::Farm),
    ("context canceled", Whose::Farm),
    ("toomanyrequests", Whose::Farm),
    ("too many requests", Whose::Farm),
    ("500 internal server error", Whose::Farm),
    ("502 bad gateway", Whose::Farm),
    ("503 service unavailable", Whose::Farm),
    ("504 gateway", Whose::Farm),
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
    match whose(status, &details) {
        Whose::User => BuildError::Build(with_remedy(message)),
        Whose::Farm => BuildError::Infrastructure(message),
    }
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
    known.unwrap_or(if details.has_source() { Whose::User } else { Whose::Farm })
}

#[cfg(test)]
mod tests;
