//! Why a task waits: each worker's answer, the place in the queue, and when it is expected to start and finish.
//!
//! Every worker is counted with its answer; those that come nearest to taking the task are named one by one.

mod obstacle;
mod predict;
mod words;

use std::collections::BTreeMap;

use kiln_common::{BuildId, Grade, TaskId, Timestamp, WorkerId, limits};

use self::obstacle::Obstacle;
use crate::{
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
    /// Those nearest to taking the task first, and not more than [`limits::EXPLAINED_WORKERS`].
    pub verdicts: Vec<Verdict>,
    /// Every worker, counted by its answer; those nearest to taking the task first.
    pub answers: Vec<Answer>,
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

/// What several workers answer alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub qualifies: bool,
    pub grade: Option<Grade>,
    /// In a few words, for example `full`.
    pub answer: String,
    pub workers: usize,
    /// Of some of them.
    pub names: Vec<String>,
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
        let prediction = self.predict(at, now);
        let obstacles = self.obstacles(at);
        let named = obstacles.iter().take(limits::EXPLAINED_WORKERS);
        TaskExplanation {
            task: self.tasks[at].record.id,
            queue_position: self.queue_position(at),
            predicted_start: prediction.start,
            predicted_finish: prediction.finish,
            predicted_emulated: prediction.emulated,
            slowdown: if prediction.emulated { prediction.slowdown as f64 / 1_000.0 } else { 0.0 },
            verdicts: named.map(|(worker, obstacle)| self.verdict(at, *worker, obstacle.as_ref())).collect(),
            answers: self.answers(at, &obstacles),
            summary: self.summary(at, &prediction, now),
        }
    }

    /// Every worker with what keeps it from the task; those nearest to it first, then by id.
    fn obstacles(&self, at: TaskIx) -> Vec<(WorkerIx, Option<Obstacle<'_>>)> {
        let workers = self.farm.by_id().into_iter();
        let mut all: Vec<_> = workers.map(|worker| (worker, self.obstacle(at, worker))).collect();
        all.sort_by_key(|(_, obstacle)| obstacle.as_ref().map(Obstacle::distance));
        all
    }

    fn verdict(&self, at: TaskIx, worker: WorkerIx, obstacle: Option<&Obstacle<'_>>) -> Verdict {
        let (task, entry) = (&self.tasks[at], &self.farm.workers[worker]);
        let grade = entry.grade_of(task.platform);
        let reason = match (obstacle, task.worker() == Some(worker), grade) {
            (Some(obstacle), _, _) => obstacle.to_string(),
            (None, true, _) => "it has the task".to_owned(),
            (None, false, Some(grade)) => format!("free, {grade}"),
            (None, false, None) => String::new(),
        };
        Verdict { worker: entry.id, worker_name: entry.name.to_string(), qualifies: obstacle.is_none(), grade, reason }
    }

    fn answers(&self, at: TaskIx, obstacles: &[(WorkerIx, Option<Obstacle<'_>>)]) -> Vec<Answer> {
        let task = &self.tasks[at];
        let mut answers: Vec<Answer> = Vec::new();
        let mut known = BTreeMap::new();
        for (worker, obstacle) in obstacles {
            let entry = &self.farm.workers[*worker];
            let grade = entry.grade_of(task.platform);
            let name = match obstacle {
                Some(obstacle) => obstacle.name(),
                None if task.worker() == Some(*worker) => "has the task",
                None => "free",
            };
            let place = *known.entry((name, grade)).or_insert_with(|| {
                let qualifies = obstacle.is_none();
                answers.push(Answer { qualifies, grade, answer: name.to_owned(), workers: 0, names: Vec::new() });
                answers.len() - 1
            });
            let answer = &mut answers[place];
            answer.workers += 1;
            if answer.names.len() < limits::EXPLAINED_NAMES {
                answer.names.push(entry.name.to_string());
            }
        }
        answers
    }
}
