//! The recent commits of one process, for watchers: a bounded history and a signal that it grew.
//!
//! Used by the stores that live in this process. Invariant: a watcher sees every commit from its start on, in order and
//! once, or an error that says it fell behind.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt, stream::BoxStream};
use tokio::sync::watch;

use super::{Change, Revision, StoreError};

/// Commits that are kept for watchers that start late or lag behind.
const HISTORY: usize = 1024;

#[derive(Debug)]
pub(super) struct History {
    commits: Arc<Mutex<Commits>>,
    newest: watch::Sender<Revision>,
}

#[derive(Debug)]
struct Commits {
    /// Every commit from this revision on is here.
    oldest: Revision,
    kept: VecDeque<(Revision, Arc<Vec<Change>>)>,
}

impl History {
    /// `revision` is the store's newest commit, which is not kept.
    pub(super) fn new(revision: Revision) -> Self {
        let commits = Commits { oldest: revision + 1, kept: VecDeque::new() };
        Self { commits: Arc::new(Mutex::new(commits)), newest: watch::Sender::new(revision) }
    }

    pub(super) fn newest(&self) -> Revision {
        *self.newest.borrow()
    }

    /// Called once for each commit, in order, after it is durable.
    pub(super) fn push(&self, revision: Revision, changes: Vec<Change>) {
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        commits.kept.push_back((revision, Arc::new(changes)));
        while commits.kept.len() > HISTORY {
            commits.kept.pop_front();
            commits.oldest = commits.kept.front().map_or(revision + 1, |(oldest, _)| *oldest);
        }
        drop(commits);
        self.newest.send_replace(revision);
    }

    pub(super) fn watch(&self, prefix: &str, from: Revision) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        let follower = Follower {
            commits: Arc::clone(&self.commits),
            newest: self.newest.subscribe(),
            prefix: prefix.to_owned(),
            next: from.max(1),
        };
        futures_util::stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            match follower.next().await? {
                Ok(changes) => Some((Ok(changes), Some(follower))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }
}

struct Follower {
    commits: Arc<Mutex<Commits>>,
    newest: watch::Receiver<Revision>,
    prefix: String,
    next: Revision,
}

impl Follower {
    /// `None` when the store is closed.
    async fn next(&mut self) -> Option<Result<Vec<Change>, StoreError>> {
        loop {
            self.newest.borrow_and_update();
            match self.take() {
                Ok(None) => self.newest.changed().await.ok()?,
                Ok(Some(changes)) => return Some(Ok(changes)),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The next commit that touched the prefix, if there is one yet.
    fn take(&mut self) -> Result<Option<Vec<Change>>, StoreError> {
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if self.next < commits.oldest {
            return Err(StoreError::Compacted { oldest: commits.oldest });
        }
        let start = commits.kept.partition_point(|(revision, _)| *revision < self.next);
        for (revision, changes) in commits.kept.range(start..) {
            self.next = revision + 1;
            let mine: Vec<Change> =
                changes.iter().filter(|change| change.key.starts_with(&self.prefix)).cloned().collect();
            if !mine.is_empty() {
                return Ok(Some(mine));
            }
        }
        Ok(None)
    }
}
