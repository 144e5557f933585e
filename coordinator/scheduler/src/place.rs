//! Placement: which waiting task goes to which worker, from both sides.
//!
//! A worker with room takes the most urgent task that it can run ([`Scheduler::feed`]); a task that has just begun to wait
//! takes the best free worker ([`Scheduler::place_task`]). Neither ever looks at all tasks or all workers.

use kiln_common::{Grade, WorkerId};

use crate::{
    effect::{Dispatch, Effect},
    farm::{Farm, GRADES, bitset::WorkerSet, grade_index},
    mutation::Mutation,
    queue::lane::{Candidate, Mode},
    record::{AttemptRecord, TaskState},
    scheduler::Scheduler,
    slab::{LaneIx, PlatformIx, TaskIx, WorkerIx},
};

impl Scheduler {
    pub(crate) fn place(&mut self) {
        // First who may take tasks at all, for that decides who is a last resort.
        for at in 0..self.turn.touched.len() {
            let worker = self.turn.touched[at];
            self.note_loss(worker);
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

    /// Remembers the platforms of a worker that took tasks and takes none now.
    fn note_loss(&mut self, worker: WorkerIx) {
        let Some(entry) = self.farm.workers.get(worker) else { return };
        let (old, new) = (entry.standing, entry.standing_now());
        let lost = old.ready && (!new.ready || (new.throttled && !old.throttled));
        if lost {
            for (platform, _) in &entry.table {
                if self.queue.platform(*platform).is_some_and(|queue| queue.waiting > 0) {
                    self.turn.shaken.push(*platform);
                }
            }
        }
        if !new.ready || new.throttled != old.throttled || !old.ready {
            // Its free slots are listed after it has been fed; until then nobody else is to count on them.
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
            let Some((candidate, grade)) = self.most_urgent(worker) else { return };
            self.dispatch(candidate.task, worker, grade, "");
        }
    }

    fn ignores_cordon(&self, worker: WorkerIx) -> bool {
        let entry = &self.farm.workers[worker];
        self.mutation == Mutation::IgnoreCordon
            && entry.is_online()
            && entry.record.cordon.is_some()
            && entry.held() < entry.slots() as usize
    }

    /// The platform that has had least of its share goes first, within it the lane whose head is due first.
    fn most_urgent(&mut self, worker: WorkerIx) -> Option<(Candidate, Grade)> {
        let mut best: Option<(i64, Candidate, Grade)> = None;
        for at in 0..self.farm.workers[worker].table.len() {
            let (platform, grade) = self.farm.workers[worker].table[at];
            let Some(queue) = self.queue.platform(platform) else { continue };
            let (start, lanes) = (queue.start, queue.lanes.len());
            if best.is_some_and(|(least, _, _)| least < start) {
                continue;
            }
            for lane in 0..lanes {
                let Some(lane) = self.queue.platform(platform).and_then(|queue| queue.lanes.get(lane).copied()) else {
                    continue;
                };
                let Some(candidate) = self.candidate(lane, worker, grade) else { continue };
                let is_better = best.is_none_or(|(least, other, other_grade)| {
                    (start, grade.is_emulated(), candidate.tag, candidate.task)
                        < (least, other_grade.is_emulated(), other.tag, other.task)
                });
                if is_better {
                    best = Some((start, candidate, grade));
                }
            }
        }
        best.map(|(_, candidate, grade)| (candidate, grade))
    }

    /// What the lane has for this worker now, if anything.
    fn candidate(&mut self, lane: LaneIx, worker: WorkerIx, grade: Grade) -> Option<Candidate> {
        let key = self.queue.lanes[lane].key;
        let members = &self.farm.selectors.get(key.selector).members;
        if !members.contains(worker) {
            return None;
        }
        let entry = &self.farm.workers[worker];
        if entry.standing_now().throttled && self.others_can(key.platform, members, grade) {
            return None;
        }
        if grade.is_emulated() && self.mutation != Mutation::EmulateAnyway {
            match key.mode {
                Mode::Closed => return None,
                Mode::Auto if self.has_native(key.platform, members) => {
                    let (tag, task) = self.queue.lanes[lane].last()?;
                    let sound = self.suits(task, worker) && self.emulation_pays(task, worker);
                    return sound.then_some(Candidate { tag, task, lane });
                }
                Mode::Auto | Mode::Open => {}
            }
        }
        let Self { queue, tasks, farm, .. } = self;
        let id = farm.workers[worker].record.id;
        let canary = farm.workers[worker].record.quarantine.is_some();
        let members = &farm.selectors.get(key.selector).members;
        let alone = |avoid: &[WorkerId]| !other_than(farm, key.platform, grade, members, avoid);
        let accept = |task: TaskIx| {
            let record = &tasks[task].record;
            let first_try = record.attempts == 0;
            (!canary || first_try) && (!record.avoid.contains(&id) || alone(&record.avoid))
        };
        let (tag, task) = queue.lanes[lane].first(&queue.flows, accept)?;
        Some(Candidate { tag, task, lane })
    }

    /// Whether this worker is none that the task avoids, or there is no other.
    pub(crate) fn suits(&self, task: TaskIx, worker: WorkerIx) -> bool {
        let (task, entry) = (&self.tasks[task], &self.farm.workers[worker]);
        let record = &task.record;
        if entry.record.quarantine.is_some() && record.attempts > 0 {
            return false;
        }
        if !record.avoid.contains(&entry.record.id) {
            return true;
        }
        let Some(selector) = self.builds[task.build].selector else { return false };
        let Some(grade) = entry.grade_of(task.platform) else { return false };
        !other_than(&self.farm, task.platform, grade, &self.farm.selectors.get(selector).members, &record.avoid)
    }

    /// Whether a worker that is not throttled takes such tasks, now or when it has a slot.
    pub(crate) fn others_can(&self, platform: PlatformIx, members: &WorkerSet, grade: Grade) -> bool {
        let healthy = |grade| self.farm.pool(platform, grade).healthy.meets(members);
        healthy(Grade::Native) || healthy(Grade::Compat) || (grade.is_emulated() && healthy(Grade::Emulated))
    }

    /// Whether a worker that takes tasks runs the platform without emulation.
    pub(crate) fn has_native(&self, platform: PlatformIx, members: &WorkerSet) -> bool {
        [Grade::Native, Grade::Compat].into_iter().any(|grade| {
            let pool = self.farm.pool(platform, grade);
            pool.healthy.meets(members) || pool.throttled.meets(members)
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
        let spot = entry.spot.as_ref()?;
        let key = self.queue.lanes[spot.lane].key;
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

    /// The worker with the cache if it is free; else an idle one, else one with a slot left, else a throttled one where no
    /// other can ever take the task.
    fn free_of_grade(&self, task: TaskIx, grade: Grade) -> Option<(WorkerIx, &'static str)> {
        let entry = &self.tasks[task];
        let pool = self.farm.pool(entry.platform, grade);
        if !pool.has_free() {
            return None;
        }
        let members = &self.farm.selectors.get(self.builds[entry.build].selector?).members;
        let known = entry.ties.and_then(|ties| self.history.get(ties.memory).worker);
        if let Some((worker, id)) = known
            && (pool.idle.contains(worker) || pool.partly.contains(worker))
            && members.contains(worker)
            && self.farm.workers[worker].record.id == id
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
            let is_needed = !pool.throttled_free.is_empty() && !self.others_can(entry.platform, members, grade);
            is_needed.then(|| search(&pool.throttled_free)).flatten()
        };
        let found = search(&pool.idle).or_else(|| search(&pool.partly)).or_else(last_resort);
        found.map(|worker| (worker, ""))
    }

    /// What waits for platforms that lost a worker may go to emulated or throttled workers now.
    fn place_shaken(&mut self) {
        while let Some(platform) = self.turn.shaken.pop() {
            self.place_waiting(platform);
        }
    }

    /// Tries each lane of the platform until it gives no more; bounded by a turn's effects.
    pub(crate) fn place_waiting(&mut self, platform: PlatformIx) {
        let lanes = self.queue.platform(platform).map(|queue| queue.lanes.clone()).unwrap_or_default();
        let mut budget = self.config.effects_per_turn / 2;
        for lane in lanes {
            while budget > 0 {
                budget -= 1;
                // Natively from the front; for emulation the last gains most.
                let lane = &self.queue.lanes[lane];
                let last = lane.last().map(|(_, task)| task);
                let mut tasks = lane.front().into_iter().chain(last);
                let placed = tasks.find_map(|task| self.best_free(task).map(|found| (task, found)));
                let Some((task, (worker, grade, why))) = placed else { break };
                self.dispatch(task, worker, grade, why);
                self.farm.refresh(worker);
            }
        }
        if budget == 0 {
            self.review_soon();
        }
    }

    /// Gives the task to the worker: a new attempt.
    pub(crate) fn dispatch(&mut self, at: TaskIx, worker: WorkerIx, grade: Grade, why: &str) {
        let reason = self.reason_for(at, worker, grade, why);
        let attempt = kiln_common::AttemptId::from_uuid(self.ids.next(self.now));
        self.leave_queue(at, Some(self.predicted(at, worker, grade)));
        let (now, task, entry) = (self.now, &mut self.tasks[at], &mut self.farm.workers[worker]);
        let build = &self.builds[task.build];
        entry.attempts.insert(attempt, at);
        if entry.record.quarantine.is_some() {
            entry.canary = Some(attempt);
        }
        task.worker = Some(worker);
        task.record.state = TaskState::Assigned;
        task.record.attempts += 1;
        task.record.attempt = Some(AttemptRecord {
            id: attempt,
            worker: entry.record.id,
            worker_name: entry.record.name.clone(),
            grade,
            reason: reason.clone(),
            assigned_at: now,
            started_at: None,
            finished_at: None,
        });
        let place = &mut self.farm.platforms[task.platform.0 as usize];
        place.live[grade_index(grade)] += 1;
        place.cursors[grade_index(grade)] = worker.0 + 1;
        let dispatch = Dispatch {
            worker: entry.record.id,
            worker_name: entry.record.name.clone(),
            attempt,
            task: task.record.id,
            build: build.record.id,
            platform: task.record.platform.clone(),
            grade,
            reason,
            spec: build.record.spec.clone(),
            deadline: build.record.deadline,
        };
        self.changed_task(at);
        self.act(Effect::Dispatch(Box::new(dispatch)));
        if self.mutation == Mutation::DispatchTwice && self.tasks[at].record.attempts == 1 {
            self.join_queue(at);
        }
    }
}

/// Whether a healthy worker other than those to avoid takes such tasks. In place of a native worker only a native one counts:
/// nobody can tell whether the task would ever be emulated.
fn other_than(farm: &Farm, platform: PlatformIx, grade: Grade, members: &WorkerSet, avoid: &[WorkerId]) -> bool {
    let avoided = |worker: WorkerIx| avoid.contains(&farm.workers[worker].record.id);
    GRADES.into_iter().filter(|other| grade.is_emulated() || !other.is_emulated()).any(|other| {
        let pool = farm.pool(platform, other);
        pool.healthy.first_common(members, 0, |worker| !avoided(worker)).is_some()
    })
}
