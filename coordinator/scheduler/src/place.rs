//! Placement: which waiting task goes to which worker, from both sides.
//!
//! A worker with room takes the most urgent task that it can run ([`Scheduler::feed`]); a task that has just begun to wait
//! takes the best free worker ([`Scheduler::place_task`]). Neither ever looks at all tasks or all workers.

use kiln_common::{Grade, WorkerId};

use crate::{
    effect::{Dispatch, Effect},
    entity::Place,
    farm::{Farm, GRADES, bitset::WorkerSet, grade_index},
    mutation::Mutation,
    queue::{Listed, flow::Tag, lane::Mode},
    record::{AttemptRecord, TaskState},
    scheduler::Scheduler,
    slab::{LaneIx, PlatformIx, TaskIx, WorkerIx},
};

impl Scheduler {
    /// Places what may be placed since the last turn.
    pub(crate) fn place(&mut self) {
        // First who may take tasks at all, for that decides who is a last resort.
        for at in 0..self.turn.touched.len() {
            self.reassess(self.turn.touched[at]);
        }
        let mut touched = std::mem::take(&mut self.turn.touched);
        for worker in touched.drain(..) {
            if let Some(entry) = self.farm.workers.get_mut(worker) {
                entry.touched = false;
                self.feed(worker);
                self.farm.refresh(worker);
            }
        }
        self.turn.touched = touched;
        let mut fresh = std::mem::take(&mut self.turn.fresh);
        for task in fresh.drain(..) {
            self.place_task(task);
        }
        self.turn.fresh = fresh;
        self.place_shaken();
    }

    /// Finds out anew what the worker is good for, and remembers its platforms if it took tasks and takes none now.
    fn reassess(&mut self, worker: WorkerIx) {
        let Some(entry) = self.farm.workers.get_mut(worker) else { return };
        if !std::mem::take(&mut entry.changed) {
            return;
        }
        let (old, new) = (entry.standing.condition, entry.condition_now());
        entry.condition = new;
        let lost = old.ready && (!new.ready || (new.strained && !old.strained));
        if lost {
            for (platform, _) in &*entry.table {
                if self.queue.platform(*platform).is_some_and(|queue| queue.waiting > 0) {
                    self.turn.shaken.push(*platform);
                }
            }
        }
        if old != new {
            self.farm.refresh(worker);
        }
    }

    /// Gives the worker the most urgent tasks that it can take, until it is full.
    pub(crate) fn feed(&mut self, worker: WorkerIx) {
        loop {
            let entry = &self.farm.workers[worker];
            let unchecked = self.mutation == Mutation::SkipSlotCheck && entry.is_online() && entry.held() < 8;
            if entry.free_slots() == 0 && !unchecked && !self.ignores_cordon(worker) {
                return;
            }
            let Some((task, grade)) = self.most_urgent(worker) else { return };
            self.dispatch(task, worker, grade, "");
        }
    }

    fn ignores_cordon(&self, worker: WorkerIx) -> bool {
        let entry = &self.farm.workers[worker];
        self.mutation == Mutation::IgnoreCordon
            && entry.is_online()
            && entry.record.cordon.is_some()
            && entry.held() < entry.slots() as usize
    }

    /// The platform that has had least of its share goes first, within it the lane whose first task is due first.
    fn most_urgent(&mut self, worker: WorkerIx) -> Option<(TaskIx, Grade)> {
        let mut tried = None;
        loop {
            let table = self.farm.workers[worker].table.iter().enumerate();
            let waiting = table.filter_map(|(at, (platform, grade))| {
                let queue = self.queue.platform(*platform).filter(|queue| queue.waiting > 0)?;
                Some(((queue.start, grade.is_emulated(), at), *platform, *grade))
            });
            let (key, platform, grade) =
                waiting.filter(|(key, _, _)| tried < Some(*key)).min_by_key(|(key, _, _)| *key)?;
            tried = Some(key);
            if let Some(task) = self.most_urgent_of(platform, worker, grade) {
                return Some((task, grade));
            }
        }
    }

    fn most_urgent_of(&mut self, platform: PlatformIx, worker: WorkerIx, grade: Grade) -> Option<TaskIx> {
        let mut tried = None;
        loop {
            let listed = self.next_lane(platform, worker, tried)?;
            if self.queue.refresh(listed.lane) > listed.due {
                // It is due later than it looked: another may be first now.
                continue;
            }
            tried = Some((listed.due, listed.lane));
            if let Some(task) = self.candidate(listed.lane, worker, grade) {
                return Some(task);
            }
        }
    }

