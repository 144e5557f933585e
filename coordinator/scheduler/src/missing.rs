//! Legs whose images are not in the registry, though their workers said that they had pushed them.
//!
//! Such a leg has no digest after all: it is built again, elsewhere, as after any other failure of the farm, and its worker
//! answers for it.

use kiln_common::{BuildId, Platform};

use crate::{
    record::{BuildState, TaskState},
    scheduler::Scheduler,
    slab::{BuildIx, TaskIx},
};

impl Scheduler {
    pub(crate) fn on_legs_missing(&mut self, id: BuildId, publish: u32, missing: &[Platform], message: &str) {
        let Some(at) = self.publishing(id, publish) else { return };
        let is_missing = |task: &TaskIx| {
            let record = &self.tasks[*task].record;
            missing.contains(&record.platform) && matches!(record.state, TaskState::Succeeded { .. })
        };
        let tasks: Vec<TaskIx> = self.builds[at].tasks.iter().copied().filter(is_missing).collect();
        if tasks.is_empty() {
            return self.fail_build(at, format!("the publish failed: {message}"));
        }
        let now = self.now;
        let record = self.builds[at].record_mut();
        record.state = BuildState::Running;
        record.started_at.get_or_insert(now);
        self.changed_build(at);
        for task in tasks {
            // One that has used up its tries ends the build.
            if !self.builds[at].record.state.is_final() {
                self.build_again(at, task, message);
            }
        }
        self.advance(at);
    }

    fn build_again(&mut self, build: BuildIx, at: TaskIx, message: &str) {
        let Some(attempt) = &self.tasks[at].record.attempt else { return };
        // Of builds that shared the attempt, the one for which it began names its worker.
        let is_first = attempt.began_for.is_none_or(|first| first == self.builds[build].record.id);
        match self.farm.find(attempt.worker) {
            Some(worker) => {
                if is_first {
                    self.worker_failed(worker, false, message);
                }
                self.try_again(at, worker, message.to_owned(), true);
            }
            // It was removed.
            None => self.begin_waiting(at),
        }
    }
}
