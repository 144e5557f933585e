//! Sets of workers as bits, so that "free, and able to do what the lane asks" is a few words ANDed together.

use crate::slab::WorkerIx;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WorkerSet {
    words: Vec<u64>,
    len: usize,
}

impl WorkerSet {
    pub(crate) fn set(&mut self, worker: WorkerIx, member: bool) {
        let (word, bit) = position(worker);
        if word >= self.words.len() {
            if !member {
                return;
            }
            self.words.resize(word + 1, 0);
        }
        let was = self.words[word] & bit != 0;
        if was == member {
            return;
        }
        self.words[word] ^= bit;
        if member { self.len += 1 } else { self.len -= 1 }
    }

    pub(crate) fn contains(&self, worker: WorkerIx) -> bool {
        let (word, bit) = position(worker);
        self.words.get(word).is_some_and(|bits| bits & bit != 0)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// How many workers are in both sets.
    pub(crate) fn common(&self, other: &Self) -> usize {
        if self.len == 0 || other.len == 0 {
            return 0;
        }
        self.words.iter().zip(&other.words).map(|(a, b)| (a & b).count_ones() as usize).sum()
    }

    /// Whether any worker is in both sets.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.len > 0 && other.len > 0 && self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// The first worker at or after `from`, and then around, that is in both sets and accepted.
    pub(crate) fn first_common(
        &self,
        other: &Self,
        from: u32,
        mut accept: impl FnMut(WorkerIx) -> bool,
    ) -> Option<WorkerIx> {
        let words = self.words.len().min(other.words.len());
        if self.len == 0 || other.len == 0 || words == 0 {
            return None;
        }
        let start = (from as usize / 64) % words;
        let low = if from as usize / 64 < words { from % 64 } else { 0 };
        // The word where the search starts is visited twice: its high bits first, its low bits last.
        for step in 0..=words {
            let at = (start + step) % words;
            let mask = match step {
                0 => u64::MAX << low,
                last if last == words => !(u64::MAX << low),
                _ => u64::MAX,
            };
            let mut bits = self.words[at] & other.words[at] & mask;
            while bits != 0 {
                let worker = WorkerIx(u32::try_from(at * 64).unwrap_or(u32::MAX) + bits.trailing_zeros());
                if accept(worker) {
                    return Some(worker);
                }
                bits &= bits - 1;
            }
        }
        None
    }
}

const fn position(worker: WorkerIx) -> (usize, u64) {
    (worker.0 as usize / 64, 1 << (worker.0 % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(members: &[u32]) -> WorkerSet {
        let mut set = WorkerSet::default();
        members.iter().for_each(|member| set.set(WorkerIx(*member), true));
        set
    }

    #[test]
    fn the_search_goes_around_and_finds_each_common_worker() {
        let (a, b) = (set(&[3, 70, 130, 200]), set(&[3, 70, 131, 200]));
        let found = |from| a.first_common(&b, from, |_| true).map(|worker| worker.0);
        assert_eq!([found(0), found(4), found(71), found(201), found(9_999)], [3, 70, 200, 3, 3].map(Some));
        assert_eq!(a.first_common(&b, 0, |worker| worker.0 == 200), Some(WorkerIx(200)));
        assert_eq!(a.first_common(&b, 70, |_| false), None);
        assert_eq!(a.common(&b), 3);
    }

    #[test]
    fn the_length_counts_members_once() {
        let mut a = set(&[1, 1, 2]);
        assert_eq!(a.len(), 2);
        a.set(WorkerIx(500), false);
        a.set(WorkerIx(1), false);
        a.set(WorkerIx(1), false);
        assert_eq!(a.len(), 1);
        assert!(!a.contains(WorkerIx(1)) && a.contains(WorkerIx(2)) && !a.is_empty());
    }
}
