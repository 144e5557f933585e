//! What is known of a build while it runs: a pure fold over what the farm tells, shared by every view.
//!
//! Inputs may come late, twice or out of turn (streams reconnect); the model lets each log entry through exactly once
//! and answers with the changes that a view has to tell. It reads no clock: every call is handed the moment.

use std::{collections::HashMap, time::Duration};

use kiln_common::Timestamp;
use kiln_proto::v1::{self, BuildState, TaskState, progress_entry::Event};

use super::step::{Status, Step};

/// Steps of one leg that views follow; what comes beyond is still part of the log.
const STEPS_PER_LEG: usize = 4096;

/// What the client or the farm tells.
#[derive(Debug)]
pub enum Input {
    /// The context is being read and sent.
    Upload(Upload),
    /// The build as the farm knows it.
    Build(Box<v1::Build>),
    /// Entries of one attempt's log.
    Log(v1::LogsResponse),
    /// Something that people should read, for example that a connection was lost.
    Notice(String),
}

/// How far the context has got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upload {
    /// Files read so far, and their bytes.
    pub files: u64,
    pub bytes: u64,
    /// Bytes that the farm lacks, as far as known, and those sent so far.
    pub missing: u64,
    pub sent: u64,
    pub done: bool,
    pub elapsed: Duration,
}

/// What a view has to tell; indexes are into [`Model::legs`] and [`Leg::steps`].
#[derive(Debug)]
pub enum Change {
    Upload,
    /// The build was accepted or moved to another state.
    State,
    /// A leg moved on; the text says how.
    Leg {
        leg: usize,
        text: String,
        kind: LegChange,
    },
    /// The leg is tried anew: its steps are gone.
    Attempt {
        leg: usize,
    },
    Started {
        leg: usize,
        step: usize,
    },
    Line {
        leg: usize,
        step: usize,
        at: Duration,
        text: String,
    },
    Status {
        leg: usize,
        step: usize,
        status: Status,
    },
    Done {
        leg: usize,
        step: usize,
    },
    Warning {
        leg: usize,
        step: Option<usize>,
        warning: v1::BuildWarning,
    },
    /// The entry itself, after all that it changed.
    Entry {
        leg: usize,
        entry: Box<v1::ProgressEntry>,
    },
    Notice(String),
}

/// Which kind of news about a leg it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegChange {
    Waiting,
    Placed,
    /// Placed under emulation: never told in passing.
    Emulated,
    Retrying,
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(Debug, Default)]
pub struct Model {
    pub build: Option<v1::Build>,
    pub upload: Option<Upload>,
    pub legs: Vec<Leg>,
}

/// One platform.
#[derive(Debug, Default)]
pub struct Leg {
    pub platform: String,
    /// As the build told last; `None`: only its log was seen.
    pub task: Option<v1::Task>,
    pub steps: Vec<Step>,
    /// The attempt that the steps belong to.
    pub attempt: String,
    /// The sequence number that the attempt's log continues with; `None`: nothing was seen yet.
    next_sequence: Option<u64>,
    by_digest: HashMap<String, usize>,
    /// How far the worker's clock is behind this one, in milliseconds, transport included.
    lag: Option<i64>,
    told: String,
}

impl Leg {
    /// Now on the clock of the worker, so that running times do not depend on two clocks agreeing.
    #[must_use]
    pub fn worker_now(&self, now: Timestamp) -> Timestamp {
        let millis = i64::try_from(now.as_millis()).unwrap_or(i64::MAX).saturating_sub(self.lag.unwrap_or(0));
        Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
    }

    #[must_use]
    pub fn state(&self) -> TaskState {
        self.task.as_ref().map_or(TaskState::Running, v1::Task::state)
    }

    fn learn_lag(&mut self, entry: &v1::ProgressEntry, now: Timestamp) {
        let Some(at) = &entry.time else { return };
        let at = kiln_proto::convert::timestamp_from_wire(at);
        let lag = i64::try_from(now.as_millis()).unwrap_or(0) - i64::try_from(at.as_millis()).unwrap_or(0);
        self.lag = Some(self.lag.map_or(lag, |known| known.min(lag)));
    }
}

impl Model {
    /// Takes one input and says what changed.
    pub fn apply(&mut self, input: Input, now: Timestamp) -> Vec<Change> {
        match input {
            Input::Upload(upload) => {
                self.upload = Some(upload);
                vec![Change::Upload]
            }
            Input::Build(build) => self.apply_build(*build),
            Input::Log(log) => self.apply_log(log, now),
            Input::Notice(text) => vec![Change::Notice(text)],
        }
    }

    #[must_use]
    pub fn state(&self) -> Option<BuildState> {
        self.build.as_ref().map(v1::Build::state)
    }

