//! The rules that always hold (DESIGN, section 5), as far as the core can see them, each a named check.
//!
//! Debug builds call [`Scheduler::check_quick`] after every turn; tests and the simulator call [`check_all`] too.

use std::{collections::BTreeMap, sync::Arc};

use kiln_common::EmulationPolicy;

use crate::{
    entity::{Place, Task},
    farm::{GRADES, Pool, grade_index, worker::Link},
    legs::Legs,
    queue::lane::Mode,
    record::{BuildState, TaskRecord, TaskState},
    scheduler::Scheduler,
    sharing::alike::are_alike,
    slab::TaskIx,
    timers::Timer,
    waiting::waiting_since,
};

/// A rule that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {detail}")]
pub struct Violation {
    pub rule: &'static str,
    pub detail: String,
}

/// One rule by its name.
pub type Check = fn(&Scheduler) -> Result<(), Violation>;

/// Every rule.
pub const CHECKS: [(&str, Check); 10] = [
    ("one live attempt", check_one_live_attempt),
    ("identical legs share", check_sharing),
    ("slots", check_slots),
    ("builds follow their legs", check_builds),
    ("the queue holds what waits", check_queue),
    ("indices are true", check_indices),
    ("emulation is not silent", check_emulation),
    ("nothing waits forever", check_timers),
    ("nothing waits beside a free worker", check_work_conserving),
    ("tries are bounded", check_tries),
];

/// # Errors
/// The first rule that does not hold.
pub fn check_all(scheduler: &Scheduler) -> Result<(), Violation> {
    CHECKS.iter().try_for_each(|(_, check)| check(scheduler))
}

fn hold(rule: &'static str, holds: bool, detail: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { rule, detail: detail() }) }
}

/// A task has at most one live attempt that may complete it: the one that its worker's list names, and no other.
pub fn check_one_live_attempt(s: &Scheduler) -> Result<(), Violation> {
    const RULE: &str = "one live attempt";
    let mut live = BTreeMap::new();
    for (at, worker) in s.farm.workers.iter() {
        for (attempt, task) in worker.attempts.iter() {
            let is_first = live.insert(task, (at, attempt)).is_none();
            hold(RULE, is_first, || format!("task {task:?} has two live attempts"))?;
        }
    }
    for (at, task) in s.tasks.iter() {
        let named = task.record.attempt.as_ref().map(|attempt| attempt.id);
        let found = live.remove(&at);
        let (worker, attempt) = found.map_or((None, None), |(worker, attempt)| (Some(worker), Some(attempt)));
        let is_live = task.record.state.is_live();
        let is_sound = if is_live { attempt == named && task.worker() == worker } else { found.is_none() };
        hold(RULE, is_sound && is_live == task.worker().is_some(), || format!("{:?} and {found:?}", task.record))?;
    }
    hold(RULE, live.is_empty(), || format!("attempts of tasks that are gone: {live:?}"))
}

/// A follower follows a live attempt of an identical leg, which its record names; none waits that could follow.
pub fn check_sharing(s: &Scheduler) -> Result<(), Violation> {
    const RULE: &str = "identical legs share";
    for (at, build) in s.builds.iter() {
        let group = build.ties.and_then(|ties| ties.alike).map(|group| s.alike.builds(group));
        let is_known = group.is_none_or(|group| group.contains(&at) && build.has_twins == (group.len() > 1));
        hold(RULE, is_known, || format!("{} is of {group:?}, twins: {}", build.id, build.has_twins))?;
    }
    for (at, task) in s.tasks.iter() {
        let build = |task: &Task| Arc::clone(&s.builds[task.build].record);
        let is_sound = match (&task.record.state, task.place) {
            (TaskState::Shared { with, .. }, Place::Behind(leader)) => s.tasks.get(leader).is_some_and(|leader| {
                let attempt = |task: &Task| task.record.attempt.as_ref().map(|attempt| attempt.id);
                leader.record.id == *with
                    && leader.record.state.is_live()
                    && attempt(leader) == attempt(task)
                    && leader.platform == task.platform
                    && are_alike(&build(leader), &build(task))
            }),
            (TaskState::Shared { .. }, _) | (_, Place::Behind(_)) => false,
            (TaskState::Waiting { .. }, _) => s.leader_for(at).is_none(),
            (_, _) => true,
        };
        hold(RULE, is_sound, || format!("{:?} is {:?}", task.record, task.place))?;
    }
    Ok(())
}

