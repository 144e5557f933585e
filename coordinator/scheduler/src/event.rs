//! What can happen to the farm.

use std::sync::Arc;

use kiln_common::{AttemptId, BuildId, BuildSpec, Platform, WorkerId, spec::ImageDescriptor};

use crate::record::{BuildRecord, CredentialsMark, Published, TaskRecord, WorkerFacts, WorkerRecord};

/// Everything the scheduler hears of.
#[allow(clippy::large_enum_variant, reason = "events are handed in one by one and never stored in numbers")]
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// After a start, before all else: what the store held. Live attempts wait for their workers to announce them.
    Restore { builds: Vec<(BuildRecord, Vec<TaskRecord>)>, workers: Vec<WorkerRecord> },
    /// A checked request. Answered by [`crate::Effect::Accepted`] or [`crate::Effect::Refused`].
    Submit { build: BuildId, request_id: Option<String>, spec: Box<BuildSpec>, credentials: Option<CredentialsMark> },
    /// End a build. Final builds stay as they are.
    Cancel { build: BuildId, reason: String },
    /// Bring a final build back into memory, for a retry or a backfill of one that was forgotten. Nothing happens if it is there.
    Recall { build: Box<BuildRecord>, tasks: Vec<TaskRecord> },
    /// Run what failed of a failed or cancelled build again, keeping every digest. Answered as a submit is.
    /// The credentials of before are forgotten: these are what it has now.
    Retry { build: BuildId, credentials: Option<CredentialsMark> },
    /// Run the optional legs that an incomplete build lacks. Answered as a submit is.
    Backfill { build: BuildId, credentials: Option<CredentialsMark> },

    /// A worker traded a join token for a certificate.
    WorkerEnrolled { worker: WorkerRecord },
    /// A worker opened its session (again), or said anew what it is. When a new session replaces one that was not seen to
    /// end, `WorkerDisconnected` comes first: within a session an assignment may still be on its way to the worker.
    WorkerConnected { worker: WorkerId, facts: Box<WorkerFacts>, attempts: Vec<AttemptId> },
    /// A sign of life with what it measured.
    WorkerHeartbeat { worker: WorkerId, stats: WorkerStats },
    /// Its session ended, or its lease ran out.
    WorkerDisconnected { worker: WorkerId },
    /// It is about to stop: nothing new for it.
    WorkerLeaving { worker: WorkerId, reason: String },
    /// An operator changed its labels, its slots or its cordon.
    WorkerUpdated { worker: WorkerId, update: WorkerUpdate },
    /// An operator removed it.
    WorkerRemoved { worker: WorkerId },

    /// A worker's word on an attempt; ignored unless the attempt is the task's current one on that very worker.
    AttemptReported { worker: WorkerId, attempt: AttemptId, outcome: AttemptOutcome },

    /// The index is pushed and every tag names it.
    /// `publish` is the job's number; an outcome of any but the build's latest changes nothing.
    PublishSucceeded { build: BuildId, publish: u32, published: Published },
    /// The publish failed within its budget; some tags may have moved.
    PublishFailed { build: BuildId, publish: u32, published: Option<Published>, message: String },
    /// The publish found that images of these platforms are not in the registry, and moved no tag.
    LegsMissing { build: BuildId, publish: u32, platforms: Vec<Platform>, message: String },
}

/// How an attempt stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptOutcome {
    Started,
    Succeeded {
        image: Arc<ImageDescriptor>,
    },
    /// The user's own failure: final at once.
    BuildFailed {
        message: String,
    },
    /// The farm's failure: tried again elsewhere.
    InfrastructureFailed {
        message: String,
    },
    /// A registry's failure: tried again, elsewhere if possible, and not held against the worker. A user who mistypes a
    /// registry's name quarantines nobody.
    RegistryFailed {
        message: String,
    },
    Cancelled,
}

/// What a worker measures; sizes in bytes, `None` where it cannot tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WorkerStats {
    pub load1: f64,
    pub memory_available: Option<u64>,
    pub disk_available: Option<u64>,
    pub temperature_celsius: Option<f64>,
    pub throttled: bool,
    /// How much of the last ten seconds some task waited for a CPU, memory, input or output, in percent (Linux, PSI,
    /// `some avg10`); `None` where the kernel does not say.
    pub cpu_pressure: Option<f64>,
    pub memory_pressure: Option<f64>,
    pub io_pressure: Option<f64>,
    /// Build cache that it has pruned since it started.
    pub pruned: u64,
}

/// An operator's change of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerUpdate {
    Labels { set: Vec<(String, String)>, remove: Vec<String> },
    Slots(u32),
    Cordon { reason: String },
    Drain { reason: String },
    Uncordon,
}
