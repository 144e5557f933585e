//! Builds, tasks and workers as the store holds them: JSON values, with the indexes that go along in the same transaction.
//!
//! The driver writes through [`put_build`] and its siblings; `api` and recovery read through the rest.

use bytes::Bytes;
use kiln_common::{AttemptId, BuildId, ImageReference, Platform, Repository, TaskId, WorkerId};
use kiln_scheduler::{
    BuildRecord, BuildState, TaskRecord, WorkerRecord,
    effect::{Dispatch, PassOn},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Entry, Store, StoreError, Txn, keys, scan};

/// A build with its tasks, in the order of the spec's platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildView {
    pub build: BuildRecord,
    pub tasks: Vec<TaskRecord>,
}

/// What a listing filters by, so that it need not read the builds that it leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub state: Phase,
    pub project: String,
    pub repositories: Vec<Repository>,
}

/// A build's state without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Queued,
    Running,
    Publishing,
    Succeeded,
    Incomplete,
    Failed,
    Cancelled,
}

impl From<&BuildState> for Phase {
    fn from(state: &BuildState) -> Self {
        match state {
            BuildState::Queued => Self::Queued,
            BuildState::Running => Self::Running,
            BuildState::Publishing { .. } => Self::Publishing,
            BuildState::Succeeded => Self::Succeeded,
            BuildState::Incomplete => Self::Incomplete,
            BuildState::Failed { .. } => Self::Failed,
            BuildState::Cancelled { .. } => Self::Cancelled,
        }
    }
}

/// One try of a task, kept also when it was superseded: its log has its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub id: AttemptId,
    pub build: BuildId,
    pub task: TaskId,
    pub platform: Platform,
    pub worker: WorkerId,
}

impl From<&Dispatch> for Attempt {
    fn from(dispatch: &Dispatch) -> Self {
        let Dispatch { attempt: id, build, task, worker, .. } = *dispatch;
        Self { id, build, task, platform: dispatch.platform.clone(), worker }
    }
}

/// Under the build that inherits it.
impl From<&PassOn> for Attempt {
    fn from(pass_on: &PassOn) -> Self {
        let PassOn { attempt: id, build, task, worker, .. } = *pass_on;
        Self { id, build, task, platform: pass_on.platform.clone(), worker }
    }
}

/// # Errors
/// [`StoreError::Malformed`] for a value that JSON cannot hold.
pub fn encode<T: Serialize>(key: &str, value: &T) -> Result<Bytes, StoreError> {
    let malformed =
        |error: serde_json::Error| StoreError::Malformed { key: key.to_owned(), problem: error.to_string() };
    serde_json::to_vec(value).map(Bytes::from).map_err(malformed)
}

/// # Errors
/// [`StoreError::Malformed`] for a value that is not such a record.
pub fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, StoreError> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Malformed { key: entry.key.clone(), problem: error.to_string() })
}

/// The build and every index that it is in. `indexed` is the phase with which the indexes have it already; they are left
/// alone as far as they would not change.
///
/// # Errors
/// See [`encode`].
pub fn put_build(txn: &mut Txn, build: &BuildRecord, indexed: Option<Phase>) -> Result<(), StoreError> {
    put(txn, keys::build(build.id), build)?;
    let phase = Phase::from(&build.state);
    if build.state.is_final() {
        txn.delete(keys::open(build.id));
    }
    let tags = build.published.iter().flat_map(|published| &published.tags);
    for tag in tags.filter_map(|tag| tag.parse::<ImageReference>().ok()) {
        txn.put(keys::image(tag.repository(), build.id), Bytes::new());
    }
    if indexed == Some(phase) {
        return Ok(());
    }
    let summary = Summary {
        state: phase,
        project: build.spec.project.clone(),
        repositories: build.spec.repositories().into_iter().cloned().collect(),
    };
    put(txn, keys::newest(build.id), &summary)?;
    if indexed.is_none() {
        if let Some(request_id) = &build.request_id {
            put(txn, keys::request(request_id), &build.id)?;
        }
        if !build.state.is_final() {
            txn.put(keys::open(build.id), Bytes::new());
        }
    }
    Ok(())
}

/// # Errors
/// See [`encode`].
pub fn put_task(txn: &mut Txn, task: &TaskRecord) -> Result<(), StoreError> {
    put(txn, keys::task(task.build, task.id), task)
}

/// # Errors
/// See [`encode`].
pub fn put_attempt(txn: &mut Txn, attempt: &Attempt) -> Result<(), StoreError> {
    put(txn, keys::attempt(attempt.build, attempt.id), attempt)?;
    put(txn, keys::attempt_build(attempt.id), &attempt.build)
}

/// # Errors
/// See [`encode`].
pub fn put_worker(txn: &mut Txn, worker: &WorkerRecord) -> Result<(), StoreError> {
    put(txn, keys::worker(worker.id), worker)
}

fn put<T: Serialize>(txn: &mut Txn, key: String, value: &T) -> Result<(), StoreError> {
    let value = encode(&key, value)?;
    txn.put(key, value);
    Ok(())
}

/// One build with its tasks; `None` when there is no such build.
///
/// # Errors
/// What the store says.
pub async fn build(store: &dyn Store, id: BuildId) -> Result<Option<BuildView>, StoreError> {
    let Some(entry) = store.get(&keys::build(id)).await? else { return Ok(None) };
    let build: BuildRecord = decode(&entry)?;
    let mut tasks: Vec<TaskRecord> =
        scan(store, &keys::tasks(id)).await?.iter().map(decode).collect::<Result<_, _>>()?;
    tasks.sort_by_key(|task| build.tasks.iter().position(|id| *id == task.id));
    Ok(Some(BuildView { build, tasks }))
}

/// Every attempt of a build, oldest first.
///
/// # Errors
/// What the store says.
pub async fn attempts(store: &dyn Store, build: BuildId) -> Result<Vec<Attempt>, StoreError> {
    scan(store, &keys::attempts(build)).await?.iter().map(decode).collect()
}

/// One attempt by its id alone.
///
/// # Errors
/// What the store says.
pub async fn attempt(store: &dyn Store, id: AttemptId) -> Result<Option<Attempt>, StoreError> {
    let Some(entry) = store.get(&keys::attempt_build(id)).await? else { return Ok(None) };
    let build: BuildId = decode(&entry)?;
    store.get(&keys::attempt(build, id)).await?.as_ref().map(decode).transpose()
}

/// Every build that is not final.
///
/// # Errors
/// What the store says.
pub async fn open_builds(store: &dyn Store) -> Result<Vec<BuildView>, StoreError> {
    let mut open = Vec::new();
    for id in scan(store, keys::OPEN).await?.iter().filter_map(|entry| keys::build_of(&entry.key)) {
        open.extend(build(store, id).await?);
    }
    Ok(open)
}

/// Every worker that joined and was not removed.
///
/// # Errors
/// What the store says.
pub async fn workers(store: &dyn Store) -> Result<Vec<WorkerRecord>, StoreError> {
    scan(store, keys::WORKERS).await?.iter().map(decode).collect()
}
