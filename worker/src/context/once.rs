//! Chunks that were fetched once, as far as is remembered: the store keeps those that come a second time.
//!
//! Two generations bound it: when the younger is full, the older is forgotten.

use std::collections::HashSet;

use kiln_common::{context::ChunkId, limits};

/// Remembers between [`limits::CONTEXT_CHUNKS_ONCE`] and twice as many chunks, eight bytes of each.
#[derive(Debug, Default)]
pub(super) struct Once {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl Once {
    /// Whether this is the first time, as far as is remembered.
    pub(super) fn note(&mut self, id: ChunkId) -> bool {
        let name = id.short();
        if self.young.contains(&name) || self.old.contains(&name) {
            return false;
        }
        if self.young.len() >= limits::CONTEXT_CHUNKS_ONCE {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(seed: usize) -> ChunkId {
        ChunkId::of(&seed.to_le_bytes())
    }

    #[test]
    fn the_second_time_is_known_until_two_generations_have_passed() {
        let mut once = Once::default();
        assert!(once.note(chunk(0)) && !once.note(chunk(0)));
        (1..=limits::CONTEXT_CHUNKS_ONCE).for_each(|seed| assert!(once.note(chunk(seed))));
        assert!(!once.note(chunk(0)), "of the generation before");
        (1..=limits::CONTEXT_CHUNKS_ONCE).for_each(|seed| _ = once.note(chunk(1_000_000 + seed)));
        assert!(once.note(chunk(0)), "forgotten");
        assert!(once.young.len() + once.old.len() <= 2 * limits::CONTEXT_CHUNKS_ONCE);
    }
}
