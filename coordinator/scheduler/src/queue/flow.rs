//! Flows: one project's share of one platform, after start-time fair queueing (Goyal, Vin, Cheng 1996).
//!
//! A flow's start tag is the virtual time at which its next task is due; serving a task moves it on by the task's predicted
//! cost. The flow with the least tag goes first, so each project gets its share whatever the others queue up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::slab::{FlowIx, PlatformIx, Slab};

/// Virtual milliseconds of predicted work.
pub(crate) type Tag = i64;

#[derive(Debug)]
pub(crate) struct Flow {
    platform: PlatformIx,
    project: Arc<str>,
    /// Tasks that refer to the flow and are not final.
    users: usize,
    pub(crate) waiting: usize,
    pub(crate) start: Tag,
    finish: Tag,
}

#[derive(Debug, Default)]
pub(crate) struct Flows {
    entries: Slab<FlowIx, Flow>,
    by_name: BTreeMap<(PlatformIx, Arc<str>), FlowIx>,
    /// Flows without users that are still ahead of their platform's clock: who empties its queue owes what it used.
    owing: BTreeSet<(PlatformIx, Tag, FlowIx)>,
    /// Virtual time by platform: the greatest start tag served.
    clocks: Vec<Tag>,
}

impl Flows {
    pub(crate) fn acquire(&mut self, platform: PlatformIx, project: &Arc<str>) -> FlowIx {
        let key = (platform, Arc::clone(project));
        let at = self.by_name.get(&key).copied().unwrap_or_else(|| {
            let at = self.entries.insert(Flow {
                platform,
                project: Arc::clone(project),
                users: 0,
                waiting: 0,
                start: 0,
                finish: Tag::MIN,
            });
            self.by_name.insert(key, at);
            at
        });
        let flow = &mut self.entries[at];
        if flow.users == 0 {
            self.owing.remove(&(platform, flow.finish, at));
        }
        flow.users += 1;
        at
    }

    pub(crate) fn release(&mut self, at: FlowIx) {
        let clock = self.clock(self.entries[at].platform);
        let flow = &mut self.entries[at];
        flow.users -= 1;
        if flow.users > 0 {
            return;
        }
        if flow.finish > clock {
            self.owing.insert((flow.platform, flow.finish, at));
        } else {
            self.forget(at);
        }
    }

    fn forget(&mut self, at: FlowIx) {
        if let Some(flow) = self.entries.remove(at) {
            self.by_name.remove(&(flow.platform, flow.project));
        }
    }

    pub(crate) fn get(&self, at: FlowIx) -> &Flow {
        &self.entries[at]
    }

    pub(crate) fn joined(&mut self, at: FlowIx) {
        let clock = self.clock(self.entries[at].platform);
        let flow = &mut self.entries[at];
        if flow.waiting == 0 {
            flow.start = clock.max(flow.finish);
        }
        flow.waiting += 1;
    }

    /// A task left the queue without being served.
    pub(crate) fn left(&mut self, at: FlowIx) {
        self.entries[at].waiting -= 1;
    }

    /// A task left the queue for a worker.
    pub(crate) fn served(&mut self, at: FlowIx, cost: u64) {
        let flow = &mut self.entries[at];
        flow.waiting -= 1;
        let (platform, start) = (flow.platform, flow.start);
        flow.finish = start.saturating_add(Tag::try_from(cost.max(1)).unwrap_or(Tag::MAX));
        flow.start = flow.finish;
        let clock = self.clock_mut(platform);
        if start > *clock {
            *clock = start;
            self.forgive(platform, start);
        }
    }

    /// Flows that the clock has caught up with owe nothing: a new flow would start where they do.
    fn forgive(&mut self, platform: PlatformIx, clock: Tag) {
        while let Some(&(of, finish, at)) = self.owing.range((platform, Tag::MIN, FlowIx(0))..).next() {
            if of != platform || finish > clock {
                break;
            }
            self.owing.remove(&(of, finish, at));
            self.forget(at);
        }
    }

    pub(crate) fn clock(&self, platform: PlatformIx) -> Tag {
        self.clocks.get(platform.0 as usize).copied().unwrap_or(0)
    }

    fn clock_mut(&mut self, platform: PlatformIx) -> &mut Tag {
        let at = platform.0 as usize;
        if at >= self.clocks.len() {
            self.clocks.resize(at + 1, 0);
        }
        &mut self.clocks[at]
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PlatformIx = PlatformIx(0);

    #[test]
    fn a_flow_that_used_more_starts_later_and_a_new_one_starts_now() {
        let mut flows = Flows::default();
        let (a, b) = (flows.acquire(P, &"a".into()), flows.acquire(P, &"b".into()));
        for _ in 0..3 {
            flows.joined(a);
        }
        flows.served(a, 100);
        flows.served(a, 100);
        flows.joined(b);
        assert_eq!((flows.get(a).start, flows.get(b).start, flows.clock(P)), (200, 100, 100));
    }

    #[test]
    fn emptying_the_queue_does_not_clear_what_a_flow_owes() {
        let mut flows = Flows::default();
        let a = flows.acquire(P, &"a".into());
        flows.joined(a);
        flows.served(a, 1_000);
        flows.release(a);
        let again = flows.acquire(P, &"a".into());
        flows.joined(again);
        assert_eq!(flows.get(again).start, 1_000);
    }

    #[test]
    fn flows_that_owe_nothing_are_forgotten() {
        let mut flows = Flows::default();
        for project in 0..100 {
            let at = flows.acquire(P, &format!("p{project}").into());
            flows.joined(at);
            flows.served(at, 10);
            flows.release(at);
        }
        assert_eq!(flows.len(), 100, "all have used a little, none is overtaken yet");
        let busy = flows.acquire(P, &"busy".into());
        for _ in 0..3 {
            flows.joined(busy);
            flows.served(busy, 10);
        }
        assert_eq!(flows.len(), 1);
    }
}
