//! The contexts that were found complete lately, so that a build of the same one asks no disk.
//!
//! Invariant: what is in here was noted as used less than [`TOUCH_EVERY`] ago, and a collection keeps what was used within
//! twice that.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use kiln_common::{Timestamp, context::ContextDigest};

use super::complete::TOUCH_EVERY;

/// Roots that are kept; with more, all begin anew.
const MOST: usize = 4096;

/// Each with the moment of the use that the index has of it.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<HashMap<ContextDigest, Timestamp>>);

impl Recent {
    pub(super) fn has(&self, root: ContextDigest, now: Timestamp) -> bool {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&root).copied();
        used.is_some_and(|used| now.since(used) < TOUCH_EVERY)
    }

    /// After a collection that was applied.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn note(&self, root: ContextDigest, used: Timestamp) {
        let mut roots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if roots.len() >= MOST {
            roots.clear();
        }
        roots.insert(root, used);
    }
}

#[cfg(test)]
mod tests {
    use kiln_common::context::ChunkId;

    use super::*;

    #[test]
    fn a_use_counts_for_as_long_as_the_index_does_not_want_to_hear_of_the_next() {
        let (recent, at) = (Recent::default(), Timestamp::from_millis(1_000_000));
        let root = |number: u64| ContextDigest(ChunkId::of(&number.to_be_bytes()));
        recent.note(root(1), at);
        assert!(recent.has(root(1), at) && !recent.has(root(2), at));
        assert!(!recent.has(root(1), at + TOUCH_EVERY));
        (0..10_000).for_each(|number| recent.note(root(number), at));
        assert!(recent.0.lock().expect("sound").len() <= MOST);
    }
}
