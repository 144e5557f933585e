//! The attempts of one worker that may complete their tasks: as many as it has slots, so a list, and the first of them beside
//! the worker itself, for most have one.

use kiln_common::AttemptId;

use crate::slab::TaskIx;

#[derive(Debug, Default)]
pub(crate) struct Held {
    first: Option<(AttemptId, TaskIx)>,
    others: Vec<(AttemptId, TaskIx)>,
}

impl Held {
    pub(crate) fn get(&self, attempt: AttemptId) -> Option<TaskIx> {
        self.iter().find(|(held, _)| *held == attempt).map(|(_, task)| task)
    }

    pub(crate) fn has(&self, attempt: AttemptId) -> bool {
        self.get(attempt).is_some()
    }

    pub(crate) fn insert(&mut self, attempt: AttemptId, task: TaskIx) {
        match self.first {
            None => self.first = Some((attempt, task)),
            Some(_) => self.others.push((attempt, task)),
        }
    }

    /// The attempt is another task's from now on.
    pub(crate) fn pass(&mut self, attempt: AttemptId, to: TaskIx) {
        let mut all = self.first.iter_mut().chain(&mut self.others);
        if let Some((_, task)) = all.find(|(held, _)| *held == attempt) {
            *task = to;
        }
    }

    pub(crate) fn remove(&mut self, attempt: AttemptId) {
        if self.first.is_some_and(|(held, _)| held == attempt) {
            self.first = self.others.pop();
        } else {
            self.others.retain(|(held, _)| *held != attempt);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (AttemptId, TaskIx)> {
        self.first.iter().chain(&self.others).copied()
    }

    pub(crate) const fn len(&self) -> usize {
        if self.first.is_some() { 1 + self.others.len() } else { 0 }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_attempt_is_found_whatever_went_before_it() {
        let attempt = |number| AttemptId::from_uuid(Uuid::from_u64_pair(3, number));
        let mut held = Held::default();
        (0..4).for_each(|number| held.insert(attempt(u64::from(number)), TaskIx(number)));
        held.remove(attempt(0));
        held.remove(attempt(2));
        held.pass(attempt(1), TaskIx(9));
        let found: Vec<_> = (0..4).map(|number| held.get(attempt(number))).collect();
        assert_eq!(found, [None, Some(TaskIx(9)), None, Some(TaskIx(3))]);
        assert_eq!((held.len(), held.iter().count()), (2, 2));
        held.remove(attempt(1));
        held.remove(attempt(3));
        assert!(held.is_empty());
    }
}
