//! What one turn collects, and the writes that it comes to.

use std::collections::{HashMap, HashSet};

use kiln_common::{BuildId, TaskId, WorkerId};
use kiln_scheduler::{BuildRecord, Effect, effect::Refusal};
use tokio::sync::oneshot;

use super::{
    handle::{Accepted, WatchError},
    hub::{BuildWatch, WorkerWatch},
    speakers::SessionId,
};
use crate::store::{StoreError, Txn, keys, records, records::Phase};

/// A turn before its commit.
#[derive(Default)]
pub(super) struct Turn {
    /// Commands that went into it.
    pub(super) taken: usize,
    pub(super) txn: Txn,
    /// Each with the session that its worker had when it was decided: what was meant for one never reaches a later one.
    pub(super) effects: Vec<(Effect, Option<SessionId>)>,
    pub(super) answers: Vec<Answer>,
    pub(super) done: Vec<oneshot::Sender<()>>,
    /// What is to be done on the committed state.
    pub(super) after: Vec<After>,
    pub(super) touched: HashSet<WorkerId>,
}

type Answer = (oneshot::Sender<Result<Accepted, Refusal>>, Result<Accepted, Refusal>);

/// Waits for the turn's commit.
pub(super) enum After {
    /// Tells what the state was when the question was taken up.
    Tell(Box<dyn FnOnce() + Send>),
    WatchBuild {
        build: BuildId,
        answer: oneshot::Sender<Result<BuildWatch, WatchError>>,
    },
    WatchWorkers {
        answer: oneshot::Sender<WorkerWatch>,
    },
}

impl Turn {
    pub(super) fn is_empty(&self) -> bool {
        self.taken == 0 && self.effects.is_empty()
    }
}

/// Which indexes the store has of each open build, so that a change that leaves them as they are does not write them again.
/// A build that is not in here has none that can be relied on.
#[derive(Debug, Default)]
pub(super) struct Indexed(HashMap<BuildId, Phase>);

impl Indexed {
    /// Puts the effects' records, indexes and deletions into the transaction. Of several states of one record the last one
    /// counts: the earlier ones are not even encoded.
    pub(super) fn stage(&mut self, txn: &mut Txn, effects: &[(Effect, Option<SessionId>)]) -> Result<(), StoreError> {
        let (mut builds, mut tasks) = (HashSet::<BuildId>::new(), HashSet::<TaskId>::new());
        let mut workers = HashSet::<WorkerId>::new();
        for (effect, _) in effects.iter().rev() {
            match effect {
                Effect::PutBuild(build) if builds.insert(build.id) => self.put_build(txn, build)?,
                Effect::PutTask(task) if tasks.insert(task.id) => records::put_task(txn, task)?,
                Effect::PutWorker(worker) if workers.insert(worker.id) => records::put_worker(txn, worker)?,
                Effect::DeleteWorker(worker) if workers.insert(*worker) => drop(txn.delete(keys::worker(*worker))),
                Effect::Finished { build } => drop(txn.delete(keys::secrets(*build))),
                Effect::Dispatch(dispatch) => records::put_attempt(txn, &records::Attempt::from(&**dispatch))?,
                Effect::PassOn(pass_on) => records::put_attempt(txn, &records::Attempt::from(&**pass_on))?,
                Effect::PutBuild(_)
                | Effect::PutTask(_)
                | Effect::PutWorker(_)
                | Effect::DeleteWorker(_)
                | Effect::Accepted { .. }
                | Effect::Refused { .. }
                | Effect::CancelAttempt { .. }
                | Effect::AcknowledgeReport { .. }
                | Effect::Adopted { .. }
                | Effect::CloseSession { .. }
                | Effect::Publish(_)
                | Effect::AbandonPublish { .. } => {}
            }
        }
        Ok(())
    }

    fn put_build(&mut self, txn: &mut Txn, build: &BuildRecord) -> Result<(), StoreError> {
        let phase = Phase::from(&build.state);
        let known = if build.state.is_final() { self.0.remove(&build.id) } else { self.0.insert(build.id, phase) };
        records::put_build(txn, build, known)
    }
}
