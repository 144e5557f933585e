//! Selectors: what a build asks of a worker beyond its platform, with the workers that have it. Builds that ask for the
//! same share one.

use std::collections::BTreeMap;

use kiln_common::{BuildSpec, FeatureSet};

use super::{bitset::WorkerSet, worker::Worker};
use crate::slab::{SelectorIx, Slab, WorkerIx};

/// What is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Needs {
    pub(crate) features: FeatureSet,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Needs {
    pub(crate) fn of(spec: &BuildSpec) -> Self {
        Self { features: spec.required_features(), labels: spec.required_labels.clone() }
    }

    pub(crate) fn features_met_by(&self, worker: &Worker) -> bool {
        self.features.is_empty()
            || worker.record.facts.as_ref().is_some_and(|facts| self.features.is_subset(&facts.features))
    }

    pub(crate) fn labels_met_by(&self, worker: &Worker) -> bool {
        self.labels.iter().all(|(key, value)| worker.label(key) == Some(value))
    }

    pub(crate) fn met_by(&self, worker: &Worker) -> bool {
        self.features_met_by(worker) && self.labels_met_by(worker)
    }
}

#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) needs: Needs,
    /// Registered workers that meet the needs, connected or not.
    pub(crate) members: WorkerSet,
    users: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Selectors {
    entries: Slab<SelectorIx, Selector>,
    by_needs: BTreeMap<Needs, SelectorIx>,
}

impl Selectors {
    /// The selector of these needs, with one more user.
    pub(crate) fn acquire(&mut self, needs: Needs, workers: &Slab<WorkerIx, Worker>) -> SelectorIx {
        if let Some(&index) = self.by_needs.get(&needs) {
            self.entries[index].users += 1;
            return index;
        }
        let mut members = WorkerSet::default();
        workers.iter().for_each(|(at, worker)| members.set(at, needs.met_by(worker)));
        let index = self.entries.insert(Selector { needs: needs.clone(), members, users: 1 });
        self.by_needs.insert(needs, index);
        index
    }

    /// One user less; true when that was the last and the selector is gone.
    pub(crate) fn release(&mut self, index: SelectorIx) -> bool {
        let selector = &mut self.entries[index];
        selector.users -= 1;
        if selector.users > 0 {
            return false;
        }
        if let Some(selector) = self.entries.remove(index) {
            self.by_needs.remove(&selector.needs);
        }
        true
    }

    /// The workers that meet the needs, where a build that is not final has them.
    pub(crate) fn members(&self, needs: &Needs) -> Option<&WorkerSet> {
        self.by_needs.get(needs).map(|index| &self.entries[*index].members)
    }

    pub(crate) fn get(&self, index: SelectorIx) -> &Selector {
        &self.entries[index]
    }

    /// A worker is new or says anew what it is; `None`: it is gone.
    pub(crate) fn update(&mut self, at: WorkerIx, worker: Option<&Worker>) {
        for index in self.by_needs.values() {
            let selector = &mut self.entries[*index];
            let member = worker.is_some_and(|worker| selector.needs.met_by(worker));
            selector.members.set(at, member);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
