//! Who watches builds and workers. Owned by the driver, which tells it each committed change between two turns.
//!
//! Invariant: a watcher gets what it watches as of its start and every committed state after it, in order; one that lags
//! more than `WATCH_QUEUE` behind is dropped with [`WatchEnd::Slow`], never buffered further.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::{Stream, StreamExt, stream};
use kiln_common::{BuildId, WorkerId, limits};
use kiln_scheduler::{BuildRecord, TaskRecord};
use tokio::sync::{broadcast, broadcast::error::RecvError};

use super::handle::WatchError;
use crate::store::records::BuildView;

/// Why a watch ended before what it watches did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    #[error("the watcher fell behind by more than {} changes; watch again", limits::WATCH_QUEUE)]
    Slow,
    #[error("the build has {} watchers, the most it may have; try again later", limits::WATCHERS_PER_BUILD)]
    TooMany,
}

/// A build as of the watch's start and its changes.
#[derive(Debug)]
pub struct BuildWatch {
    now: Arc<BuildView>,
    changes: broadcast::Receiver<Arc<BuildView>>,
}

impl BuildWatch {
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Arc<BuildView>, WatchError>> + Send {
        let first = stream::once(std::future::ready(Ok(self.now)));
        first.chain(follow(self.changes))
    }
}

/// Ids of workers that changed; the watcher asks for what it wants to know of them.
#[derive(Debug)]
pub struct WorkerWatch {
    changes: broadcast::Receiver<Arc<HashSet<WorkerId>>>,
}

impl WorkerWatch {
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Vec<WorkerId>, WatchError>> + Send {
        follow(self.changes).map(|changed| changed.map(|changed| changed.iter().copied().collect()))
    }
}

/// Until nothing will follow, or the watcher is too slow.
fn follow<T: Clone + Send + 'static>(
    changes: broadcast::Receiver<T>,
) -> impl Stream<Item = Result<T, WatchError>> + Send {
    stream::unfold(Some(changes), |changes| async move {
        let mut changes = changes?;
        match changes.recv().await {
            Ok(change) => Some((Ok(change), Some(changes))),
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(_)) => Some((Err(WatchEnd::Slow.into()), None)),
        }
    })
}

#[derive(Debug)]
pub(super) struct Hub {
    builds: HashMap<BuildId, Watched>,
    /// Watched builds that this turn changed.
    changed: HashSet<BuildId>,
    workers: broadcast::Sender<Arc<HashSet<WorkerId>>>,
    changed_workers: HashSet<WorkerId>,
}

#[derive(Debug)]
struct Watched {
    view: BuildView,
    changes: broadcast::Sender<Arc<BuildView>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            builds: HashMap::new(),
            changed: HashSet::new(),
            workers: broadcast::Sender::new(limits::WATCH_QUEUE),
            changed_workers: HashSet::new(),
        }
    }
}

impl Hub {
    /// The build's view, where somebody watches it already.
    pub(super) fn join(&self, build: BuildId) -> Option<Result<BuildWatch, WatchEnd>> {
        let watched = self.builds.get(&build)?;
        Some(if watched.changes.receiver_count() >= limits::WATCHERS_PER_BUILD {
            Err(WatchEnd::TooMany)
        } else {
            Ok(BuildWatch { now: Arc::new(watched.view.clone()), changes: watched.changes.subscribe() })
        })
    }

    /// The first watcher of a build; `view` is the build as committed now.
    pub(super) fn watch(&mut self, view: BuildView) -> BuildWatch {
        let (changes, receiver) = broadcast::channel(limits::WATCH_QUEUE);
        let now = Arc::new(view.clone());
        if !view.build.state.is_final() {
            self.builds.insert(view.build.id, Watched { view, changes });
        }
        BuildWatch { now, changes: receiver }
    }

    pub(super) fn watch_workers(&self) -> WorkerWatch {
        WorkerWatch { changes: self.workers.subscribe() }
    }

    pub(super) fn build_changed(&mut self, record: &BuildRecord) {
        if let Some(watched) = self.builds.get_mut(&record.id) {
            watched.view.build = record.clone();
            self.changed.insert(record.id);
        }
    }

    pub(super) fn task_changed(&mut self, record: &TaskRecord) {
        if let Some(watched) = self.builds.get_mut(&record.build) {
            match watched.view.tasks.iter_mut().find(|task| task.id == record.id) {
                Some(task) => *task = record.clone(),
                None => watched.view.tasks.push(record.clone()),
            }
            self.changed.insert(record.build);
        }
    }

    pub(super) fn worker_changed(&mut self, worker: WorkerId) {
        if self.workers.receiver_count() > 0 {
            self.changed_workers.insert(worker);
        }
    }

    /// Tells the watchers what the turn changed, once for each build; drops what is final or unwatched.
    pub(super) fn flush(&mut self) {
        for build in self.changed.drain() {
            let Some(watched) = self.builds.get(&build) else { continue };
            let unwatched = watched.changes.send(Arc::new(watched.view.clone())).is_err();
            if unwatched || watched.view.build.state.is_final() {
                self.builds.remove(&build);
            }
        }
        if !self.changed_workers.is_empty() {
            // Nobody listens any more: then nobody misses it.
            let _ = self.workers.send(Arc::new(std::mem::take(&mut self.changed_workers)));
        }
    }
}
