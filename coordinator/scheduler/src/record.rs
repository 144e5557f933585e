//! What the farm keeps of builds, tasks, attempts and workers. The store holds these as JSON; the API shows them.

use std::{collections::BTreeMap, sync::Arc};

use kiln_common::{
    AttemptId, BuildId, BuildSpec, Digest, FeatureSet, Grade, Platform, TaskId, Timestamp, WorkerId,
    spec::ImageDescriptor,
};
use serde::{Deserialize, Serialize};

/// One user request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecord {
    pub id: BuildId,
    /// The caller's own id of the request, where it gave one.
    pub request_id: Option<String>,
    /// Whose registry credentials it was given; `None` without any.
    #[serde(default)]
    pub credentials: Option<CredentialsMark>,
    /// Shared, for every attempt and every publish hands it on.
    pub spec: Arc<BuildSpec>,
    pub state: BuildState,
    /// In the order of the spec's platforms.
    pub tasks: Vec<TaskId>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// When the build fails by timeout: the spec's timeout after its submit, or after the last retry or backfill.
    pub deadline: Timestamp,
    /// Publishes begun so far; numbers them, so that the outcome of an abandoned one changes nothing.
    #[serde(default)]
    pub publishes: u32,
    /// What the tags name; kept when a later backfill runs.
    pub published: Option<Published>,
    /// Counts up with every change of this record. A build's changes as people see them are this plus its tasks' revisions.
    pub revision: u64,
}

/// Tells a build's registry credentials from others without telling them: equal marks, equal credentials. Whoever makes it
/// keys it, so that nobody who reads the store can try passwords against it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CredentialsMark(pub Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildState {
    /// No leg has started.
    Queued,
    /// At least one leg has started.
    Running,
    /// The required legs have their digests.
    Publishing { since: Timestamp },
    /// Final: every tag names the complete result.
    Succeeded,
    /// Final: every tag names a result without some optional platforms.
    Incomplete,
    /// Final.
    Failed { message: String },
    /// Final.
    Cancelled { reason: String },
}

impl BuildState {
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::Publishing { .. } => false,
            Self::Succeeded | Self::Incomplete | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// The state's name in messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Publishing { .. } => "publishing",
            Self::Succeeded => "succeeded",
            Self::Incomplete => "incomplete",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
        }
    }
}

/// What the tags of a build name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub digest: Digest,
    pub media_type: String,
    pub size: u64,
    /// The tags that name it; some only after a partial failure.
    pub tags: Vec<String>,
    /// Bytes of configuration and layers per platform, for listings.
    #[serde(default)]
    pub platform_sizes: BTreeMap<Platform, u64>,
    pub at: Timestamp,
}

/// One platform's leg.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    pub id: TaskId,
    pub build: BuildId,
    pub platform: Platform,
    pub required: bool,
    pub state: TaskState,
    /// Tries so far, the current one included.
    pub attempts: u32,
    /// The attempt that runs or ran last.
    pub attempt: Option<AttemptRecord>,
    /// Workers on which an attempt failed for infrastructure reasons: tried last.
    #[serde(default)]
    pub avoid: Vec<WorkerId>,
    /// Counts up with every change.
    #[serde(default)]
    pub revision: u64,
}

impl TaskRecord {
    /// Whether it has been on a worker since its build began (again), or is to avoid one.
    pub(crate) const fn is_tried(&self) -> bool {
        self.attempts > 0 || !self.avoid.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Waiting {
        since: Timestamp,
    },
    /// Given to its attempt's worker, which has not said yet that it started.
    Assigned,
    Running,
    /// It takes over what comes of an identical leg's attempt, which is on a worker.
    Shared {
        with: TaskId,
        build: BuildId,
    },
    /// An infrastructure failure; waiting again from `until` on.
    Backoff {
        until: Timestamp,
        message: String,
    },
    /// Final: the image is pushed by digest.
    Succeeded {
        image: Arc<ImageDescriptor>,
    },
    /// Final.
    Failed {
        message: String,
    },
    /// Final.
    Cancelled,
}

impl TaskState {
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Waiting { .. } | Self::Assigned | Self::Running | Self::Shared { .. } | Self::Backoff { .. } => false,
            Self::Succeeded { .. } | Self::Failed { .. } | Self::Cancelled => true,
        }
    }

    /// Whether an attempt of the task's own is on a worker.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        match self {
            Self::Assigned | Self::Running => true,
            Self::Waiting { .. }
            | Self::Shared { .. }
            | Self::Backoff { .. }
            | Self::Succeeded { .. }
            | Self::Failed { .. }
            | Self::Cancelled => false,
        }
    }
}

/// One try of a task on one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    pub id: AttemptId,
    pub worker: WorkerId,
    pub worker_name: Arc<str>,
    pub grade: Grade,
    /// Why this worker and this grade, for people; always set when the grade is emulated.
    pub reason: Arc<str>,
    pub assigned_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// When its worker is to give up: the end of the build for which it began.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
    /// The build for which it began, where that is another one with an identical leg.
    #[serde(default)]
    pub began_for: Option<BuildId>,
}

/// What the farm keeps of a worker across restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRecord {
    pub id: WorkerId,
    pub name: Arc<str>,
    pub joined_at: Timestamp,
    /// What it said last; `None` until its first session.
    pub facts: Option<WorkerFacts>,
    /// Set by an operator, kept over what the worker says.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Set by an operator, kept over what the worker says.
    #[serde(default)]
    pub slots: Option<u32>,
    #[serde(default)]
    pub cordon: Option<Cordon>,
    /// Set by the scheduler after repeated infrastructure failures.
    #[serde(default)]
    pub quarantine: Option<Quarantine>,
}

/// Why a worker takes no new task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cordon {
    pub reason: String,
    /// It is to finish what it has, and someone waits for that.
    pub draining: bool,
}

/// Why the farm does not trust a worker for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    pub reason: String,
    pub since: Timestamp,
    /// From then on it gets one task at a time; the first that does not fail for infrastructure reasons ends the quarantine.
    pub canary_at: Timestamp,
    /// Failed canaries so far; each doubles the wait.
    pub failed_canaries: u32,
}

/// What a worker says of itself when it registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerFacts {
    pub platforms: BTreeMap<Platform, Grade>,
    pub slots: u32,
    pub labels: BTreeMap<String, String>,
    pub features: FeatureSet,
    pub engine: EngineFacts,
    pub machine: MachineFacts,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// `dockerd-containerd`, `dockerd-classic` or `buildkitd`.
    pub kind: String,
    pub version: String,
}

/// The machine of a worker; sizes in bytes, 0 where unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFacts {
    pub cpu_model: String,
    pub cpus: u32,
    pub memory: u64,
    pub disk: u64,
    /// Below this much free disk the worker gets no task.
    #[serde(default)]
    pub disk_min: u64,
    pub kiln_version: String,
    pub os: String,
}