/// No worker holds more than its slots, except what it held before they shrank.
pub fn check_slots(s: &Scheduler) -> Result<(), Violation> {
    s.farm.workers.iter().try_for_each(|(_, worker)| {
        let most = (worker.slots() as usize).max(worker.excess);
        hold("slots", worker.held() <= most, || format!("{} holds {} of {most}", worker.name, worker.held()))
    })
}

/// A build's state follows from its legs'.
pub fn check_builds(s: &Scheduler) -> Result<(), Violation> {
    const RULE: &str = "builds follow their legs";
    let mut open = 0;
    for (_, build) in s.builds.iter() {
        let record = &build.record;
        let tasks: Vec<&TaskRecord> = build.tasks.iter().map(|task| &*s.tasks[*task].record).collect();
        let mut counted = Legs::default();
        tasks.iter().for_each(|task| counted.add(task.required, &task.state));
        let is_copied = build.id == record.id && build.deadline == record.deadline && build.spec == record.spec;
        hold(RULE, is_copied, || format!("{build:?}"))?;
        hold(RULE, counted == build.legs, || format!("{counted:?} counted as {:?}", build.legs))?;
        let legs = || format!("{:?} with {:?}", record.state, tasks.iter().map(|task| &task.state).collect::<Vec<_>>());
        let done = |task: &&TaskRecord| matches!(task.state, TaskState::Succeeded { .. });
        let required_done = tasks.iter().filter(|task| task.required).all(done);
        let all_final = tasks.iter().all(|task| task.state.is_final());
        let is_sound = match &record.state {
            BuildState::Queued => !all_final && record.finished_at.is_none(),
            BuildState::Running => !all_final && record.started_at.is_some(),
            BuildState::Publishing { .. } => required_done && all_final && record.publishes > 0,
            BuildState::Succeeded => tasks.iter().all(done) && record.published.is_some(),
            BuildState::Incomplete => required_done && all_final && record.published.is_some(),
            BuildState::Failed { .. } | BuildState::Cancelled { .. } => all_final,
        };
        hold(RULE, is_sound && record.state.is_final() == record.finished_at.is_some(), legs)?;
        hold(RULE, record.state.is_final() == build.ties.is_none(), legs)?;
        open += usize::from(!record.state.is_final());
    }
    hold(RULE, open == s.open, || format!("{open} builds are open, {} are counted", s.open))
}

/// Every waiting task is in exactly one lane, and nothing else is; the sums are right.
pub fn check_queue(s: &Scheduler) -> Result<(), Violation> {
    const RULE: &str = "the queue holds what waits";
    let mut queued: BTreeMap<TaskIx, usize> = BTreeMap::new();
    let mut sums: BTreeMap<u32, (usize, u64)> = BTreeMap::new();
    for (at, lane) in s.queue.lanes.iter() {
        let lanes = s.queue.platform(lane.key.platform).into_iter().flat_map(|queue| &queue.lanes);
        let listed: Vec<_> = lanes.filter(|listed| listed.lane == at).map(|listed| listed.due).collect();
        let expected = if lane.is_empty() { Vec::new() } else { vec![lane.due()] };
        hold(RULE, listed == expected, || {
            format!("lane {:?} of {} tasks is listed: {listed:?}", lane.key, lane.len())
        })?;
        for (share, waiting) in s.queue.waiting_in(at) {
            *queued.entry(waiting.task).or_default() += 1;
            let is_there = s.tasks.get(waiting.task).is_some_and(|entry| entry.share() == Some(share))
                && s.order_of(waiting.task) == waiting.order
                && s.queue.shares[share].lane == at;
            hold(RULE, is_there, || format!("{waiting:?} is queued where it does not belong"))?;
            let sorted = s.queue.shares[share].get(waiting.order).is_some_and(|found| found.task == waiting.task);
            hold(RULE, sorted, || format!("{waiting:?} is not in order"))?;
            let sum = sums.entry(lane.key.platform.0).or_default();
            *sum = (sum.0 + 1, sum.1 + waiting.cost);
        }
    }
    for (at, task) in s.tasks.iter() {
        let waits = matches!(task.record.state, TaskState::Waiting { .. });
        let times = queued.get(&at).copied().unwrap_or(0);
        hold(RULE, times == usize::from(waits), || format!("queued {times} times: {:?}", task.record))?;
    }
    for (at, queue) in s.queue.platforms.iter().enumerate() {
        let sum = sums.get(&u32::try_from(at).unwrap_or(u32::MAX)).copied().unwrap_or_default();
        hold(RULE, sum == (queue.waiting, queue.cost), || format!("{queue:?} has {sum:?}"))?;
    }
    Ok(())
}

