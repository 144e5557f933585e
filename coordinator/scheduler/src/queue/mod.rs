//! What waits: lanes of tasks, the flows that share them, and the clock that shares workers between platforms.

pub(crate) mod flow;
pub(crate) mod lane;

use std::collections::BTreeMap;

use kiln_common::Timestamp;

use self::{
    flow::{Flows, Tag},
    lane::{Lane, LaneKey, Mode, Order, Share, Shares, Waiting},
};
use crate::slab::{FlowIx, LaneIx, PlatformIx, SelectorIx, ShareIx, Slab, TaskIx};

/// A lane as its platform lists it: what a worker with room looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) lane: LaneIx,
    pub(crate) selector: SelectorIx,
    pub(crate) mode: Mode,
    /// When its first task is due, or earlier.
    pub(crate) due: Tag,
}

/// What waits for one platform.
#[derive(Debug, Default)]
pub(crate) struct PlatformQueue {
    /// Lanes that are not empty.
    pub(crate) lanes: Vec<Listed>,
    pub(crate) waiting: usize,
    /// Predicted milliseconds of native work.
    pub(crate) cost: u64,
    /// When a task was last served, or the queue was last empty.
    moved_at: Timestamp,
    /// Start tag against other platforms that the same workers run; as a flow's.
    pub(crate) start: Tag,
    finish: Tag,
}

impl PlatformQueue {
    /// Milliseconds for which tasks have waited and none was served.
    pub(crate) fn stuck(&self, now: Timestamp) -> u64 {
        if self.waiting == 0 { 0 } else { now.as_millis().saturating_sub(self.moved_at.as_millis()) }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) lanes: Slab<LaneIx, Lane>,
    by_key: BTreeMap<LaneKey, LaneIx>,
    pub(crate) shares: Shares,
    pub(crate) platforms: Vec<PlatformQueue>,
    pub(crate) flows: Flows,
    clock: Tag,
}

impl Queue {
    pub(crate) fn enqueue(&mut self, key: LaneKey, flow: FlowIx, waiting: Waiting, now: Timestamp) -> ShareIx {
        let at = key.platform.0 as usize;
        if at >= self.platforms.len() {
            self.platforms.resize_with(at + 1, PlatformQueue::default);
        }
        let lane = *self.by_key.entry(key).or_insert_with(|| self.lanes.insert(Lane::new(key)));
        let share = self.flows.share(flow, lane).unwrap_or_else(|| {
            let share = self.shares.insert(Share::new(lane, flow));
            self.flows.opened(flow, lane, share);
            share
        });
        self.flows.joined(flow);
        let platform = &mut self.platforms[at];
        if platform.waiting == 0 {
            platform.start = self.clock.max(platform.finish);
            platform.moved_at = now;
        }
        platform.waiting += 1;
        platform.cost += waiting.cost;
        let entry = &mut self.lanes[lane];
        if entry.is_empty() {
            entry.listed = platform.lanes.len();
            platform.lanes.push(Listed { lane, selector: key.selector, mode: key.mode, due: Tag::MAX });
        }
        entry.insert(&self.flows, &mut self.shares, share, waiting);
        platform.lanes[entry.listed].due = entry.due();
        share
    }

    /// Takes a task out: `served` when it goes to a worker at this cost, otherwise it is withdrawn.
    pub(crate) fn dequeue(&mut self, share: ShareIx, order: Order, served: Option<u64>, now: Timestamp) {
        let Share { lane: lane_at, flow, .. } = self.shares[share];
        match served {
            Some(cost) => self.flows.served(flow, cost),
            None => self.flows.left(flow),
        }
        let lane = &mut self.lanes[lane_at];
        let waiting = lane.remove(&self.flows, &mut self.shares, share, order);
        if self.shares[share].tasks.is_empty() {
            self.shares.remove(share);
            self.flows.closed(flow, lane_at);
        }
        let (listed, due) = (lane.listed, lane.due());
        let platform = &mut self.platforms[lane.key.platform.0 as usize];
        platform.waiting -= 1;
        platform.cost -= waiting.map_or(0, |waiting| waiting.cost);
        if lane.is_empty() {
            platform.lanes.swap_remove(listed);
            if let Some(moved) = platform.lanes.get(listed) {
                self.lanes[moved.lane].listed = listed;
            }
        } else {
            platform.lanes[listed].due = due;
        }
        if let Some(cost) = served {
            platform.moved_at = now;
            self.clock = self.clock.max(platform.start);
            platform.finish = platform.start.saturating_add(Tag::try_from(cost.max(1)).unwrap_or(Tag::MAX));
            platform.start = platform.finish;
        }
    }

    pub(crate) fn platform(&self, platform: PlatformIx) -> Option<&PlatformQueue> {
        self.platforms.get(platform.0 as usize)
    }

    /// The attitude to emulation of the lane where a task waits.
    pub(crate) fn mode(&self, share: ShareIx) -> Mode {
        self.lanes[self.shares[share].lane].key.mode
    }

    /// When the lane's first task is due, exactly.
    pub(crate) fn refresh(&mut self, lane: LaneIx) -> Tag {
        let entry = &mut self.lanes[lane];
        let due = entry.refresh(&self.flows, &mut self.shares);
        if !entry.is_empty() {
            self.platforms[entry.key.platform.0 as usize].lanes[entry.listed].due = due;
        }
        due
    }

    /// The tasks of the lane's front, about in order.
    pub(crate) fn front(&self, lane: LaneIx) -> impl Iterator<Item = TaskIx> {
        self.lanes[lane].front(&self.shares)
    }

    /// The task of the lane that would have to wait longest.
    pub(crate) fn last(&self, lane: LaneIx) -> Option<TaskIx> {
        self.lanes[lane].last(&self.shares)
    }

    /// How many tasks of the platform go before this one, about.
    pub(crate) fn ahead_of(&self, share: ShareIx, order: Order, platform: PlatformIx) -> usize {
        let Some(queue) = self.platform(platform) else { return 0 };
        let mean = queue.cost / (queue.waiting.max(1) as u64);
        let lanes = queue.lanes.iter().map(|listed| &self.lanes[listed.lane]);
        lanes.map(|lane| lane.ahead_of(&self.flows, &self.shares, (share, order), mean)).sum()
    }

    /// Everything that waits in the lane.
    pub(crate) fn waiting_in(&self, lane: LaneIx) -> impl Iterator<Item = (ShareIx, &Waiting)> {
        let shares = self.lanes[lane].shares();
        shares.flat_map(|at| self.shares[at].tasks.iter().map(move |waiting| (at, waiting)))
    }

    /// The selector is gone, and its lanes, empty by now, with it.
    pub(crate) fn forget_selector(&mut self, selector: SelectorIx) {
        let from = LaneKey { selector, platform: PlatformIx(0), mode: Mode::Closed };
        let to = LaneKey { selector, platform: PlatformIx(u32::MAX), mode: Mode::Open };
        let keys: Vec<_> = self.by_key.range(from..=to).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(lane) = self.by_key.remove(&key) {
                self.lanes.remove(lane);
            }
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.platforms.iter().map(|platform| platform.waiting).sum()
    }
}