    /// The platform's lane that is due first after those that were tried, of those that the worker is able to serve.
    fn next_lane(&self, platform: PlatformIx, worker: WorkerIx, tried: Option<(Tag, LaneIx)>) -> Option<Listed> {
        let mut first: Option<&Listed> = None;
        for listed in &self.queue.platform(platform)?.lanes {
            let key = (listed.due, listed.lane);
            let is_earlier = first.is_none_or(|first| key < (first.due, first.lane));
            // Few are earlier than all before them: only those are looked up.
            if is_earlier && tried < Some(key) && self.farm.selectors.get(listed.selector).members.contains(worker) {
                first = Some(listed);
            }
        }
        first.copied()
    }

    /// What the lane has for this worker now, if anything.
    fn candidate(&self, lane: LaneIx, worker: WorkerIx, grade: Grade) -> Option<TaskIx> {
        let key = self.queue.lanes[lane].key;
        let members = &self.farm.selectors.get(key.selector).members;
        if self.farm.workers[worker].condition.strained && self.others_can(key.platform, members, grade) {
            return None;
        }
        if grade.is_emulated() && self.mutation != Mutation::EmulateAnyway {
            match key.mode {
                Mode::Closed => return None,
                Mode::Auto if self.has_native(key.platform, members) => {
                    let task = self.queue.last(lane)?;
                    return (self.suits(task, worker) && self.emulation_pays(task, worker)).then_some(task);
                }
                Mode::Auto | Mode::Open => {}
            }
        }
        self.queue.front(lane).find(|task| self.suits(*task, worker))
    }

    /// Whether this worker is none that the task avoids, or there is no other.
    pub(crate) fn suits(&self, task: TaskIx, worker: WorkerIx) -> bool {
        let task = &self.tasks[task];
        if !task.tried {
            return true;
        }
        let (record, entry) = (&task.record, &self.farm.workers[worker]);
        if entry.condition.canary && record.attempts > 0 {
            return false;
        }
        if !record.avoid.contains(&entry.id) {
            return true;
        }
        let Some(ties) = self.builds[task.build].ties else { return false };
        let Some(grade) = entry.grade_of(task.platform) else { return false };
        !other_than(&self.farm, task.platform, grade, &self.farm.selectors.get(ties.selector).members, &record.avoid)
    }

    /// Whether a worker that is not strained takes such tasks, now or when it has a slot.
    pub(crate) fn others_can(&self, platform: PlatformIx, members: &WorkerSet, grade: Grade) -> bool {
        let healthy = |grade| self.farm.pool(platform, grade).healthy.meets(members);
        healthy(Grade::Native) || healthy(Grade::Compat) || (grade.is_emulated() && healthy(Grade::Emulated))
    }

    /// Whether a worker that takes tasks runs the platform without emulation.
    pub(crate) fn has_native(&self, platform: PlatformIx, members: &WorkerSet) -> bool {
        [Grade::Native, Grade::Compat].into_iter().any(|grade| {
            let pool = self.farm.pool(platform, grade);
            pool.healthy.meets(members) || pool.strained.meets(members)
        })
    }

    /// Gives the task the best free worker, if there is one that it should not wait past.
    pub(crate) fn place_task(&mut self, task: TaskIx) {
        let Some((worker, grade, why)) = self.best_free(task) else { return };
        self.dispatch(task, worker, grade, why);
        self.farm.refresh(worker);
    }

    fn best_free(&self, task: TaskIx) -> Option<(WorkerIx, Grade, &'static str)> {
        let entry = self.tasks.get(task)?;
        let key = self.queue.lanes[self.queue.shares[entry.share()?].lane].key;
        for grade in [Grade::Native, Grade::Compat] {
            if let Some((worker, why)) = self.free_of_grade(task, grade) {
                return Some((worker, grade, why));
            }
        }
        let members = &self.farm.selectors.get(key.selector).members;
        let pays = match key.mode {
            Mode::Closed => self.mutation == Mutation::EmulateAnyway,
            Mode::Open => true,
            Mode::Auto => true,
        };
        if !pays || !self.farm.pool(key.platform, Grade::Emulated).has_free() {
            return None;
        }
        let (worker, why) = self.free_of_grade(task, Grade::Emulated)?;
        let is_sound =
            key.mode != Mode::Auto || !self.has_native(key.platform, members) || self.emulation_pays(task, worker);
        is_sound.then_some((worker, Grade::Emulated, why))
    }

