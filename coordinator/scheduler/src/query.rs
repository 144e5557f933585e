//! What the API may ask; nothing here changes anything. A build that is not found may be in the store: final builds leave
//! memory after a while.

use kiln_common::{BuildId, Grade, Platform, TaskId, Timestamp, WorkerId};

use crate::{
    event::WorkerStats,
    farm::{
        GRADES,
        worker::{Unready, Worker},
    },
    record::{BuildRecord, TaskRecord, TaskState, WorkerRecord},
    scheduler::Scheduler,
    slab::WorkerIx,
};

/// A worker as the farm sees it now.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerView<'a> {
    pub record: &'a WorkerRecord,
    pub state: WorkerState,
    /// Why it is in that state; empty where there is nothing to say.
    pub reason: String,
    pub slots: u32,
    /// Slots in use, those of attempts that are being stopped included.
    pub slots_used: usize,
    /// Tasks with a live attempt there.
    pub tasks: Vec<TaskId>,
    pub stats: WorkerStats,
    pub last_seen: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    Ready,
    Cordoned,
    Draining,
    Offline,
    Quarantined,
}

impl Scheduler {
    #[must_use]
    pub fn build(&self, id: BuildId) -> Option<&BuildRecord> {
        self.build_ids.get(&id).map(|at| &*self.builds[*at].record)
    }

    /// The tasks of a build, in the order of its spec; empty when it is not in memory.
    pub fn tasks_of(&self, id: BuildId) -> impl Iterator<Item = &TaskRecord> {
        let tasks = self.build_ids.get(&id).map(|at| self.builds[*at].tasks.as_slice()).unwrap_or_default();
        tasks.iter().map(|task| &*self.tasks[*task].record)
    }

    /// The build that a request id made, as long as the farm remembers it.
    #[must_use]
    pub fn requested(&self, request_id: &str) -> Option<BuildId> {
        self.requests.get(request_id).copied()
    }

    /// Builds that are not final.
    #[must_use]
    pub const fn open_builds(&self) -> usize {
        self.open
    }

    /// All builds in memory, by id: oldest first.
    pub fn builds(&self) -> impl Iterator<Item = &BuildRecord> {
        self.build_ids.values().map(|at| &*self.builds[*at].record)
    }

    /// Tasks that wait for a worker.
    #[must_use]
    pub fn waiting_tasks(&self) -> usize {
        self.queue.waiting()
    }

    /// All workers, by id.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView<'_>> {
        self.farm.by_id().into_iter().map(|at| self.view(at))
    }

    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<WorkerView<'_>> {
        self.farm.find(id).map(|at| self.view(at))
    }

    /// Every platform that a registered worker runs, with the best grade.
    #[must_use]
    pub fn platforms(&self) -> Vec<(Platform, Grade)> {
        let best = |platform: &Platform| {
            let entry = self.farm.platform(platform).map(|at| self.farm.entry(at))?;
            GRADES.into_iter().find(|grade| entry.is_known(*grade))
        };
        self.farm
            .available(&GRADES)
            .into_iter()
            .filter_map(|platform| best(&platform).map(|grade| (platform, grade)))
            .collect()
    }

    /// Whether the attempt is the current one of a task on this worker: what may fetch contexts and write logs.
    #[must_use]
    pub fn is_current(&self, worker: WorkerId, attempt: kiln_common::AttemptId) -> bool {
        self.farm.find(worker).is_some_and(|at| self.farm.workers[at].attempts.has(attempt))
    }

    fn view(&self, at: WorkerIx) -> WorkerView<'_> {
        let worker = &self.farm.workers[at];
        let (state, reason) = state_of(worker);
        WorkerView {
            record: &worker.record,
            state,
            reason,
            slots: worker.slots(),
            slots_used: worker.held(),
            tasks: worker.attempts.iter().map(|(_, task)| self.tasks[task].record.id).collect(),
            stats: worker.health.stats,
            last_seen: worker.health.last_seen,
        }
    }

    /// Why the task waits, in a sentence; `None` when it does not.
    #[must_use]
    pub fn waiting_reason(&self, task: &TaskRecord) -> Option<String> {
        match &task.state {
            TaskState::Waiting { .. } => {
                let build = self.build_ids.get(&task.build)?;
                let mut tasks = self.builds[*build].tasks.iter();
                tasks.find(|at| self.tasks[**at].record.id == task.id).map(|at| self.why_waiting(*at))
            }
            TaskState::Backoff { message, .. } => Some(format!("tried again in a moment, after: {message}")),
            TaskState::Assigned
            | TaskState::Running
            | TaskState::Shared { .. }
            | TaskState::Succeeded { .. }
            | TaskState::Failed { .. }
            | TaskState::Cancelled => None,
        }
    }
}

fn state_of(worker: &Worker) -> (WorkerState, String) {
    if let Some(quarantine) = &worker.record.quarantine
        && worker.is_online()
        && worker.record.cordon.is_none()
    {
        return (WorkerState::Quarantined, quarantine.reason.clone());
    }
    match worker.unready() {
        None => {
            let strained =
                worker.strained().map(|strained| format!("{strained}: it gets tasks only when no other can"));
            (WorkerState::Ready, strained.unwrap_or_default())
        }
        Some(Unready::Offline) => (WorkerState::Offline, String::new()),
        Some(unready @ Unready::Lost) => (WorkerState::Offline, unready.to_string()),
        Some(Unready::Leaving(reason)) => (WorkerState::Draining, reason.to_owned()),
        Some(Unready::Cordoned { reason, draining }) => {
            (if draining { WorkerState::Draining } else { WorkerState::Cordoned }, reason.to_owned())
        }
        Some(Unready::Quarantined(reason)) => (WorkerState::Quarantined, reason.to_owned()),
        Some(unready @ (Unready::LowDisk { .. } | Unready::LowMemory { .. } | Unready::MemoryPressure(_))) => {
            (WorkerState::Ready, unready.to_string())
        }
    }
}
