//! Lanes: waiting tasks that the same workers can take. A lane is one platform, one selector and one attitude to emulation;
//! each flow has a share of it.

use std::collections::{BTreeSet, VecDeque};

use kiln_common::Timestamp;

use super::flow::{Flows, Tag};
use crate::slab::{FlowIx, LaneIx, PlatformIx, SelectorIx, ShareIx, Slab, TaskIx};

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

/// Place of a build's task within its flow: older and more important ones first.
///
/// A step of priority is worth [`AGING`] of waiting, so that a low priority is late and never starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    pub(crate) due: i64,
    pub(crate) sequence: u64,
}

/// Milliseconds of waiting that one step of priority is worth.
const AGING: i64 = 5 * 60 * 1000;
/// Virtual milliseconds of predicted work by which one step of priority goes before other projects.
const LEAD: Tag = 60 * 1000;
/// A lane's first tasks that a worker is to avoid are passed over, but only so many.
const LOOK_PAST: usize = 8;

/// When a build of this priority that began then is due, in milliseconds.
pub(crate) fn due_of(created: Timestamp, priority: i32) -> i64 {
    i64::try_from(created.as_millis()).unwrap_or(i64::MAX / 2) - i64::from(priority) * AGING
}

/// A waiting task as its share holds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) order: Order,
    pub(crate) task: TaskIx,
    pub(crate) priority: i32,
    /// Predicted milliseconds of native work.
    pub(crate) cost: u64,
}

/// What one flow has waiting in one lane; never empty between two turns of the queue.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) lane: LaneIx,
    pub(crate) flow: FlowIx,
    /// In order. Almost all come at the back and leave at the front; a build has one task here at most, so that the farm's
    /// bound on open builds bounds what is moved for one that does not.
    pub(super) tasks: VecDeque<Waiting>,
    /// Virtual time by which the first task's priority brings it forward.
    lead: Tag,
    /// As it stands in the lane's `heads`; the flow's own tag may have moved on since.
    key: Tag,
}

impl Share {
    pub(crate) const fn new(lane: LaneIx, flow: FlowIx) -> Self {
        Self { lane, flow, tasks: VecDeque::new(), lead: 0, key: 0 }
    }

    /// When the share's first task is due in virtual time.
    fn due(&self, flows: &Flows) -> Tag {
        flows.get(self.flow).start - self.lead
    }

    fn place_of(&self, order: Order) -> Result<usize, usize> {
        match self.tasks.front() {
            Some(first) if first.order == order => Ok(0),
            Some(_) if self.tasks.back().is_some_and(|last| last.order < order) => Err(self.tasks.len()),
            Some(_) => self.tasks.binary_search_by_key(&order, |waiting| waiting.order),
            None => Err(0),
        }
    }

    /// The task of a build that is at this place of the queue.
    pub(crate) fn get(&self, order: Order) -> Option<&Waiting> {
        self.place_of(order).ok().and_then(|at| self.tasks.get(at))
    }

    fn insert(&mut self, waiting: Waiting) {
        let at = self.place_of(waiting.order).unwrap_or_else(|at| at);
        self.tasks.insert(at, waiting);
        self.note_first(at);
    }

    fn remove(&mut self, order: Order) -> Option<Waiting> {
        let at = self.place_of(order).ok()?;
        let waiting = self.tasks.remove(at)?;
        self.note_first(at);
        Some(waiting)
    }

    /// The task at this place is new or gone.
    fn note_first(&mut self, at: usize) {
        if at == 0 {
            self.lead = self.tasks.front().map_or(0, |first| Tag::from(first.priority) * LEAD);
        }
    }
}

pub(crate) type Shares = Slab<ShareIx, Share>;

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) key: LaneKey,
    heads: BTreeSet<(Tag, ShareIx)>,
    len: usize,
    /// Its place in its platform's list, while it is not empty.
    pub(super) listed: usize,
}

