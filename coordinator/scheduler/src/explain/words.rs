//! The explanation in one sentence.

use kiln_common::{Grade, Timestamp};

use super::predict::Prediction;
use crate::{
    emulation::seconds, farm::grade_index, queue::lane::Mode, record::TaskState, scheduler::Scheduler, slab::TaskIx,
};

impl Scheduler {
    pub(super) fn summary(&self, at: TaskIx, prediction: &Prediction, now: Timestamp) -> String {
        let record = &self.tasks[at].record;
        let platform = &record.platform;
        let until = |moment: Timestamp| seconds(moment.as_millis().saturating_sub(now.as_millis()));
        match (&record.state, &record.attempt) {
            (TaskState::Assigned | TaskState::Running, Some(attempt)) => {
                format!("{platform} is on worker `{}` ({}): {}", attempt.worker_name, attempt.grade, attempt.reason)
            }
            (TaskState::Shared { build, .. }, Some(attempt)) => format!(
                "{platform} waits for the identical leg of build {build}, which is on worker `{}` ({}): {}",
                attempt.worker_name, attempt.grade, attempt.reason
            ),
            (TaskState::Backoff { until: moment, message }, _) => {
                format!("{platform} is tried again in {} after: {message}", until(*moment))
            }
            (TaskState::Waiting { .. }, _) => {
                let start = prediction.start.map(|start| format!("; expected to start in about {}", until(start)));
                format!("{}{}", self.why_waiting(at), start.unwrap_or_default())
            }
            (TaskState::Assigned | TaskState::Running | TaskState::Shared { .. }, None)
            | (TaskState::Succeeded { .. } | TaskState::Failed { .. } | TaskState::Cancelled, _) => {
                format!("{platform} does not wait")
            }
        }
    }

    pub(crate) fn why_waiting(&self, at: TaskIx) -> String {
        let (platform, position) = (&self.tasks[at].record.platform, self.queue_position(at));
        format!("{platform} waits at position {position}: {}", self.cause_of_waiting(at))
    }

    /// The most telling reason, from counts of the workers' answers.
    pub(crate) fn cause_of_waiting(&self, at: TaskIx) -> String {
        let task = &self.tasks[at];
        let build = &self.builds[task.build];
        let Some(ties) = build.ties else { return "its build has ended".to_owned() };
        let members = &self.farm.selectors.get(ties.selector).members;
        let entry = self.farm.entry(task.platform);
        let pools = || [Grade::Native, Grade::Compat].map(|grade| &entry.pools[grade_index(grade)]).into_iter();
        let ready: usize = pools().map(|pool| pool.healthy.common(members) + pool.strained.common(members)).sum();
        let known: usize = pools().map(|pool| pool.known.common(members)).sum();
        let emulators = &entry.pools[grade_index(Grade::Emulated)];
        let emulated = emulators.healthy.common(members) + emulators.strained.common(members);
        let mode = task.share().map(|share| self.queue.mode(share));
        match (ready, known, emulated, mode) {
            (1.., _, _, _) => format!("{} full", those(ready, "that runs it is", "that run it are")),
            (0, 0, 0, _) => "no registered worker can take it any more".to_owned(),
            (0, _, 0, _) => format!(
                "{} no tasks now (offline, cordoned, quarantined or short of something)",
                those(known, "that runs it takes", "that run it take")
            ),
            (0, _, _, Some(Mode::Closed)) => {
                let policy = build.spec.emulation;
                format!("no native worker takes tasks now, and --emulation {policy} rules emulation out for now")
            }
            (0, _, _, _) => format!("{} full", those(emulated, "that emulates it is", "that emulate it are")),
        }
    }
}

fn those(count: usize, one: &str, several: &str) -> String {
    if count == 1 { format!("the one worker {one}") } else { format!("the {count} workers {several}") }
}
