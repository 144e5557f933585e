//! How an attempt ended, and the report that says so.

use std::{any::Any, time::Duration};

use kiln_common::spec::ImageDescriptor;
use kiln_proto::v1::{AttemptCancelled, AttemptFailed, AttemptSucceeded, FailureKind, attempt_report::Outcome};

use crate::{engine::BuildError, logs::AttemptLog, slots::StopCause};

/// Longest message in a report; the log has the rest.
const MESSAGE_BYTES: usize = 8 * 1024;

/// A finished image.
#[derive(Debug)]
pub struct Built {
    pub image: ImageDescriptor,
    pub context_bytes_fetched: u64,
}

/// How the work on an attempt ended.
#[derive(Debug)]
pub enum End {
    Built(Result<Built, BuildError>),
    /// Its token was cancelled first.
    Stopped,
    TimedOut(Duration),
    /// A defect in Kiln.
    Panicked(String),
}

impl End {
    /// The final report. A stop that the coordinator did not ask for is the farm's failure, so that it tries again.
    pub fn report(self, cause: Option<&StopCause>, log_entries: u64, log: &AttemptLog) -> Outcome {
        let failed = |kind, mut message: String| {
            log.mask(&mut message);
            failed(kind, message, log_entries)
        };
        match self {
            Self::Built(Ok(built)) => Outcome::Succeeded(AttemptSucceeded {
                digest: built.image.digest.to_string(),
                media_type: built.image.media_type,
                size_bytes: built.image.size,
                log_entries,
                context_bytes_fetched: built.context_bytes_fetched,
                bases: built.image.bases.iter().map(ToString::to_string).collect(),
            }),
            Self::Built(Err(BuildError::Build(message))) => failed(FailureKind::Build, message),
            Self::Built(Err(BuildError::Infrastructure(message))) => failed(FailureKind::Infrastructure, message),
            Self::Built(Err(BuildError::Registry(message))) => failed(FailureKind::Registry, message),
            Self::Built(Err(BuildError::Cancelled)) | Self::Stopped => match cause {
                Some(StopCause::Told(_) | StopCause::Orphaned) => Outcome::Cancelled(AttemptCancelled {}),
                Some(StopCause::Exit) => failed(FailureKind::Infrastructure, "the worker was stopped".to_owned()),
                None => failed(FailureKind::Infrastructure, "the engine cancelled the build unasked".to_owned()),
            },
            Self::TimedOut(timeout) => failed(
                FailureKind::Build,
                format!("the build took longer than its timeout of {} s; raise it with --timeout", timeout.as_secs()),
            ),
            Self::Panicked(message) => {
                failed(FailureKind::Infrastructure, format!("a defect in the worker ended the attempt: {message}"))
            }
        }
    }
}

/// A failure that another worker may not have.
#[must_use]
pub fn infrastructure(message: String, log_entries: u64) -> Outcome {
    failed(FailureKind::Infrastructure, message, log_entries)
}

fn failed(kind: FailureKind, mut message: String, log_entries: u64) -> Outcome {
    if message.len() > MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
        message.push_str(" ...");
    }
    Outcome::Failed(AttemptFailed { kind: kind.into(), message, log_entries })
}

/// For the worker's own log.
#[must_use]
pub const fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Started(_) => "started",
        Outcome::Succeeded(_) => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Cancelled(_) => "cancelled",
    }
}

/// What a panic said.
#[must_use]
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
