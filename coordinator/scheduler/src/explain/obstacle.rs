//! What keeps one worker from taking one task now.

use std::fmt;

use kiln_common::{EmulationPolicy, Grade, Platform};

use crate::{
    farm::{
        selector::Needs,
        strain::Strained,
        worker::{Unready, Worker},
    },
    queue::lane::Mode,
    scheduler::Scheduler,
    slab::{TaskIx, WorkerIx},
};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Obstacle<'a> {
    NoPlatform(&'a Platform),
    LacksFeatures(Vec<&'static str>),
    LacksLabel {
        key: &'a str,
        value: &'a str,
    },
    Unready(Unready<'a>),
    /// Quarantined, and either its canary runs or the task is none for a canary.
    NoCanary(&'a str),
    Full {
        held: usize,
        slots: u32,
    },
    FailedThere,
    LastResort(Strained),
    EmulationRuledOut(EmulationPolicy),
    /// In thousandths of the native time.
    EmulationSlower(u64),
}

impl Obstacle<'_> {
    /// The same for all workers with this obstacle.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::NoPlatform(_) => "does not run the platform",
            Self::LacksFeatures(_) => "lacks a feature",
            Self::LacksLabel { .. } => "lacks a label",
            Self::Unready(unready) => unready.name(),
            Self::NoCanary(_) => "quarantined",
            Self::Full { .. } => "full",
            Self::FailedThere => "failed there before",
            Self::LastResort(strained) => strained.name(),
            Self::EmulationRuledOut(_) => "emulation ruled out",
            Self::EmulationSlower(_) => "slower by emulation",
        }
    }

    /// How far the worker is from taking the task: a matter of time, of its state, or of what it is.
    pub(super) const fn distance(&self) -> u8 {
        match self {
            Self::Full { .. } | Self::FailedThere | Self::LastResort(_) | Self::EmulationSlower(_) => 0,
            Self::Unready(_) | Self::NoCanary(_) | Self::EmulationRuledOut(_) => 1,
            Self::LacksFeatures(_) | Self::LacksLabel { .. } => 2,
            Self::NoPlatform(_) => 3,
        }
    }
}

impl fmt::Display for Obstacle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlatform(platform) => write!(f, "does not run {platform}"),
            Self::LacksFeatures(features) => write!(f, "its engine lacks {}", features.join(", ")),
            Self::LacksLabel { key, value } => write!(f, "has no label {key}={value}"),
            Self::Unready(unready) => unready.fmt(f),
            Self::NoCanary(reason) => write!(f, "quarantined, one first try at a time: {reason}"),
            Self::Full { held, slots } => write!(f, "full: {held} of {slots} slots in use"),
            Self::FailedThere => f.write_str("an earlier attempt failed there; others are tried first"),
            Self::LastResort(strained) => write!(f, "{strained}; others are tried first"),
            Self::EmulationRuledOut(policy) => {
                write!(f, "would emulate, which --emulation {policy} does not allow now")
            }
            Self::EmulationSlower(slowdown) => write!(
                f,
                "would emulate, about {}.{} times slower: a native worker is predicted to finish earlier",
                slowdown / 1_000,
                slowdown % 1_000 / 100
            ),
        }
    }
}

impl Scheduler {
    /// What keeps the worker from taking the task now, the most lasting first; `None` when it could.
    pub(super) fn obstacle(&self, at: TaskIx, worker: WorkerIx) -> Option<Obstacle<'_>> {
        let (task, entry) = (&self.tasks[at], &self.farm.workers[worker]);
        let ties = self.builds[task.build].ties?;
        let selector = self.farm.selectors.get(ties.selector);
        let Some(grade) = entry.grade_of(task.platform) else {
            return Some(Obstacle::NoPlatform(&task.record.platform));
        };
        if let Some(lack) = lacks(&selector.needs, entry) {
            return Some(lack);
        }
        if task.worker() == Some(worker) {
            return None;
        }
        if let Some(unready) = entry.unready() {
            return Some(Obstacle::Unready(unready));
        }
        if let Some(quarantine) = &entry.record.quarantine
            && (entry.free_slots() == 0 || task.record.attempts > 0)
        {
            return Some(Obstacle::NoCanary(&quarantine.reason));
        }
        if entry.free_slots() == 0 {
            return Some(Obstacle::Full { held: entry.held(), slots: entry.slots() });
        }
        if !self.suits(at, worker) {
            return Some(Obstacle::FailedThere);
        }
        let strained = entry.strained().filter(|_| self.others_can(task.platform, &selector.members, grade));
        strained.map(Obstacle::LastResort).or_else(|| self.emulation_obstacle(at, worker, grade))
    }

    fn emulation_obstacle(&self, at: TaskIx, worker: WorkerIx, grade: Grade) -> Option<Obstacle<'_>> {
        let task = &self.tasks[at];
        if !grade.is_emulated() {
            return None;
        }
        match self.queue.mode(task.share()?) {
            Mode::Open => None,
            Mode::Closed => Some(Obstacle::EmulationRuledOut(self.builds[task.build].spec.emulation)),
            Mode::Auto if self.emulation_pays(at, worker) => None,
            Mode::Auto => Some(Obstacle::EmulationSlower(self.slowdown(at, worker))),
        }
    }
}

fn lacks<'a>(needs: &'a Needs, worker: &Worker) -> Option<Obstacle<'a>> {
    if !needs.features_met_by(worker) {
        let has = worker.record.facts.as_ref().map(|facts| &facts.features);
        let lacking = needs.features.iter().filter(|feature| has.is_none_or(|has| !has.contains(feature)));
        return Some(Obstacle::LacksFeatures(lacking.map(|feature| feature.name()).collect()));
    }
    let (key, value) = needs.labels.iter().find(|(key, value)| worker.label(key) != Some(value))?;
    Some(Obstacle::LacksLabel { key, value })
}
