//! Which attempt is on which worker right now: written by the driver after each commit, read by `sessions` to check what
//! a worker may fetch.
//!
//! Invariant: an attempt is in here only while it is its task's current one, as committed.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use kiln_common::{AttemptId, BuildId, BuildSpec, TaskId, WorkerId};
use kiln_scheduler::{
    Effect, TaskRecord,
    effect::{Dispatch, PassOn},
};

use crate::store::records::BuildView;

#[derive(Debug, Clone)]
pub struct LiveAttempt {
    pub build: BuildId,
    pub task: TaskId,
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
                let (worker, spec) = (attempt.worker, Arc::clone(&view.build.spec));
                self.insert(attempt.id, LiveAttempt { build: task.build, task: task.id, worker, spec });
            }
        }
    }

    /// What follows from an effect whose turn is committed.
    pub(super) fn concluded(&self, effect: &Effect) {
        match effect {
            Effect::PutTask(task) => self.committed(task),
            Effect::Dispatch(dispatch) => self.dispatched(dispatch),
            Effect::PassOn(pass_on) => self.passed_on(pass_on),
            Effect::PutBuild(_)
            | Effect::PutWorker(_)
            | Effect::DeleteWorker(_)
            | Effect::Accepted { .. }
            | Effect::Refused { .. }
            | Effect::CancelAttempt { .. }
            | Effect::AcknowledgeReport { .. }
            | Effect::Adopted { .. }
            | Effect::CloseSession { .. }
            | Effect::Publish(_)
            | Effect::AbandonPublish { .. }
            | Effect::Finished { .. } => {}
        }
    }

    fn dispatched(&self, dispatch: &Dispatch) {
        let Dispatch { build, task, worker, .. } = *dispatch;
        self.insert(dispatch.attempt, LiveAttempt { build, task, worker, spec: Arc::clone(&dispatch.spec) });
    }

    /// The attempt is another task's from now on; at no moment it is nobody's.
    pub(super) fn passed_on(&self, pass_on: &PassOn) {
        let PassOn { build, task, worker, .. } = *pass_on;
        self.insert(pass_on.attempt, LiveAttempt { build, task, worker, spec: Arc::clone(&pass_on.spec) });
    }

    /// Forgets the task's attempt once it is over or superseded.
    fn committed(&self, task: &TaskRecord) {
        let mut attempts = self.attempts.write().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = attempts.of_task.get(&task.id).copied() else { return };
        let goes_on = task.state.is_live() && task.attempt.as_ref().is_some_and(|attempt| attempt.id == known);
        if !goes_on {
            attempts.of_task.remove(&task.id);
            attempts.live.remove(&known);
        }
    }

    fn insert(&self, attempt: AttemptId, live: LiveAttempt) {
        let mut attempts = self.attempts.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = attempts.of_task.insert(live.task, attempt)
            && earlier != attempt
        {
            attempts.live.remove(&earlier);
        }
        let task = live.task;
        if let Some(before) = attempts.live.insert(attempt, live)
            && before.task != task
        {
            attempts.of_task.remove(&before.task);
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_common::{
        BuildSpec, Timestamp,
        context::{ChunkId, ContextDigest},
        spec::Dockerfile,
    };
    use kiln_scheduler::TaskState;

    use super::*;

    fn dispatch() -> Dispatch {
        let tree = ContextDigest(ChunkId::of(b"tree"));
        Dispatch {
            worker: WorkerId::generate(),
            worker_name: "w".into(),
            attempt: AttemptId::generate(),
            task: TaskId::generate(),
            build: BuildId::generate(),
            platform: "linux/amd64".parse().expect("a platform"),
            grade: kiln_common::Grade::Native,
            reason: "native worker".into(),
            spec: Arc::new(BuildSpec::bare(Dockerfile { tree, filename: "Dockerfile".into() })),
            deadline: Timestamp::from_millis(1),
            time_left: std::time::Duration::ZERO,
        }
    }

    fn ended(dispatch: &Dispatch) -> TaskRecord {
        TaskRecord {
            id: dispatch.task,
            build: dispatch.build,
            platform: dispatch.platform.clone(),
            required: true,
            state: TaskState::Cancelled,
            attempts: 1,
            attempt: None,
            avoid: Vec::new(),
            revision: 2,
        }
    }

    #[test]
    fn an_attempt_is_forgotten_with_its_task() {
        let (ledger, dispatch) = (Ledger::default(), dispatch());
        ledger.dispatched(&dispatch);
        assert_eq!(ledger.get(dispatch.attempt).map(|live| live.worker), Some(dispatch.worker));
        ledger.committed(&ended(&dispatch));
        assert!(ledger.get(dispatch.attempt).is_none());
    }

    #[test]
    fn an_attempt_that_is_passed_on_outlives_the_task_for_which_it_began() {
        let (ledger, dispatch) = (Ledger::default(), dispatch());
        let heir = PassOn {
            attempt: dispatch.attempt,
            worker: dispatch.worker,
            task: TaskId::generate(),
            build: BuildId::generate(),
            platform: dispatch.platform.clone(),
            spec: Arc::clone(&dispatch.spec),
        };
        ledger.dispatched(&dispatch);
        ledger.passed_on(&heir);
        ledger.committed(&ended(&dispatch));
        assert_eq!(ledger.get(dispatch.attempt).map(|live| live.build), Some(heir.build));
        ledger.passed_on(&heir);
        ledger.committed(&TaskRecord { id: heir.task, build: heir.build, ..ended(&dispatch) });
        assert!(ledger.get(dispatch.attempt).is_none());
    }
}
