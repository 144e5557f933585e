//! Builds and tasks as the scheduler holds them: the record, and what is derived from it.
//!
//! Records are shared with the effects that give them out: a change copies one only while a turn's effects still hold it.
//! What placement looks at stands beside them and is small: a farm's tasks do not fit into a processor's caches, and each
//! look elsewhere costs as much as the rest of a placement.

use std::sync::Arc;

use kiln_common::{BuildId, BuildSpec, Timestamp};

use crate::{
    legs::Legs,
    record::{BuildRecord, TaskRecord},
    slab::{AlikeIx, BuildIx, PlatformIx, ProjectIx, RepositoryIx, SelectorIx, ShareIx, TaskIx, WorkerIx},
};

#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) id: BuildId,
    pub(crate) record: Arc<BuildRecord>,
    /// The record's.
    pub(crate) spec: Arc<BuildSpec>,
    /// The record's.
    pub(crate) deadline: Timestamp,
    /// In the order of the spec.
    pub(crate) tasks: Vec<TaskIx>,
    /// Held while the build is not final.
    pub(crate) ties: Option<Ties>,
    pub(crate) legs: Legs,
    /// Its tasks' place in their queues: first by this moment, in milliseconds, then by the order in which builds opened.
    pub(crate) due: i64,
    pub(crate) sequence: u64,
    /// Another build asks for the same.
    pub(crate) has_twins: bool,
    /// How long its tasks have waited makes a difference to them.
    pub(crate) times_waits: bool,
    pub(crate) dirty: bool,
    /// Until when it waits for its optional legs, once the required ones are done.
    pub(crate) optional_until: Option<Timestamp>,
}

/// What a build that is not final refers to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ties {
    pub(crate) selector: SelectorIx,
    pub(crate) project: ProjectIx,
    pub(crate) repository: RepositoryIx,
    /// With the builds that ask for the same.
    pub(crate) alike: Option<AlikeIx>,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) record: Arc<TaskRecord>,
    pub(crate) build: BuildIx,
    pub(crate) platform: PlatformIx,
    pub(crate) place: Place,
    /// It has been on a worker, or is to avoid one: placement looks at the record.
    pub(crate) tried: bool,
    pub(crate) dirty: bool,
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Nowhere,
    /// Among the waiting.
    Queued(ShareIx),
    /// Its live attempt is on this worker.
    On(WorkerIx),
    /// It follows the attempt of an identical leg.
    Behind(TaskIx),
}

impl Build {
    pub(crate) fn record_mut(&mut self) -> &mut BuildRecord {
        Arc::make_mut(&mut self.record)
    }
}

impl Task {
    /// The worker of its live attempt.
    pub(crate) const fn worker(&self) -> Option<WorkerIx> {
        match self.place {
            Place::On(worker) => Some(worker),
            Place::Nowhere | Place::Queued(_) | Place::Behind(_) => None,
        }
    }

    /// The share of the queue where it waits.
    pub(crate) const fn share(&self) -> Option<ShareIx> {
        match self.place {
            Place::Queued(share) => Some(share),
            Place::Nowhere | Place::On(_) | Place::Behind(_) => None,
        }
    }

    pub(crate) fn follows(&self, leader: TaskIx) -> bool {
        self.place == Place::Behind(leader)
    }
}
