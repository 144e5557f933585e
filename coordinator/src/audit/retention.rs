//! How many entries are kept: the newest `most`, give or take one block, without counting them again and again.

use std::collections::VecDeque;

use kiln_common::id::AuditId;

use crate::store::{Store, StoreError, Txn, keys};

/// Entries that are forgotten together.
const BLOCK: usize = 1000;

/// The first id of every block of entries, oldest first.
#[derive(Debug)]
pub(super) struct Retention {
    blocks: VecDeque<AuditId>,
    /// Entries of the newest block.
    newest: usize,
    most: usize,
}

impl Retention {
    /// Counts what is there.
    pub(super) async fn load(store: &dyn Store, most: usize) -> Result<Self, StoreError> {
        let mut retention = Self { blocks: VecDeque::new(), newest: 0, most };
        let mut ids = Vec::new();
        let mut after = None;
        loop {
            let page = store.range(keys::AUDIT, after.as_deref(), BLOCK).await?;
            ids.extend(page.iter().filter_map(|entry| keys::audit_of(&entry.key)));
            if page.len() < BLOCK {
                break;
            }
            after = page.into_iter().next_back().map(|entry| entry.key);
        }
        ids.into_iter().rev().for_each(|id| retention.count(id));
        Ok(retention)
    }

    fn count(&mut self, id: AuditId) {
        if self.blocks.is_empty() || self.newest == BLOCK {
            self.blocks.push_back(id);
            self.newest = 0;
        }
        self.newest += 1;
    }

    /// Counts what was written, and forgets the oldest block when there are too many.
    pub(super) async fn wrote(
        &mut self,
        store: &dyn Store,
        ids: impl Iterator<Item = AuditId>,
    ) -> Result<(), StoreError> {
        ids.for_each(|id| self.count(id));
        while self.blocks.len() > self.most.div_ceil(BLOCK) + 1 {
            self.blocks.pop_front();
            if let Some(kept) = self.blocks.front() {
                forget_before(store, *kept).await?;
            }
        }
        Ok(())
    }
}

/// Newer entries have smaller keys: what lies after the oldest kept one goes.
async fn forget_before(store: &dyn Store, kept: AuditId) -> Result<(), StoreError> {
    let kept = keys::audit(kept);
    loop {
        let page = store.range(keys::AUDIT, Some(&kept), BLOCK).await?;
        if page.is_empty() {
            return Ok(());
        }
        let mut txn = Txn::new();
        for entry in page {
            txn.delete(entry.key);
        }
        store.commit(txn).await?;
    }
}
