//! Every key of the store, in one place.
//!
//! ```text
//! schema                          version of this layout
//! builds/BUILD                    BuildRecord
//! tasks/BUILD/TASK                TaskRecord
//! open/BUILD                      empty; there while the build is not final: what a start has to recover
//! newest/~BUILD                   Summary; ~BUILD counts down, so that the order of keys is newest first
//! requests/REQUEST                BuildId that a request id made
//! attempts/BUILD/ATTEMPT          Attempt; every try of the build's tasks, also the superseded ones, in order
//! attempt-builds/ATTEMPT          BuildId of an attempt
//! secrets/BUILD                   sealed secrets and credentials; gone once the build is final
//! images/REPOSITORY@~BUILD        empty; builds that published in the repository, newest first
//! workers/WORKER                  WorkerRecord
//! revoked/WORKER                  empty; certificates of removed workers
//! join-tokens/..., api-tokens/... what `access` and `pki` keep
//! audit/~ENTRY                    audit::Entry, newest first
//! ```
//! Ids are version 7 UUIDs: their order is the order of their making.

use kiln_common::{AttemptId, BuildId, Repository, TaskId, WorkerId, id::AuditId};
use uuid::Uuid;

pub const SCHEMA: &str = "schema";
pub const BUILDS: &str = "builds/";
pub const TASKS: &str = "tasks/";
pub const OPEN: &str = "open/";
pub const NEWEST: &str = "newest/";
pub const SECRETS: &str = "secrets/";
pub const WORKERS: &str = "workers/";
pub const REVOKED: &str = "revoked/";
pub const API_TOKENS: &str = "api-tokens/";
pub const JOIN_TOKENS: &str = "join-tokens/";
pub const AUDIT: &str = "audit/";

#[must_use]
pub fn build(id: BuildId) -> String {
    format!("{BUILDS}{id}")
}

/// Prefix of all tasks of a build.
#[must_use]
pub fn tasks(build: BuildId) -> String {
    format!("{TASKS}{build}/")
}

#[must_use]
pub fn task(build: BuildId, task: TaskId) -> String {
    format!("{TASKS}{build}/{task}")
}

#[must_use]
pub fn open(build: BuildId) -> String {
    format!("{OPEN}{build}")
}

#[must_use]
pub fn newest(build: BuildId) -> String {
    format!("{NEWEST}{}", countdown(build.as_uuid()))
}

/// The request id goes in as hex: it is the caller's text and may hold anything.
#[must_use]
pub fn request(request_id: &str) -> String {
    format!("requests/{}", hex::encode(request_id))
}

/// Prefix of all attempts of a build.
#[must_use]
pub fn attempts(build: BuildId) -> String {
    format!("attempts/{build}/")
}

#[must_use]
pub fn attempt(build: BuildId, attempt: AttemptId) -> String {
    format!("attempts/{build}/{attempt}")
}

#[must_use]
pub fn attempt_build(attempt: AttemptId) -> String {
    format!("attempt-builds/{attempt}")
}

#[must_use]
pub fn secrets(build: BuildId) -> String {
    format!("{SECRETS}{build}")
}

/// Prefix of all builds that published in a repository. `@` is in no repository's name.
#[must_use]
pub fn images(repository: &Repository) -> String {
    format!("images/{repository}@")
}

#[must_use]
pub fn image(repository: &Repository, build: BuildId) -> String {
    format!("images/{repository}@{}", countdown(build.as_uuid()))
}

#[must_use]
pub fn worker(id: WorkerId) -> String {
    format!("{WORKERS}{id}")
}

#[must_use]
pub fn revoked(id: WorkerId) -> String {
    format!("{REVOKED}{id}")
}

/// The build that a key ends with, for keys that end with a plain or a counting-down id.
#[must_use]
pub fn build_of(key: &str) -> Option<BuildId> {
    let id = key.rsplit(['/', '@']).next()?;
    if id.contains('-') { id.parse().ok() } else { from_countdown(id).map(BuildId::from_uuid) }
}

#[must_use]
pub fn audit(id: AuditId) -> String {
    format!("{AUDIT}{}", countdown(id.as_uuid()))
}

/// The entry that a key under [`AUDIT`] is of.
#[must_use]
pub fn audit_of(key: &str) -> Option<AuditId> {
    key.strip_prefix(AUDIT).and_then(from_countdown).map(AuditId::from_uuid)
}

fn countdown(id: &Uuid) -> String {
    format!("{:032x}", !id.as_u128())
}

fn from_countdown(text: &str) -> Option<Uuid> {
    u128::from_str_radix(text, 16).ok().map(|inverted| Uuid::from_u128(!inverted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_builds_have_smaller_keys_and_read_back() {
        let (older, newer) = (BuildId::from_uuid(Uuid::from_u128(5)), BuildId::from_uuid(Uuid::from_u128(6)));
        assert!(newest(newer) < newest(older));
        assert_eq!(build_of(&newest(newer)), Some(newer));
        assert_eq!(build_of(&open(older)), Some(older));
        let repository: Repository = "r.example:5000/team/app".parse().expect("valid");
        assert_eq!(build_of(&image(&repository, older)), Some(older));
    }

    #[test]
    fn a_repository_s_images_are_not_those_of_one_below_it() {
        let (app, below): (Repository, Repository) =
            ("r.example/app".parse().expect("valid"), "r.example/app/sub".parse().expect("valid"));
        assert!(!images(&below).starts_with(&images(&app)));
    }
}
