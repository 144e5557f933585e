//! Why a task waits: each worker's answer, the place in the queue, and when it is expected to start and finish.

use std::time::Duration;

use kiln_common::{BuildId, EmulationPolicy, Grade, TaskId, Timestamp, WorkerId};

use crate::{
    emulation::seconds,
    farm::{grade_index, selector::Needs, worker::Worker},
    queue::lane::Mode,
    record::TaskState,
    scheduler::Scheduler,
    slab::{TaskIx, WorkerIx},
};

/// Why one task waits, or where it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskExplanation {
    pub task: TaskId,
    /// Place in its platform's queue, from 1; 0 when it does not wait.
    pub queue_position: usize,
    pub predicted_start: Option<Timestamp>,
    pub predicted_finish: Option<Timestamp>,
    pub predicted_emulated: bool,
    /// How many times slower than natively it runs emulated; 0 when it is not emulated.
    pub slowdown: f64,
    pub verdicts: Vec<Verdict>,
    /// The whole in one sentence.
    pub summary: String,
}

/// Whether one worker can take a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub worker: WorkerId,
    pub worker_name: String,
    /// It could take the task now.
    pub qualifies: bool,
    pub grade: Option<Grade>,
    pub reason: String,
}

/// What is expected of a waiting task.
struct Prediction {
    start: Option<Timestamp>,
    finish: Option<Timestamp>,
    emulated: bool,
    slowdown: u64,
}

impl Scheduler {
    /// One explanation for each task of the build that is not final; empty when the build is not in memory.
    #[must_use]
    pub fn explain(&self, build: BuildId, now: Timestamp) -> Vec<TaskExplanation> {
        let tasks = self.build_ids.get(&build).map(|at| self.builds[*at].tasks.as_slice()).unwrap_or_default();
        tasks
            .iter()
            .filter(|at| !self.tasks[**at].record.state.is_final())
            .map(|at| self.explain_task(*at, now))
            .collect()
    }

    fn explain_task(&self, at: TaskIx, now: Timestamp) -> TaskExplanation {
        let task = &self.tasks[at];
        let prediction = self.predict(at, now);
        TaskExplanation {
            task: task.record.id,
            queue_position: self.queue_position(at),
            predicted_start: prediction.start,
            predicted_finish: prediction.finish,
            predicted_emulated: prediction.emulated,
            slowdown: if prediction.emulated { prediction.slowdown as f64 / 1_000.0 } else { 0.0 },
            verdicts: self.farm.ids.values().map(|worker| self.verdict(at, *worker)).collect(),
            summary: self.summary(at, &prediction, now),
        }
    }

    fn queue_position(&self, at: TaskIx) -> usize {
        let task = &self.tasks[at];
        let (Some(spot), Some(queue)) = (task.spot.as_ref(), self.queue.platform(task.platform)) else { return 0 };
        let mean = queue.cost / (queue.waiting.max(1) as u64);
        let ahead = queue
            .lanes
            .iter()
            .map(|lane| self.queue.lanes[*lane].ahead_of(&self.queue.flows, spot.flow, &spot.order, mean));
        ahead.sum::<usize>() + 1
    }

    fn predict(&self, at: TaskIx, now: Timestamp) -> Prediction {
        let task = &self.tasks[at];
        if let (TaskState::Assigned | TaskState::Running, Some(attempt), Some(worker)) =
            (&task.record.state, &task.record.attempt, task.worker)
        {
            let start = attempt.started_at.unwrap_or(attempt.assigned_at);
            let finish = start + Duration::from_millis(self.predicted(at, worker, attempt.grade));
            return Prediction {
                start: Some(start),
                finish: Some(finish.max(now)),
                emulated: attempt.grade.is_emulated(),
                slowdown: self.slowdown(at, worker),
            };
        }
        let not_before = match &task.record.state {
            TaskState::Backoff { until, .. } => *until,
            TaskState::Waiting { .. }
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Succeeded { .. }
            | TaskState::Failed { .. }
            | TaskState::Cancelled => now,
        };
        self.predict_waiting(at, not_before.max(now))
    }