    fn apply_build(&mut self, build: v1::Build) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.build.as_ref().is_some_and(|known| known.revision > build.revision) {
            return changes;
        }
        if self.state() != Some(build.state()) {
            changes.push(Change::State);
        }
        for task in &build.tasks {
            let at = self.leg(&task.platform);
            if self.legs[at].attempt < task.attempt_id {
                self.begin_attempt(at, &task.attempt_id, &mut changes);
            }
            let leg = &mut self.legs[at];
            leg.task = Some(task.clone());
            if let Some((kind, text)) = news(task)
                && leg.told != text
            {
                leg.told.clone_from(&text);
                changes.push(Change::Leg { leg: at, text, kind });
            }
        }
        self.build = Some(build);
        changes
    }

    /// The leg of a platform, made where it is new.
    fn leg(&mut self, platform: &str) -> usize {
        if let Some(at) = self.legs.iter().position(|leg| leg.platform == platform) {
            return at;
        }
        self.legs.push(Leg { platform: platform.to_owned(), ..Leg::default() });
        self.legs.len() - 1
    }

    /// Ids of attempts order by time, so a later one supersedes what was shown.
    fn begin_attempt(&mut self, at: usize, attempt: &str, changes: &mut Vec<Change>) {
        let leg = &mut self.legs[at];
        leg.attempt = attempt.to_owned();
        leg.next_sequence = None;
        leg.by_digest.clear();
        if !leg.steps.is_empty() {
            leg.steps.clear();
            changes.push(Change::Attempt { leg: at });
        }
    }

    fn apply_log(&mut self, log: v1::LogsResponse, now: Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        let at = self.leg(&log.platform);
        if log.attempt_id < self.legs[at].attempt {
            return changes;
        }
        if log.attempt_id > self.legs[at].attempt {
            self.begin_attempt(at, &log.attempt_id, &mut changes);
        }
        let next = self.legs[at].next_sequence.unwrap_or(log.first_sequence);
        let seen = usize::try_from(next.saturating_sub(log.first_sequence)).unwrap_or(usize::MAX);
        let count = log.entries.len() as u64;
        self.legs[at].next_sequence = Some(next.max(log.first_sequence + count));
        for entry in log.entries.into_iter().skip(seen) {
            self.legs[at].learn_lag(&entry, now);
            self.apply_entry(at, &entry, &mut changes);
            changes.push(Change::Entry { leg: at, entry: Box::new(entry) });
        }
        changes
    }

    fn apply_entry(&mut self, leg: usize, entry: &v1::ProgressEntry, changes: &mut Vec<Change>) {
        match &entry.event {
            Some(Event::Vertex(vertex)) => self.apply_vertex(leg, vertex, changes),
            Some(Event::Status(status)) => {
                if let Some(step) = self.step(leg, &status.vertex) {
                    let status = self.legs[leg].steps[step].apply_status(status);
                    changes.push(Change::Status { leg, step, status });
                }
            }
            Some(Event::Line(line)) => {
                if let Some(step) = self.step(leg, &line.vertex)
                    && let Some((at, text)) = self.legs[leg].steps[step].apply_line(line, entry.time.as_ref())
                {
                    changes.push(Change::Line { leg, step, at, text });
                }
            }
            Some(Event::Warning(warning)) => {
                let step = self.legs[leg].by_digest.get(&warning.vertex).copied();
                changes.push(Change::Warning { leg, step, warning: warning.clone() });
            }
            None => {}
        }
    }

    fn apply_vertex(&mut self, leg: usize, vertex: &v1::Vertex, changes: &mut Vec<Change>) {
        let Some(step) = self.step(leg, &vertex.digest) else { return };
        let known = &mut self.legs[leg].steps[step];
        let (was_started, was_done) = (known.is_started(), known.is_done());
        known.apply_vertex(vertex);
        let (is_started, is_done) = (known.is_started(), known.is_done());
        if is_started && !was_started {
            changes.push(Change::Started { leg, step });
        }
        if is_done && !was_done {
            changes.push(Change::Done { leg, step });
        }
    }

    /// The step with this digest, made where it is new.
    fn step(&mut self, leg: usize, digest: &str) -> Option<usize> {
        let leg = &mut self.legs[leg];
        if let Some(at) = leg.by_digest.get(digest) {
            return Some(*at);
        }
        if leg.steps.len() == STEPS_PER_LEG {
            return None;
        }
        leg.steps.push(Step::new(digest));
        leg.by_digest.insert(digest.to_owned(), leg.steps.len() - 1);
        Some(leg.steps.len() - 1)
    }
}

/// What people should hear about a task, in one sentence without its platform.
fn news(task: &v1::Task) -> Option<(LegChange, String)> {
    let reason = |lead: &str| if task.reason.is_empty() { String::new() } else { format!("{lead}{}", task.reason) };
    let message = |lead: &str| if task.message.is_empty() { String::new() } else { format!("{lead}{}", task.message) };
    let place = format!("{} ({})", task.worker_name, crate::output::text::grade(task.grade()));
    let attempt = if task.attempts > 1 { format!(", attempt {}", task.attempts) } else { String::new() };
    Some(match task.state() {
        TaskState::Unspecified => return None,
        TaskState::Waiting => (LegChange::Waiting, format!("waiting{}", reason(": "))),
        TaskState::Assigned | TaskState::Running if task.grade() == v1::Grade::Emulated => {
            (LegChange::Emulated, format!("EMULATED on {}{attempt}{}", task.worker_name, reason(": ")))
        }
        TaskState::Assigned | TaskState::Running => (LegChange::Placed, format!("on {place}{attempt}")),
        TaskState::Backoff => (
            LegChange::Retrying,
            format!("attempt {} on {place} failed{}; it is tried again", task.attempts, message(": ")),
        ),
        TaskState::Succeeded => (LegChange::Succeeded, format!("built on {place}")),
        TaskState::Failed if task.worker_name.is_empty() => (LegChange::Failed, format!("failed{}", message(": "))),
        TaskState::Failed => (LegChange::Failed, format!("failed on {place}{}", message(": "))),
        TaskState::Cancelled => (LegChange::Cancelled, "cancelled".to_owned()),
    })
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
