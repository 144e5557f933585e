//! Builds and tasks as the scheduler holds them: the record, and what is derived from it.

use std::sync::Arc;

use kiln_common::Timestamp;

use crate::{
    queue::Spot,
    record::{BuildRecord, TaskRecord},
    slab::{BuildIx, FlowIx, MemoryIx, PlatformIx, SelectorIx, TaskIx, WorkerIx},
};

#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) record: BuildRecord,
    /// In the order of the spec.
    pub(crate) tasks: Vec<TaskIx>,
    pub(crate) project: Arc<str>,
    /// Held while the build is not final.
    pub(crate) selector: Option<SelectorIx>,
    /// Until when it waits for its optional legs, once the required ones are done.
    pub(crate) optional_until: Option<Timestamp>,
    pub(crate) dirty: bool,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) record: TaskRecord,
    pub(crate) build: BuildIx,
    pub(crate) platform: PlatformIx,
    /// Held while the task is not final.
    pub(crate) ties: Option<Ties>,
    /// Its place among the waiting.
    pub(crate) spot: Option<Spot>,
    /// The worker of its live attempt.
    pub(crate) worker: Option<WorkerIx>,
    /// It may run emulated from then on.
    pub(crate) emulation_at: Option<Timestamp>,
    pub(crate) dirty: bool,
}

/// What a task that is not final refers to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ties {
    pub(crate) flow: FlowIx,
    pub(crate) memory: MemoryIx,
}