    fn predict_waiting(&self, at: TaskIx, from: Timestamp) -> Prediction {
        let task = &self.tasks[at];
        let unknown = Prediction { start: None, finish: None, emulated: false, slowdown: 0 };
        let (Some(ties), Some(selector)) = (task.ties, self.builds[task.build].selector) else { return unknown };
        let members = &self.farm.selectors.get(selector).members;
        let native_cost = self.history.native(ties.memory, task.platform);
        if self.native_wait(task.platform, members, 0).is_some() {
            let start = from + Duration::from_millis(self.wait_at_position(at));
            let finish = start + Duration::from_millis(native_cost);
            return Prediction { start: Some(start), finish: Some(finish), emulated: false, slowdown: 0 };
        }
        let pool = self.farm.pool(task.platform, Grade::Emulated);
        let worker = pool.healthy.first_common(members, 0, |_| true);
        let policy = self.builds[task.build].record.spec.emulation;
        let (Some(worker), true) = (worker, policy != EmulationPolicy::Never) else { return unknown };
        let start = task.emulation_at.unwrap_or(from).max(from)
            + Duration::from_millis(if pool.has_free() { 0 } else { self.wait_at_position(at) });
        let finish = start + Duration::from_millis(self.predicted(at, worker, Grade::Emulated));
        Prediction { start: Some(start), finish: Some(finish), emulated: true, slowdown: self.slowdown(at, worker) }
    }

    /// Milliseconds until what goes before the task has left the platform's slots.
    fn wait_at_position(&self, at: TaskIx) -> u64 {
        let task = &self.tasks[at];
        let entry = self.farm.entry(task.platform);
        let slots = entry.pools.iter().map(|pool| pool.slots).sum::<u64>().max(1);
        let live = entry.live.iter().sum::<u64>();
        let mean = self.history.mean(task.platform);
        let ahead = self.queue_position(at).saturating_sub(1) as u64;
        ((ahead * mean) + live.min(slots) * mean / 2) / slots
    }

    fn summary(&self, at: TaskIx, prediction: &Prediction, now: Timestamp) -> String {
        let task = &self.tasks[at];
        match (&task.record.state, &task.record.attempt) {
            (TaskState::Assigned | TaskState::Running, Some(attempt)) => {
                format!(
                    "{} is on worker `{}` ({}): {}",
                    task.record.platform, attempt.worker_name, attempt.grade, attempt.reason
                )
            }
            (TaskState::Backoff { until, message }, _) => {
                let wait = seconds(until.as_millis().saturating_sub(now.as_millis()));
                format!("{} is tried again in {wait} after: {message}", task.record.platform)
            }
            (TaskState::Waiting { .. }, _) => {
                let start = prediction.start.map(|start| seconds(start.as_millis().saturating_sub(now.as_millis())));
                let expected = start.map(|wait| format!("; expected to start in about {wait}")).unwrap_or_default();
                format!("{}{expected}", self.why_waiting(at))
            }
            (TaskState::Assigned | TaskState::Running, None)
            | (TaskState::Succeeded { .. } | TaskState::Failed { .. } | TaskState::Cancelled, _) => {
                format!("{} does not wait", task.record.platform)
            }
        }
    }

    /// The most telling reason, from counts of the workers' answers.
    pub(crate) fn why_waiting(&self, at: TaskIx) -> String {
        let task = &self.tasks[at];
        let platform = &task.record.platform;
        let entry = self.farm.entry(task.platform);
        let Some(selector) = self.builds[task.build].selector else { return format!("{platform} does not wait") };
        let members = &self.farm.selectors.get(selector).members;
        let grades = [Grade::Native, Grade::Compat];
        let pools = || grades.into_iter().map(|grade| &entry.pools[grade_index(grade)]);
        let ready: usize = pools().map(|pool| pool.healthy.common(members) + pool.throttled.common(members)).sum();
        let known: usize = pools().map(|pool| pool.known.common(members)).sum();
        let emulated = entry.pools[grade_index(Grade::Emulated)].healthy.common(members);
        let position = self.queue_position(at);
        if ready > 0 {
            return format!("{platform} waits at position {position}: the {ready} workers that run it are full");
        }
        let mode = task.spot.as_ref().map(|spot| self.queue.lanes[spot.lane].key.mode);
        match (known, emulated, mode) {
            (0, 0, _) => format!("{platform} waits: no registered worker can take it any more"),
            (_, 0, _) => format!(
                "{platform} waits: none of the {known} workers that run it takes tasks now (offline, cordoned or short of something)"
            ),
            (_, _, Some(Mode::Closed)) => {
                let policy = self.builds[task.build].record.spec.emulation;
                format!(
                    "{platform} waits for a native worker: none takes tasks now, and --emulation {policy} rules emulation out"
                )
            }
            (_, _, _) => {
                format!("{platform} waits at position {position}: the {emulated} workers that emulate it are full")
            }
        }
    }

