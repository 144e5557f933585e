//! What waits: lanes of tasks, the flows that share them, and the clock that shares workers between platforms.

pub(crate) mod flow;
pub(crate) mod lane;

use std::collections::BTreeMap;

use kiln_common::Timestamp;

use self::{
    flow::{Flows, Tag},
    lane::{Lane, LaneKey, Mode, Order},
};
use crate::slab::{FlowIx, LaneIx, PlatformIx, SelectorIx, Slab};

/// Where a waiting task stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot {
    pub(crate) lane: LaneIx,
    pub(crate) flow: FlowIx,
    pub(crate) order: Order,
    pub(crate) cost: u64,
}

/// What waits for one platform.
#[derive(Debug, Default)]
pub(crate) struct PlatformQueue {
    /// Lanes that are not empty.
    pub(crate) lanes: Vec<LaneIx>,
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
    pub(crate) platforms: Vec<PlatformQueue>,
    pub(crate) flows: Flows,
    clock: Tag,
    sequence: u64,
}

impl Queue {
    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(crate) fn enqueue(&mut self, key: LaneKey, flow: FlowIx, order: Order, cost: u64, now: Timestamp) -> Spot {
        let at = key.platform.0 as usize;
        if at >= self.platforms.len() {
            self.platforms.resize_with(at + 1, PlatformQueue::default);
        }
        let lane = *self.by_key.entry(key).or_insert_with(|| self.lanes.insert(Lane::new(key)));
        self.flows.joined(flow);
        let platform = &mut self.platforms[at];
        if platform.waiting == 0 {
            platform.start = self.clock.max(platform.finish);
            platform.moved_at = now;
        }
        platform.waiting += 1;
        platform.cost += cost;
        if self.lanes[lane].is_empty() {
            platform.lanes.push(lane);
        }
        self.lanes[lane].insert(&self.flows, flow, order);
        Spot { lane, flow, order, cost }
    }

    /// Takes a task out: `served` when it goes to a worker at this cost, otherwise it is withdrawn.
    pub(crate) fn dequeue(&mut self, spot: &Spot, served: Option<u64>, now: Timestamp) {
        match served {
            Some(cost) => self.flows.served(spot.flow, cost),
            None => self.flows.left(spot.flow),
        }
        let lane = &mut self.lanes[spot.lane];
        lane.remove(&self.flows, spot.flow, &spot.order);
        let emptied = lane.is_empty();
        let platform = &mut self.platforms[lane.key.platform.0 as usize];
        platform.waiting -= 1;
        platform.cost -= spot.cost;
        if emptied {
            platform.lanes.retain(|at| *at != spot.lane);
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
