//! What the scheduler wants done.

use std::{sync::Arc, time::Duration};

use kiln_common::{
    AttemptId, BuildId, BuildSpec, Grade, Platform, TaskId, Timestamp, WorkerId,
    spec::{ImageDescriptor, Violation},
};

use crate::record::{BuildRecord, Published, TaskRecord, WorkerRecord};

/// A record to commit, or an act once the turn is committed. Order matters: effects are carried out as they come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    PutBuild(Arc<BuildRecord>),
    PutTask(Arc<TaskRecord>),
    PutWorker(Box<WorkerRecord>),
    DeleteWorker(WorkerId),

    /// Answer a submit, a retry or a backfill: the build is durable. Its id differs from the submit's own where an earlier
    /// submit with the same request id had made it.
    Accepted {
        build: BuildId,
    },
    /// Answer a submit, a retry or a backfill: nothing was made or changed.
    Refused {
        build: BuildId,
        refusal: Box<Refusal>,
    },

    /// Send the assignment over the worker's session.
    Dispatch(Box<Dispatch>),
    /// The attempt goes on for another build with an identical leg, for its own has ended.
    PassOn(Box<PassOn>),
    /// Tell the worker to stop the attempt. Also sent for attempts that a worker announces and that are not its own any more.
    CancelAttempt {
        worker: WorkerId,
        attempt: AttemptId,
        reason: String,
    },
    /// Tell the worker that its final report is durable.
    AcknowledgeReport {
        worker: WorkerId,
        attempt: AttemptId,
    },
    /// Answer a worker's registration: of the attempts that it announced, these go on.
    Adopted {
        worker: WorkerId,
        attempts: Vec<AttemptId>,
    },

    /// End the worker's session: it was given up or removed. One that may return connects again and says what it has.
    CloseSession {
        worker: WorkerId,
        reason: String,
    },

    /// Merge the legs and move the tags.
    Publish(Box<PublishJob>),
    /// Stop publishing; nothing may move any more.
    AbandonPublish {
        build: BuildId,
    },
    /// The build is final: its secrets and credentials are to be forgotten.
    Finished {
        build: BuildId,
    },
}

/// Why a submit was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no worker of this farm runs {platform}; it has {}", list(.available))]
    NoWorkerForPlatform { platform: Platform, available: Vec<Platform> },
    #[error(
        "this farm runs {platform} only emulated, which --emulation never rules out; allow emulation or join a worker that runs it natively"
    )]
    OnlyEmulated { platform: Platform },
    #[error("no worker for {platform} can do what {asked_by} needs: {detail}")]
    NoWorkerWithFeature { platform: Platform, asked_by: String, detail: String },
    #[error("no worker for {platform} carries the required labels {labels}; remove --require or label a worker")]
    NoWorkerWithLabels { platform: Platform, labels: String },
    #[error("the farm holds {open} open builds, the most it may; try again later")]
    Overloaded { open: usize },
    #[error("there is no build {build}")]
    UnknownBuild { build: BuildId },
    #[error("build {build} is {state}; only {remedy}")]
    WrongState { build: BuildId, state: &'static str, remedy: &'static str },
    #[error("the spec is not sound")]
    Invalid { violations: Vec<Violation> },
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "no workers yet".to_owned();
    }
    platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One attempt to send to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    pub worker: WorkerId,
    pub worker_name: Arc<str>,
    pub attempt: AttemptId,
    pub task: TaskId,
    pub build: BuildId,
    pub platform: Platform,
    pub grade: Grade,
    pub reason: Arc<str>,
    pub spec: Arc<BuildSpec>,
    /// When the build runs out of time, and the attempt with it.
    pub deadline: Timestamp,
    /// Until then: what the worker is told, for its clock may say anything.
    pub time_left: Duration,
}

/// An attempt that another build inherits. Its worker does not notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassOn {
    pub attempt: AttemptId,
    pub worker: WorkerId,
    /// Whose it is now.
    pub task: TaskId,
    pub build: BuildId,
    pub platform: Platform,
    pub spec: Arc<BuildSpec>,
}

/// What the publisher needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishJob {
    pub build: BuildId,
    /// Number of this publish of the build, from 1; its outcome is reported with it.
    pub publish: u32,
    pub spec: Arc<BuildSpec>,
    /// Finished legs in the order of the spec.
    pub legs: Vec<Leg>,
    /// What an earlier publish of this build left, for a retry or a backfill.
    pub earlier: Option<Published>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    pub platform: Platform,
    pub image: Arc<ImageDescriptor>,
    pub grade: Grade,
}