    /// The worker with the cache if it is free; else an idle one, else one with a slot left, else a strained one where no
    /// other can ever take the task.
    fn free_of_grade(&self, task: TaskIx, grade: Grade) -> Option<(WorkerIx, &'static str)> {
        let entry = &self.tasks[task];
        let pool = self.farm.pool(entry.platform, grade);
        if !pool.has_free() {
            return None;
        }
        let ties = self.builds[entry.build].ties?;
        let members = &self.farm.selectors.get(ties.selector).members;
        let known = self.history.get(ties.repository, entry.platform).and_then(|memory| memory.worker);
        if let Some((worker, id)) = known
            && (pool.idle.contains(worker) || pool.partly.contains(worker))
            && members.contains(worker)
            && self.farm.workers[worker].id == id
            && self.suits(task, worker)
        {
            return Some((worker, "it built this repository last and has its cache"));
        }
        let from = self.farm.entry(entry.platform).cursors[grade_index(grade)];
        let search = |set: &WorkerSet| set.first_common(members, from, |worker| self.suits(task, worker));
        if let Some(worker) = search(&pool.canary_free) {
            return Some((worker, "it is the canary that ends the worker's quarantine if it goes well"));
        }
        let last_resort = || {
            let is_needed = !pool.strained_free.is_empty() && !self.others_can(entry.platform, members, grade);
            is_needed.then(|| search(&pool.strained_free)).flatten()
        };
        let found = search(&pool.idle).or_else(|| search(&pool.partly)).or_else(last_resort);
        found.map(|worker| (worker, ""))
    }

    /// What waits for platforms that lost a worker may go to emulated or strained workers now.
    fn place_shaken(&mut self) {
        while let Some(platform) = self.turn.shaken.pop() {
            self.place_waiting(platform);
        }
    }

    /// Tries each lane of the platform until it gives no more; bounded by a turn's effects, and what is beyond comes soon.
    pub(crate) fn place_waiting(&mut self, platform: PlatformIx) {
        let lanes = self.queue.platform(platform).map(|queue| queue.lanes.clone()).unwrap_or_default();
        let mut budget = self.config.effects_per_turn / 2;
        for listed in lanes {
            while budget > 0 {
                let Some((task, (worker, grade, why))) = self.next_of_lane(listed.lane) else { break };
                // Only what is placed counts: looks that find nothing would have the review begin anew for ever.
                budget -= 1;
                self.dispatch(task, worker, grade, why);
                self.farm.refresh(worker);
            }
        }
        if budget == 0 {
            self.review_soon();
        }
    }

    /// A task of the lane with the worker for it: natively from the front; for emulation the last gains most.
    fn next_of_lane(&self, lane: LaneIx) -> Option<(TaskIx, (WorkerIx, Grade, &'static str))> {
        let mut tasks = self.queue.front(lane).chain(self.queue.last(lane));
        tasks.find_map(|task| self.best_free(task).map(|found| (task, found)))
    }

    /// Gives the task to the worker: a new attempt.
    pub(crate) fn dispatch(&mut self, at: TaskIx, worker: WorkerIx, grade: Grade, why: &str) {
        let reason = self.reason_for(at, worker, grade, why);
        let attempt = kiln_common::AttemptId::from_uuid(self.ids.next(self.now));
        self.leave_queue(at, Some(self.predicted(at, worker, grade)));
        let (now, entry) = (self.now, &mut self.farm.workers[worker]);
        entry.attempts.insert(attempt, at);
        if entry.condition.canary {
            entry.canary = Some(attempt);
        }
        let task = &mut self.tasks[at];
        task.place = Place::On(worker);
        task.tried = true;
        let build = &self.builds[task.build];
        let deadline = build.deadline;
        let dispatch = Dispatch {
            worker: entry.id,
            worker_name: entry.name.clone(),
            attempt,
            task: task.record.id,
            build: build.id,
            platform: task.record.platform.clone(),
            grade,
            reason: reason.clone(),
            spec: build.spec.clone(),
            deadline,
            time_left: deadline.since(now),
        };
        let place = &mut self.farm.platforms[task.platform.0 as usize];
        place.live[grade_index(grade)] += 1;
        place.cursors[grade_index(grade)] = worker.0 + 1;
        let (id, worker_name) = (entry.id, entry.name.clone());
        let record = self.set_state(at, TaskState::Assigned);
        record.attempts += 1;
        record.attempt = Some(AttemptRecord {
            id: attempt,
            worker: id,
            worker_name,
            grade,
            reason,
            assigned_at: now,
            started_at: None,
            finished_at: None,
            deadline: Some(deadline),
            began_for: None,
        });
        self.act(Effect::Dispatch(Box::new(dispatch)));
        self.gather(at);
        if self.mutation == Mutation::DispatchTwice && self.tasks[at].record.attempts == 1 {
            self.join_queue(at);
        }
    }
}

/// Whether a healthy worker other than those to avoid takes such tasks. In place of a native worker only a native one counts:
/// nobody can tell whether the task would ever be emulated.
fn other_than(farm: &Farm, platform: PlatformIx, grade: Grade, members: &WorkerSet, avoid: &[WorkerId]) -> bool {
    let avoided = |worker: WorkerIx| avoid.contains(&farm.workers[worker].id);
    GRADES.into_iter().filter(|other| grade.is_emulated() || !other.is_emulated()).any(|other| {
        let pool = farm.pool(platform, other);
        pool.healthy.first_common(members, 0, |worker| !avoided(worker)).is_some()
    })
}
