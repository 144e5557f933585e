//! Lanes: waiting tasks that the same workers can take. A lane is one platform, one selector and one attitude to emulation.

use std::collections::{BTreeMap, BTreeSet};

use super::flow::{Flows, Tag};
use crate::slab::{FlowIx, LaneIx, PlatformIx, SelectorIx, TaskIx};

/// Whether a waiting task may go to an emulated worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// Not, or not yet.
    Closed,
    /// When it is predicted to be faster.
    Auto,
    /// As gladly as to any other.
    Open,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LaneKey {
    pub(crate) selector: SelectorIx,
    pub(crate) platform: PlatformIx,
    pub(crate) mode: Mode,
}

/// Place of a task within its flow: older and more important ones first.
///
/// A step of priority is worth [`AGING`] of waiting, so that a low priority is late and never starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    pub(crate) due: i64,
    pub(crate) sequence: u64,
    pub(crate) task: TaskIx,
    pub(crate) priority: i32,
}

/// Milliseconds of waiting that one step of priority is worth.
const AGING: i64 = 5 * 60 * 1000;
/// Virtual milliseconds of predicted work by which one step of priority goes before other projects.
const LEAD: Tag = 60 * 1000;

impl Order {
    pub(crate) fn new(created_millis: u64, priority: i32, sequence: u64, task: TaskIx) -> Self {
        let created = i64::try_from(created_millis).unwrap_or(i64::MAX / 2);
        Self { due: created - i64::from(priority) * AGING, sequence, task, priority }
    }
}

#[derive(Debug)]
struct Share {
    tasks: BTreeSet<Order>,
    /// As it stands in `heads`; the flow's own tag may have moved on since.
    key: Tag,
}

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) key: LaneKey,
    shares: BTreeMap<FlowIx, Share>,
    heads: BTreeSet<(Tag, FlowIx)>,
    len: usize,
}

/// A task that a lane would give next, and how urgent it is against other lanes of its platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) tag: Tag,
    pub(crate) task: TaskIx,
    pub(crate) lane: LaneIx,
}

/// A lane's first tasks that a worker is to avoid are passed over, but only so many.
const LOOK_PAST: usize = 8;

impl Lane {
    pub(crate) fn new(key: LaneKey) -> Self {
        Self { key, shares: BTreeMap::new(), heads: BTreeSet::new(), len: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn insert(&mut self, flows: &Flows, flow: FlowIx, order: Order) {
        let share = self.shares.entry(flow).or_insert_with(|| Share { tasks: BTreeSet::new(), key: 0 });
        let is_new = share.tasks.is_empty();
        share.tasks.insert(order);
        self.len += 1;
        if is_new || share.tasks.first() == Some(&order) {
            self.rekey(flows, flow);
        }
    }

    pub(crate) fn remove(&mut self, flows: &Flows, flow: FlowIx, order: &Order) -> bool {
        let Some(share) = self.shares.get_mut(&flow) else { return false };
        if !share.tasks.remove(order) {
            return false;
        }
        self.len -= 1;
        if share.tasks.is_empty() {
            self.heads.remove(&(share.key, flow));
            self.shares.remove(&flow);
        } else {
            self.rekey(flows, flow);
        }
        true
    }

    fn rekey(&mut self, flows: &Flows, flow: FlowIx) {
        let Some(share) = self.shares.get_mut(&flow) else { return };
        let Some(first) = share.tasks.first() else { return };
        let key = flows.get(flow).start - i64::from(first.priority) * LEAD;
        if key != share.key || !self.heads.contains(&(key, flow)) {
            self.heads.remove(&(share.key, flow));
            share.key = key;
            self.heads.insert((key, flow));
        }
    }

    /// The first acceptable task. Tags only grow while a flow waits, so a stale key is found when it comes first.
    pub(crate) fn first(&mut self, flows: &Flows, accept: impl Fn(TaskIx) -> bool) -> Option<(Tag, TaskIx)> {
        while let Some(&(key, flow)) = self.heads.first() {
            self.rekey(flows, flow);
            if self.heads.first() == Some(&(key, flow)) {
                break;
            }
        }
        let tasks = self.heads.iter().flat_map(|(key, flow)| {
            self.shares.get(flow).into_iter().flat_map(|share| &share.tasks).map(|order| (*key, order.task))
        });
        tasks.take(LOOK_PAST).find(|(_, task)| accept(*task))
    }

    /// The tasks of the lane's front, about in order.
    pub(crate) fn front(&self) -> Vec<TaskIx> {
        let shares = self.heads.iter().filter_map(|(_, flow)| self.shares.get(flow));
        shares.flat_map(|share| &share.tasks).map(|order| order.task).take(LOOK_PAST).collect()
    }

    /// The task that would have to wait longest.
    pub(crate) fn last(&self) -> Option<(Tag, TaskIx)> {
        let (key, flow) = self.heads.last()?;
        let order = self.shares.get(flow)?.tasks.last()?;
        Some((*key, order.task))
    }

    /// How many tasks of the lane go before this one, about.
    pub(crate) fn ahead_of(&self, flows: &Flows, flow: FlowIx, order: &Order, mean_cost: u64) -> usize {
        let mean = Tag::try_from(mean_cost.max(1)).unwrap_or(Tag::MAX);
        let before = self.shares.get(&flow).map_or(0, |share| share.tasks.range(..order).count());
        let own = Tag::try_from(before).unwrap_or(Tag::MAX).saturating_mul(mean);
        let due = flows.get(flow).start - i64::from(order.priority) * LEAD + own;
        let others = self.shares.iter().filter(|(at, _)| **at != flow).map(|(at, share)| {
            let start = share.tasks.first().map_or(0, |head| flows.get(*at).start - i64::from(head.priority) * LEAD);
            let served = if due > start { (due - start) / mean + 1 } else { 0 };
            usize::try_from(served).unwrap_or(usize::MAX).min(share.tasks.len())
        });
        before + others.sum::<usize>()
    }

    pub(crate) fn tasks(&self) -> impl Iterator<Item = (FlowIx, &Order)> {
        self.shares.iter().flat_map(|(flow, share)| share.tasks.iter().map(|order| (*flow, order)))
    }
}
