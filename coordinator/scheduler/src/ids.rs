//! What is found by its id. A hash map for looking up alone: it is never walked, so its order is nobody's, and its hash is
//! fixed, so every run does the same. Ids are UUIDs of the farm's own making, random in their low half.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
};

#[derive(Debug)]
pub(crate) struct Ids<K, V>(HashMap<K, V, BuildHasherDefault<IdHasher>>);

impl<K, V> Default for Ids<K, V> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<K: Hash + Eq, V: Copy> Ids<K, V> {
    pub(crate) fn get(&self, id: K) -> Option<V> {
        self.0.get(&id).copied()
    }

    pub(crate) fn insert(&mut self, id: K, value: V) {
        self.0.insert(id, value);
    }

    pub(crate) fn remove(&mut self, id: K) {
        self.0.remove(&id);
    }
}

/// Folds and multiplies (as rustc's FxHash); the map looks at the low bits, which the last step fills from the high ones.
#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_be_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, hash::BuildHasher};

    use kiln_common::{Timestamp, WorkerId, id::IdSource};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn ids_spread_over_the_buckets_of_a_map() {
        let mut source = IdSource::new(1);
        let random: Vec<_> = (0..4_096).map(|_| source.next(Timestamp::from_millis(1_700_000_000_000))).collect();
        let counted: Vec<_> = (0..4_096).map(|number| Uuid::from_u64_pair(1, number)).collect();
        for ids in [random, counted] {
            let hasher = BuildHasherDefault::<IdHasher>::default();
            let bucket = |id: &Uuid| hasher.hash_one(WorkerId::from_uuid(*id)) % 8_192;
            let buckets: BTreeSet<_> = ids.iter().map(bucket).collect();
            assert!(buckets.len() > 2_500, "{} buckets for 4,096 ids", buckets.len());
        }
    }
}