impl Lane {
    pub(crate) const fn new(key: LaneKey) -> Self {
        Self { key, heads: BTreeSet::new(), len: 0, listed: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn insert(&mut self, flows: &Flows, shares: &mut Shares, at: ShareIx, waiting: Waiting) {
        let share = &mut shares[at];
        let is_new = share.tasks.is_empty();
        share.insert(waiting);
        self.len += 1;
        if is_new {
            share.key = share.due(flows);
            self.heads.insert((share.key, at));
        } else {
            self.rekey(flows, shares, at);
        }
    }

    /// A share that has no task any more is out of the lane.
    pub(super) fn remove(&mut self, flows: &Flows, shares: &mut Shares, at: ShareIx, order: Order) -> Option<Waiting> {
        let share = &mut shares[at];
        let waiting = share.remove(order)?;
        self.len -= 1;
        if share.tasks.is_empty() {
            self.heads.remove(&(share.key, at));
        } else {
            self.rekey(flows, shares, at);
        }
        Some(waiting)
    }

    fn rekey(&mut self, flows: &Flows, shares: &mut Shares, at: ShareIx) {
        let share = &mut shares[at];
        let due = share.due(flows);
        if due != share.key {
            self.heads.remove(&(share.key, at));
            share.key = due;
            self.heads.insert((due, at));
        }
    }

    /// When the lane's first task is due; never later than that, for keys may be old.
    pub(crate) fn due(&self) -> Tag {
        self.heads.first().map_or(Tag::MAX, |(key, _)| *key)
    }

    /// Brings the first key up to date. Tags only grow while a flow waits, so an old key is found when it comes first.
    pub(super) fn refresh(&mut self, flows: &Flows, shares: &mut Shares) -> Tag {
        while let Some(&(key, share)) = self.heads.first() {
            self.rekey(flows, shares, share);
            if self.heads.first() == Some(&(key, share)) {
                break;
            }
        }
        self.due()
    }

    /// The tasks of the lane's front, about in order.
    pub(crate) fn front<'a>(&'a self, shares: &'a Shares) -> impl Iterator<Item = TaskIx> + 'a {
        let tasks = self.heads.iter().flat_map(|(_, share)| &shares[*share].tasks);
        tasks.map(|waiting| waiting.task).take(LOOK_PAST)
    }

    /// The task that would have to wait longest.
    pub(crate) fn last(&self, shares: &Shares) -> Option<TaskIx> {
        let (_, share) = self.heads.last()?;
        shares[*share].tasks.back().map(|waiting| waiting.task)
    }

    /// How many tasks of the lane go before the one at this place of a share, about; it need not be a share of this lane.
    pub(crate) fn ahead_of(
        &self,
        flows: &Flows,
        shares: &Shares,
        (at, order): (ShareIx, Order),
        mean_cost: u64,
    ) -> usize {
        let mean = Tag::try_from(mean_cost.max(1)).unwrap_or(Tag::MAX);
        let own = &shares[at];
        let before = own.place_of(order).unwrap_or_else(|at| at);
        let lead = own.tasks.get(before).map_or(0, |waiting| Tag::from(waiting.priority) * LEAD);
        let waits = Tag::try_from(before).unwrap_or(Tag::MAX).saturating_mul(mean);
        let due = (flows.get(own.flow).start - lead).saturating_add(waits);
        let others = self.heads.iter().filter(|(_, share)| *share != at).map(|(_, share)| {
            let (share, start) = (&shares[*share], shares[*share].due(flows));
            let served = if due > start { (due - start) / mean + 1 } else { 0 };
            usize::try_from(served).unwrap_or(usize::MAX).min(share.tasks.len())
        });
        let others = others.sum::<usize>();
        if self.heads.contains(&(own.key, at)) { before + others } else { others }
    }

    pub(crate) fn shares(&self) -> impl Iterator<Item = ShareIx> {
        self.heads.iter().map(|(_, share)| *share)
    }
}
