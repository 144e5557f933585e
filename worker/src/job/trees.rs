//! The trees that attempts have open: legs of a build that run at once read one, decoded once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use kiln_common::{AttemptId, context::ContextDigest};
use tokio::sync::OnceCell;

use super::chunks::{LinkSource, Readers};
use crate::{
    context::{ContextError, ContextStore, ContextTree},
    session::Link,
};

/// All open trees of this worker.
pub struct OpenTrees {
    store: Arc<ContextStore>,
    link: Link,
    open: Mutex<BTreeMap<ContextDigest, Weak<Shared>>>,
}

#[derive(Default)]
struct Shared {
    readers: Arc<Readers>,
    tree: OnceCell<Arc<ContextTree>>,
}

/// A tree, open for one attempt until this is dropped.
pub struct OpenTree {
    pub tree: Arc<ContextTree>,
    _reading: Reading,
}

/// An attempt among the readers of a tree.
struct Reading {
    attempt: AttemptId,
    shared: Arc<Shared>,
}

impl OpenTrees {
    #[must_use]
    pub fn new(store: Arc<ContextStore>, link: Link) -> Self {
        Self { store, link, open: Mutex::default() }
    }

    #[must_use]
    pub const fn store(&self) -> &Arc<ContextStore> {
        &self.store
    }

    /// # Errors
    /// When the farm does not give a part of the manifest, or what it gives is none.
    pub async fn open(&self, digest: ContextDigest, attempt: AttemptId) -> Result<OpenTree, ContextError> {
        let reading = Reading::begin(self.shared(digest), attempt);
        let readers = &reading.shared.readers;
        let source = || Arc::new(LinkSource { link: self.link.clone(), readers: readers.clone() });
        let tree = reading.shared.tree.get_or_try_init(|| ContextTree::open(&self.store, source(), digest)).await?;
        Ok(OpenTree { tree: tree.clone(), _reading: reading })
    }

    fn shared(&self, digest: ContextDigest) -> Arc<Shared> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, shared| shared.strong_count() > 0);
        // Whoever comes after a failure tries anew.
        let usable = |shared: &Arc<Shared>| shared.tree.get().is_none_or(|tree| tree.failure().is_none());
        if let Some(shared) = open.get(&digest).and_then(Weak::upgrade).filter(usable) {
            return shared;
        }
        let shared = Arc::default();
        open.insert(digest, Arc::downgrade(&shared));
        shared
    }
}

impl Reading {
    fn begin(shared: Arc<Shared>, attempt: AttemptId) -> Self {
        shared.readers.add(attempt);
        Self { attempt, shared }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.shared.readers.remove(self.attempt);
    }
}