/// What the indices say of a worker is what its state says.
pub fn check_indices(s: &Scheduler) -> Result<(), Violation> {
    const RULE: &str = "indices are true";
    let mut live: BTreeMap<(u32, usize), u64> = BTreeMap::new();
    for (_, task) in s.tasks.iter() {
        if let (Some(_), Some(attempt)) = (task.worker(), &task.record.attempt) {
            *live.entry((task.platform.0, grade_index(attempt.grade))).or_default() += 1;
        }
    }
    for (at, worker) in s.farm.workers.iter() {
        let is_known = worker.condition == worker.condition_now() && worker.standing == worker.standing_now();
        hold(RULE, is_known, || format!("{:?} of {}", worker.standing, worker.name))?;
        let in_tables = worker.table.iter().all(|(platform, grade)| s.farm.pool(*platform, *grade).known.contains(at));
        hold(RULE, in_tables, || format!("{} is not in its pools", worker.name))?;
    }
    for (index, entry) in s.farm.platforms.iter().enumerate() {
        for grade in GRADES {
            let platform = crate::slab::PlatformIx(u32::try_from(index).unwrap_or(u32::MAX));
            let mut expected = Pool::default();
            for (at, worker) in s.farm.workers.iter().filter(|(_, worker)| worker.grade_of(platform) == Some(grade)) {
                expected.known.set(at, true);
                expected.place(at, Default::default(), worker.standing_now());
            }
            let found = &entry.pools[grade_index(grade)];
            hold(RULE, found.is_same(&expected), || {
                format!("{} {grade}: {found:?}, not {expected:?}", entry.platform)
            })?;
            let counted = live.get(&(platform.0, grade_index(grade))).copied().unwrap_or(0);
            let kept = entry.live[grade_index(grade)];
            hold(RULE, kept == counted, || format!("{} {grade}: {kept} live attempts, not {counted}", entry.platform))?;
        }
    }
    Ok(())
}

/// Emulation is never silent, and never where the policy rules it out.
pub fn check_emulation(s: &Scheduler) -> Result<(), Violation> {
    s.tasks.iter().try_for_each(|(_, task)| {
        let Some(attempt) = &task.record.attempt else { return Ok(()) };
        let policy = s.builds[task.build].record.spec.emulation;
        let is_sound =
            !attempt.grade.is_emulated() || (attempt.reason.contains("emulat") && policy != EmulationPolicy::Never);
        hold("emulation is not silent", is_sound, || format!("{:?} under {policy}", task.record))
    })
}

/// Whatever waits for time to pass has its timer.
pub fn check_timers(s: &Scheduler) -> Result<(), Violation> {
    const RULE: &str = "nothing waits forever";
    for (at, build) in s.builds.iter().filter(|(_, build)| !build.record.state.is_final()) {
        let set = s.timers.contains(build.record.deadline, Timer::Timeout(at));
        hold(RULE, set, || format!("build {} has no timeout", build.record.id))?;
    }
    for (at, task) in s.tasks.iter() {
        if let TaskState::Backoff { until, .. } = &task.record.state {
            let set = s.timers.contains(*until, Timer::Backoff(at));
            hold(RULE, set, || format!("task {} backs off for ever", task.record.id))?;
        }
        let wait = s.builds[task.build].record.spec.queue_timeout;
        if let (Some(wait), Some(since)) = (wait, waiting_since(&task.record.state)) {
            let set = s.timers.contains(since + wait, Timer::QueueTimeout(at));
            hold(RULE, set, || format!("task {} waits longer than it may", task.record.id))?;
        }
    }
    for (at, worker) in s.farm.workers.iter() {
        let set = match worker.link {
            Link::Online { check, .. } => s.timers.contains(check, Timer::Lease(at)),
            Link::Grace { until } => s.timers.contains(until, Timer::Grace(at)),
            Link::Offline => worker.attempts.is_empty(),
        };
        hold(RULE, set, || format!("worker {} is {:?} for ever", worker.name, worker.link))?;
        if let Some(quarantine) = &worker.record.quarantine {
            let set = worker.canary_due || s.timers.contains(quarantine.canary_at, Timer::Canary(at));
            hold(RULE, set, || format!("worker {} never gets its canary", worker.name))?;
        }
    }
    Ok(())
}

