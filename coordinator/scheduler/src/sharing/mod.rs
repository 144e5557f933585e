//! Identical legs in flight run once: while an attempt is on a worker, the same legs of other builds follow it and take its
//! outcome over, instead of running beside it.
//!
//! Invariants: an attempt belongs to one task, its leader, which alone may complete it; a follower has no attempt of its own.
//! What waits in a queue is not held together, so nobody waits behind another's share or priority: whichever leg comes
//! first leads the others. When the leader's build ends while others follow, the first of them inherits the attempt.
//! A canary leads nobody, and a leg does not follow onto a worker that failed it.

pub(crate) mod alike;

use crate::{
    effect::{Effect, PassOn},
    entity::Place,
    mutation::Mutation,
    record::TaskState,
    scheduler::Scheduler,
    slab::{AlikeIx, BuildIx, TaskIx},
};

impl Scheduler {
    /// The live attempt that the task can follow, if there is one.
    pub(crate) fn leader_for(&self, at: TaskIx) -> Option<TaskIx> {
        self.twins(at).find(|leader| self.may_follow(at, *leader))
    }

    /// The tasks that wait for a worker and can follow this one's attempt do so from now on.
    pub(crate) fn gather(&mut self, leader: TaskIx) {
        let waits = |task: &TaskIx| matches!(self.tasks[*task].record.state, TaskState::Waiting { .. });
        let twins: Vec<_> = self.twins(leader).filter(|task| waits(task) && self.may_follow(*task, leader)).collect();
        for task in twins {
            self.follow(task, leader);
        }
    }

    /// The build shares its legs with those that ask for the same, from now on.
    pub(crate) fn join_alike(&mut self, at: BuildIx) -> Option<AlikeIx> {
        let record = &self.builds[at].record;
        let credentials = record.credentials.as_ref().filter(|_| self.mutation != Mutation::ShareCredentials);
        let group = self.alike.join(at, &record.spec, credentials)?;
        self.count_twins(group);
        Some(group)
    }

    pub(crate) fn leave_alike(&mut self, at: BuildIx, group: AlikeIx) {
        self.builds[at].has_twins = false;
        if self.alike.leave(group, at) {
            self.count_twins(group);
        }
    }

    /// Only the first two make a difference.
    fn count_twins(&mut self, group: AlikeIx) {
        let builds = self.alike.builds(group);
        if builds.len() <= 2 {
            for build in builds {
                self.builds[*build].has_twins = builds.len() > 1;
            }
        } else if let Some(build) = builds.last() {
            self.builds[*build].has_twins = true;
        }
    }

    /// The same legs of the builds that ask for the same.
    fn twins(&self, at: TaskIx) -> impl Iterator<Item = TaskIx> + '_ {
        let (build, platform) = (self.tasks[at].build, self.tasks[at].platform);
        let entry = &self.builds[build];
        let group = entry.ties.filter(|_| entry.has_twins).and_then(|ties| ties.alike);
        let builds = group.map(|group| self.alike.builds(group)).unwrap_or_default();
        builds
            .iter()
            .filter(move |other| **other != build)
            .filter_map(move |other| {
                self.builds[*other].tasks.iter().find(|task| self.tasks[**task].platform == platform)
            })
            .copied()
    }

    fn may_follow(&self, at: TaskIx, leader: TaskIx) -> bool {
        let (task, leader) = (&self.tasks[at], &self.tasks[leader]);
        let (Some(worker), Some(attempt)) = (leader.worker(), &leader.record.attempt) else { return false };
        let is_canary = self.farm.workers[worker].canary == Some(attempt.id);
        !is_canary && !task.record.avoid.contains(&attempt.worker)
    }

    /// The task takes over whatever comes of the leader's attempt.
    pub(crate) fn follow(&mut self, at: TaskIx, leader: TaskIx) {
        self.leave_queue(at, None);
        let led = &self.tasks[leader].record;
        let state = TaskState::Shared { with: led.id, build: led.build };
        let mut attempt = led.attempt.clone();
        if let Some(attempt) = &mut attempt {
            attempt.began_for.get_or_insert(led.build);
        }
        let has_started = attempt.as_ref().is_some_and(|attempt| attempt.started_at.is_some());
        let task = &mut self.tasks[at];
        task.place = Place::Behind(leader);
        task.tried = true;
        let record = self.set_state(at, state);
        record.attempts += 1;
        record.attempt = attempt;
        if has_started {
            self.begin_build_of(at);
        }
    }

    /// Who follows the task's attempt, in the order of their builds.
    pub(crate) fn followers(&self, leader: TaskIx) -> Vec<TaskIx> {
        self.twins(leader).filter(|task| self.tasks[*task].follows(leader)).collect()
    }

    /// The task follows nobody any more, whatever comes next.
    pub(crate) fn unfollow(&mut self, at: TaskIx) {
        let now = self.now;
        let task = &mut self.tasks[at];
        if let Place::Behind(_) = task.place {
            task.place = Place::Nowhere;
            if let Some(attempt) = &mut self.change_task(at).attempt {
                attempt.finished_at = Some(now);
            }
        }
    }

    /// The leader's build ends without its attempt; it goes on for the followers, the first of which leads from now on.
    /// `false` when nobody follows.
    pub(crate) fn pass_on(&mut self, at: TaskIx) -> bool {
        let mut followers = self.followers(at);
        if self.mutation == Mutation::ForgetHeirs {
            followers.clear();
        }
        let (Some((heir, others)), Some(worker)) = (followers.split_first(), self.tasks[at].worker()) else {
            return false;
        };
        let (now, state) = (self.now, self.tasks[at].record.state.clone());
        self.tasks[at].place = Place::Nowhere;
        if let Some(attempt) = &mut self.change_task(at).attempt {
            attempt.finished_at = Some(now);
            let attempt = attempt.id;
            self.farm.workers[worker].attempts.pass(attempt, *heir);
        }
        self.tasks[*heir].place = Place::On(worker);
        self.set_state(*heir, state);
        let (with, build) = (self.tasks[*heir].record.id, self.tasks[*heir].record.build);
        for other in others {
            self.tasks[*other].place = Place::Behind(*heir);
            self.set_state(*other, TaskState::Shared { with, build });
        }
        self.tell_of_heir(*heir);
        true
    }

    fn tell_of_heir(&mut self, heir: TaskIx) {
        let task = &self.tasks[heir];
        let Some(attempt) = &task.record.attempt else { return };
        let pass_on = PassOn {
            attempt: attempt.id,
            worker: attempt.worker,
            task: task.record.id,
            build: task.record.build,
            platform: task.record.platform.clone(),
            spec: self.builds[task.build].spec.clone(),
        };
        self.act(Effect::PassOn(Box::new(pass_on)));
    }

    /// After a restart: a follower finds its leader again, or waits anew if the attempt is gone.
    pub(crate) fn resume_sharing(&mut self, at: TaskIx) {
        let TaskState::Shared { with, build } = self.tasks[at].record.state else { return };
        let tasks = self.build_ids.get(&build).map(|build| self.builds[*build].tasks.as_slice()).unwrap_or_default();
        let leader = tasks.iter().copied().find(|task| self.tasks[*task].record.id == with);
        match leader.filter(|leader| self.tasks[*leader].worker().is_some()) {
            Some(leader) => self.tasks[at].place = Place::Behind(leader),
            None => self.begin_waiting(at),
        }
    }
}
