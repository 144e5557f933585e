//! Which attempt is on which worker right now: written by the driver after each commit, read by `sessions` to check what
//! a worker may fetch.
//!
//! Invariant: an attempt is in here only while it is its task's current one, as committed.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use kiln_common::{AttemptId, BuildId, BuildSpec, TaskId, WorkerId};
use kiln_scheduler::{TaskRecord, effect::Dispatch};

use crate::store::records::BuildView;

#[derive(Debug, Clone)]
pub struct LiveAttempt {
    pub build: BuildId,
    pub worker: WorkerId,
    pub spec: Arc<BuildSpec>,
}

#[derive(Debug, Default)]
pub struct Ledger {
    attempts: RwLock<Attempts>,
}

#[derive(Debug, Default)]
struct Attempts {
    live: HashMap<AttemptId, LiveAttempt>,
    of_task: HashMap<TaskId, AttemptId>,
}

impl Ledger {
    /// The attempt, while it is live.
    #[must_use]
    pub fn get(&self, attempt: AttemptId) -> Option<LiveAttempt> {
        self.attempts.read().unwrap_or_else(PoisonError::into_inner).live.get(&attempt).cloned()
    }

    /// After a start: the attempts that were live when the store was last written.
    pub(super) fn restore(&self, view: &BuildView) {
        for task in view.tasks.iter().filter(|task| task.state.is_live()) {
            if let Some(attempt) = &task.attempt {
                let live =
                    LiveAttempt { build: task.build, worker: attempt.worker, spec: Arc::clone(&view.build.spec) };
                self.insert(task.id, attempt.id, live);
            }
        }
    }

    pub(super) fn dispatched(&self, dispatch: &Dispatch) {
        let live = LiveAttempt { build: dispatch.build, worker: dispatch.worker, spec: Arc::clone(&dispatch.spec) };
        self.insert(dispatch.task, dispatch.attempt, live);
    }

    /// Forgets the task's attempt once it is over or superseded.
    pub(super) fn committed(&self, task: &TaskRecord) {
        let mut attempts = self.attempts.write().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = attempts.of_task.get(&task.id).copied() else { return };
        let goes_on = task.state.is_live() && task.attempt.as_ref().is_some_and(|attempt| attempt.id == known);
        if !goes_on {
            attempts.of_task.remove(&task.id);
            attempts.live.remove(&known);
        }
    }

    fn insert(&self, task: TaskId, attempt: AttemptId, live: LiveAttempt) {
        let mut attempts = self.attempts.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = attempts.of_task.insert(task, attempt) {
            attempts.live.remove(&earlier);
        }
        attempts.live.insert(attempt, live);
    }
}