/// No task waits while a healthy worker that suits it natively has a slot free.
pub fn check_work_conserving(s: &Scheduler) -> Result<(), Violation> {
    const RULE: &str = "nothing waits beside a free worker";
    if s.review_at.is_some_and(|at| at <= s.now) {
        // More was due than one turn may do; the rest is next.
        return Ok(());
    }
    for (at, lane) in s.queue.lanes.iter() {
        let members = &s.farm.selectors.get(lane.key.selector).members;
        for grade in GRADES {
            if grade.is_emulated() && lane.key.mode != Mode::Open {
                continue;
            }
            let pool = s.farm.pool(lane.key.platform, grade);
            for set in [&pool.idle, &pool.partly] {
                if !set.meets(members) {
                    continue;
                }
                let idle_beside = s.queue.waiting_in(at).find_map(|(_, waiting)| {
                    let suits = |worker| s.suits(waiting.task, worker);
                    set.first_common(members, 0, suits).map(|worker| (waiting.task, worker))
                });
                hold(RULE, idle_beside.is_none(), || format!("{idle_beside:?} {grade}"))?;
            }
        }
    }
    Ok(())
}

/// A task is tried so often and no more.
pub fn check_tries(s: &Scheduler) -> Result<(), Violation> {
    s.tasks.iter().try_for_each(|(_, task)| {
        hold("who was tried is known", task.tried == task.record.is_tried(), || format!("{task:?}"))?;
        hold("tries are bounded", task.record.attempts <= s.config.retries_per_task + 1, || {
            format!("{:?}", task.record)
        })
    })
}

/// What may become of a task's record from one commit to the next: a digest stays but by a retry of nothing.
///
/// # Errors
/// A leg that had its digest lost it, or its revision did not grow.
pub fn check_transition(old: &TaskRecord, new: &TaskRecord) -> Result<(), Violation> {
    let keeps = !matches!(old.state, TaskState::Succeeded { .. }) || old.state == new.state;
    hold("a leg that has its digest is never built again", keeps, || {
        format!("{:?} became {:?}", old.state, new.state)
    })?;
    hold("revisions grow", new.revision > old.revision, || format!("{} after {}", new.revision, old.revision))
}

impl Scheduler {
    /// The cheap part of the rules, for every turn of a debug build.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn check_quick(&self) -> Result<(), Violation> {
        if self.mutation != crate::mutation::Mutation::None {
            return Ok(());
        }
        hold("every build is found by its id", self.build_ids.len() == self.builds.len(), || {
            format!("{} of {} builds", self.build_ids.len(), self.builds.len())
        })?;
        let waiting = self.queue.waiting();
        hold("the queue holds what waits", waiting <= self.tasks.len(), || {
            format!("{waiting} of {}", self.tasks.len())
        })?;
        let settled = self.turn.touched.is_empty() && self.turn.fresh.is_empty() && self.turn.acts.is_empty();
        hold("a turn gives out all it has", settled, || "work is left over".to_owned())
    }

    /// Sizes of everything that is held, for the tests that show them bounded.
    #[doc(hidden)]
    #[must_use]
    pub fn sizes(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            ("builds", self.builds.len()),
            ("tasks", self.tasks.len()),
            ("requests", self.requests.len()),
            ("finals", self.finals.len()),
            ("timers", self.timers.len()),
            ("flows", self.queue.flows.len()),
            ("lanes", self.queue.lanes.len()),
            ("selectors", self.farm.selectors.len()),
            ("repositories", self.history.len()),
            ("alike", self.alike.len()),
        ])
    }
}