    fn verdict(&self, at: TaskIx, worker: WorkerIx) -> Verdict {
        let entry = &self.farm.workers[worker];
        let task = &self.tasks[at];
        let grade = entry.grade_of(task.platform);
        let obstacle = self.obstacle(at, worker, grade);
        let reason = obstacle.clone().unwrap_or_else(|| match (task.worker == Some(worker), grade) {
            (true, _) => "it has the task".to_owned(),
            (false, Some(grade)) => format!("free, {grade}"),
            (false, None) => String::new(),
        });
        Verdict {
            worker: entry.record.id,
            worker_name: entry.record.name.clone(),
            qualifies: obstacle.is_none(),
            grade,
            reason,
        }
    }

    /// What keeps the worker from taking the task now, the most lasting first.
    fn obstacle(&self, at: TaskIx, worker: WorkerIx, grade: Option<Grade>) -> Option<String> {
        let (task, entry) = (&self.tasks[at], &self.farm.workers[worker]);
        let build = &self.builds[task.build];
        let Some(grade) = grade else {
            return Some(format!("does not run {}", task.record.platform));
        };
        if let Some(lack) = lacks(&Needs::of(&build.record.spec), entry) {
            return Some(lack);
        }
        if let Some(unready) = entry.unready() {
            return Some(unready.to_string());
        }
        if task.worker == Some(worker) {
            return None;
        }
        if entry.free_slots() == 0 {
            return Some(format!("full: {} of {} slots in use", entry.held(), entry.slots()));
        }
        if !self.suits(at, worker) {
            return Some("an earlier attempt failed there; others are tried first".to_owned());
        }
        let members = &self.farm.selectors.get(build.selector?).members;
        if entry.stats.throttled && self.others_can(task.platform, members, grade) {
            return Some("throttled; others are tried first".to_owned());
        }
        self.emulation_obstacle(at, worker, grade)
    }

    fn emulation_obstacle(&self, at: TaskIx, worker: WorkerIx, grade: Grade) -> Option<String> {
        let task = &self.tasks[at];
        if !grade.is_emulated() {
            return None;
        }
        let mode = task.spot.as_ref().map(|spot| self.queue.lanes[spot.lane].key.mode)?;
        let policy = self.builds[task.build].record.spec.emulation;
        match mode {
            Mode::Open => None,
            Mode::Closed => Some(format!("would emulate, which --emulation {policy} does not allow now")),
            Mode::Auto if self.emulation_pays(at, worker) => None,
            Mode::Auto => {
                let slowdown = self.slowdown(at, worker);
                Some(format!(
                    "would emulate, about {}.{} times slower: a native worker is predicted to finish earlier",
                    slowdown / 1_000,
                    slowdown % 1_000 / 100
                ))
            }
        }
    }
}

fn lacks(needs: &Needs, worker: &Worker) -> Option<String> {
    if !needs.features_met_by(worker) {
        let has = worker.record.facts.as_ref().map(|facts| facts.features.clone()).unwrap_or_default();
        let lacking: Vec<_> = needs.features.difference(&has).map(|feature| feature.name()).collect();
        return Some(format!("its engine lacks {}", lacking.join(", ")));
    }
    let (key, value) = needs.labels.iter().find(|(key, value)| worker.label(key) != Some(value))?;
    Some(format!("has no label {key}={value}"))
}
