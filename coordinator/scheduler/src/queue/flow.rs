//! Flows: one project's share of one platform, after start-time fair queueing (Goyal, Vin, Cheng 1996).
//!
//! A flow's start tag is the virtual time at which its next task is due; serving a task moves it on by the task's predicted
//! cost. The flow with the least tag goes first, so each project gets its share whatever the others queue up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::slab::{FlowIx, LaneIx, PlatformIx, ProjectIx, ShareIx, Slab};

/// Virtual milliseconds of predicted work.
pub(crate) type Tag = i64;

#[derive(Debug)]
pub(crate) struct Flow {
    platform: PlatformIx,
    project: ProjectIx,
    pub(crate) waiting: usize,
    pub(crate) start: Tag,
    finish: Tag,
    /// Where it has tasks waiting: one or two lanes.
    shares: Vec<(LaneIx, ShareIx)>,
}

#[derive(Debug)]
struct Project {
    name: Arc<str>,
    /// Builds that are not final.
    builds: usize,
    flows: Vec<(PlatformIx, FlowIx)>,
}

#[derive(Debug, Default)]
pub(crate) struct Flows {
    entries: Slab<FlowIx, Flow>,
    projects: Slab<ProjectIx, Project>,
    by_name: BTreeMap<Arc<str>, ProjectIx>,
    /// Flows of projects without builds that are still ahead of their platform's clock: who empties its queue owes what it
    /// used.
    owing: BTreeSet<(PlatformIx, Tag, FlowIx)>,
    /// Virtual time by platform: the greatest start tag served.
    clocks: Vec<Tag>,
}

impl Flows {
    /// The project of this name, with one more build.
    pub(crate) fn acquire(&mut self, name: &str) -> ProjectIx {
        let at = self.by_name.get(name).copied().unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            let at = self.projects.insert(Project { name: Arc::clone(&name), builds: 0, flows: Vec::new() });
            self.by_name.insert(name, at);
            at
        });
        let project = &mut self.projects[at];
        if project.builds == 0 {
            for (platform, flow) in &project.flows {
                self.owing.remove(&(*platform, self.entries[*flow].finish, *flow));
            }
        }
        project.builds += 1;
        at
    }

    pub(crate) fn release(&mut self, at: ProjectIx) {
        let project = &mut self.projects[at];
        project.builds -= 1;
        if project.builds > 0 {
            return;
        }
        for (platform, flow) in std::mem::take(&mut project.flows) {
            let finish = self.entries[flow].finish;
            if finish > self.clock(platform) {
                self.owing.insert((platform, finish, flow));
                self.projects[at].flows.push((platform, flow));
            } else {
                self.entries.remove(flow);
            }
        }
        self.forget_idle(at);
    }

    /// The project's share of the platform; there while the project has builds.
    pub(crate) fn of(&mut self, at: ProjectIx, platform: PlatformIx) -> FlowIx {
        let project = &mut self.projects[at];
        if let Some((_, flow)) = project.flows.iter().find(|(of, _)| *of == platform) {
            return *flow;
        }
        let flow = self.entries.insert(Flow {
            platform,
            project: at,
            waiting: 0,
            start: 0,
            finish: Tag::MIN,
            shares: Vec::new(),
        });
        project.flows.push((platform, flow));
        flow
    }

    fn forget_idle(&mut self, at: ProjectIx) {
        let project = &self.projects[at];
        if project.builds == 0
            && project.flows.is_empty()
            && let Some(project) = self.projects.remove(at)
        {
            self.by_name.remove(&project.name);
        }
    }

    pub(crate) fn get(&self, at: FlowIx) -> &Flow {
        &self.entries[at]
    }

    pub(super) fn share(&self, at: FlowIx, lane: LaneIx) -> Option<ShareIx> {
        self.entries[at].shares.iter().find(|(of, _)| *of == lane).map(|(_, share)| *share)
    }

    pub(super) fn opened(&mut self, at: FlowIx, lane: LaneIx, share: ShareIx) {
        self.entries[at].shares.push((lane, share));
    }

    pub(super) fn closed(&mut self, at: FlowIx, lane: LaneIx) {
        self.entries[at].shares.retain(|(of, _)| *of != lane);
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
            if let Some(flow) = self.entries.remove(at) {
                self.projects[flow.project].flows.retain(|(_, other)| *other != at);
                self.forget_idle(flow.project);
            }
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
        self.entries.len() + self.projects.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PlatformIx = PlatformIx(0);

    fn flow(flows: &mut Flows, project: &str) -> (ProjectIx, FlowIx) {
        let project = flows.acquire(project);
        (project, flows.of(project, P))
    }

    #[test]
    fn a_flow_that_used_more_starts_later_and_a_new_one_starts_now() {
        let mut flows = Flows::default();
        let ((_, a), (_, b)) = (flow(&mut flows, "a"), flow(&mut flows, "b"));
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
        let (project, a) = flow(&mut flows, "a");
        flows.joined(a);
        flows.served(a, 1_000);
        flows.release(project);
        let (_, again) = flow(&mut flows, "a");
        flows.joined(again);
        assert_eq!(flows.get(again).start, 1_000);
    }

    #[test]
    fn flows_that_owe_nothing_are_forgotten() {
        let mut flows = Flows::default();
        for number in 0..100 {
            let (project, at) = flow(&mut flows, &format!("p{number}"));
            flows.joined(at);
            flows.served(at, 10);
            flows.release(project);
        }
        assert_eq!(flows.len(), 200, "all have used a little, none is overtaken yet");
        let (_, busy) = flow(&mut flows, "busy");
        for _ in 0..3 {
            flows.joined(busy);
            flows.served(busy, 10);
        }
        assert_eq!(flows.len(), 2, "one project and its flow");
    }

    #[test]
    fn a_project_without_builds_and_debts_is_forgotten_at_once() {
        let mut flows = Flows::default();
        let (project, _) = flow(&mut flows, "a");
        flows.release(project);
        assert_eq!(flows.len(), 0);
    }
}
