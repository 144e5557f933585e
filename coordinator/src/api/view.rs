//! Records of the farm as messages of the wire.

use kiln_common::{BuildId, Timestamp};
use kiln_proto::{
    convert::{self, spec, timestamp_to_wire},
    v1,
};
use kiln_scheduler::{
    BuildRecord, BuildState, Scheduler, TaskRecord, TaskState,
    explain::{Answer, TaskExplanation, Verdict},
    query::{WorkerState, WorkerView},
    record::{MachineFacts, WorkerFacts},
};

/// A build with its tasks; `reason` says why a task waits.
pub(super) fn build(
    record: &BuildRecord,
    tasks: &[TaskRecord],
    reason: impl Fn(&TaskRecord) -> Option<String>,
) -> v1::Build {
    let published = record.published.as_ref();
    v1::Build {
        id: record.id.to_string(),
        state: build_state(&record.state).into(),
        spec: Some(spec::encode(&record.spec)),
        created_at: Some(timestamp_to_wire(record.created_at)),
        started_at: record.started_at.map(timestamp_to_wire),
        finished_at: record.finished_at.map(timestamp_to_wire),
        tasks: tasks.iter().map(|record| task(record, reason(record))).collect(),
        digest: published.map(|published| published.digest.to_string()).unwrap_or_default(),
        media_type: published.map(|published| published.media_type.clone()).unwrap_or_default(),
        size_bytes: published.map(|published| published.size).unwrap_or_default(),
        message: match &record.state {
            BuildState::Failed { message } => message.clone(),
            BuildState::Cancelled { reason } => reason.clone(),
            BuildState::Queued
            | BuildState::Running
            | BuildState::Publishing { .. }
            | BuildState::Succeeded
            | BuildState::Incomplete => String::new(),
        },
        published_tags: published.map(|published| published.tags.clone()).unwrap_or_default(),
        revision: record.revision + tasks.iter().map(|task| task.revision).sum::<u64>(),
    }
}

const fn build_state(state: &BuildState) -> v1::BuildState {
    match state {
        BuildState::Queued => v1::BuildState::Queued,
        BuildState::Running => v1::BuildState::Running,
        BuildState::Publishing { .. } => v1::BuildState::Publishing,
        BuildState::Succeeded => v1::BuildState::Succeeded,
        BuildState::Incomplete => v1::BuildState::Incomplete,
        BuildState::Failed { .. } => v1::BuildState::Failed,
        BuildState::Cancelled { .. } => v1::BuildState::Cancelled,
    }
}

pub(super) fn task(record: &TaskRecord, waiting: Option<String>) -> v1::Task {
    let attempt = record.attempt.as_ref();
    let image = match &record.state {
        TaskState::Succeeded { image } => Some(image),
        TaskState::Waiting { .. }
        | TaskState::Assigned
        | TaskState::Running
        | TaskState::Shared { .. }
        | TaskState::Backoff { .. }
        | TaskState::Failed { .. }
        | TaskState::Cancelled => None,
    };
    let (state, message) = task_state(record);
    let shared_with = attempt.and_then(|attempt| attempt.began_for);
    let chosen = attempt.map(|attempt| match shared_with {
        Some(build) => format!("shared with build {build}; {}", attempt.reason),
        None => attempt.reason.to_string(),
    });
    v1::Task {
        id: record.id.to_string(),
        platform: record.platform.to_string(),
        optional: !record.required,
        state: state.into(),
        attempt_id: attempt.map(|attempt| attempt.id.to_string()).unwrap_or_default(),
        attempts: record.attempts,
        worker_id: attempt.map(|attempt| attempt.worker.to_string()).unwrap_or_default(),
        worker_name: attempt.map(|attempt| attempt.worker_name.to_string()).unwrap_or_default(),
        grade: attempt.map_or(v1::Grade::Unspecified, |attempt| convert::grade_to_wire(attempt.grade)).into(),
        reason: waiting.or(chosen).unwrap_or_default(),
        started_at: attempt.and_then(|attempt| attempt.started_at).map(timestamp_to_wire),
        finished_at: attempt.and_then(|attempt| attempt.finished_at).map(timestamp_to_wire),
        digest: image.map(|image| image.digest.to_string()).unwrap_or_default(),
        media_type: image.map(|image| image.media_type.clone()).unwrap_or_default(),
        size_bytes: image.map(|image| image.size).unwrap_or_default(),
        message,
        shared_with: shared_with.map(|build| build.to_string()).unwrap_or_default(),
    }
}

fn task_state(record: &TaskRecord) -> (v1::TaskState, String) {
    let has_started = record.attempt.as_ref().is_some_and(|attempt| attempt.started_at.is_some());
    match &record.state {
        TaskState::Shared { .. } if has_started => (v1::TaskState::Running, String::new()),
        TaskState::Shared { .. } => (v1::TaskState::Assigned, String::new()),
        TaskState::Waiting { .. } => (v1::TaskState::Waiting, String::new()),
        TaskState::Assigned => (v1::TaskState::Assigned, String::new()),
        TaskState::Running => (v1::TaskState::Running, String::new()),
        TaskState::Backoff { message, .. } => (v1::TaskState::Backoff, message.clone()),
        TaskState::Succeeded { .. } => (v1::TaskState::Succeeded, String::new()),
        TaskState::Failed { message } => (v1::TaskState::Failed, message.clone()),
        TaskState::Cancelled => (v1::TaskState::Cancelled, String::new()),
    }
}

pub(super) fn worker(view: &WorkerView<'_>) -> v1::Worker {
    let facts = view.record.facts.as_ref();
    let mut labels: std::collections::HashMap<_, _> =
        facts.map(|facts| facts.labels.clone().into_iter().collect()).unwrap_or_default();
    labels.extend(view.record.labels.clone());
    v1::Worker {
        id: view.record.id.to_string(),
        name: view.record.name.to_string(),
        state: worker_state(view.state).into(),
        state_reason: view.reason.clone(),
        platforms: facts.map(platforms).unwrap_or_default(),
        slots: view.slots,
        slots_used: u32::try_from(view.slots_used).unwrap_or(u32::MAX),
        labels,
        engine: facts.map(|facts| v1::EngineInfo {
            kind: facts.engine.kind.clone(),
            version: facts.engine.version.clone(),
            features: facts.features.iter().map(|feature| feature.name().to_owned()).collect(),
        }),
        machine: facts.map(|facts| machine(&facts.machine)),
        stats: Some(v1::WorkerStats {
            load1: view.stats.load1,
            memory_available_bytes: view.stats.memory_available.unwrap_or_default(),
            disk_available_bytes: view.stats.disk_available.unwrap_or_default(),
            temperature_celsius: view.stats.temperature_celsius.unwrap_or_default(),
            throttled: view.stats.throttled,
            cpu_pressure: view.stats.cpu_pressure,
            memory_pressure: view.stats.memory_pressure,
            io_pressure: view.stats.io_pressure,
            pruned_bytes: view.stats.pruned,
        }),
        last_seen_at: view.last_seen.map(timestamp_to_wire),
        joined_at: Some(timestamp_to_wire(view.record.joined_at)),
        task_ids: view.tasks.iter().map(ToString::to_string).collect(),
    }
}

const fn worker_state(state: WorkerState) -> v1::WorkerState {
    match state {
        WorkerState::Ready => v1::WorkerState::Ready,
        WorkerState::Cordoned => v1::WorkerState::Cordoned,
        WorkerState::Draining => v1::WorkerState::Draining,
        WorkerState::Offline => v1::WorkerState::Offline,
        WorkerState::Quarantined => v1::WorkerState::Quarantined,
    }
}

fn platforms(facts: &WorkerFacts) -> Vec<v1::WorkerPlatform> {
    let mut platforms: Vec<_> = facts.platforms.iter().collect();
    platforms.sort_by_key(|(platform, grade)| (**grade, (*platform).clone()));
    platforms.into_iter().map(|(platform, grade)| convert::worker_platform_to_wire(platform, *grade)).collect()
}

fn machine(facts: &MachineFacts) -> v1::MachineInfo {
    v1::MachineInfo {
        cpu_model: facts.cpu_model.clone(),
        cpus: facts.cpus,
        memory_bytes: facts.memory,
        disk_bytes: facts.disk,
        disk_min_bytes: facts.disk_min,
        kiln_version: facts.kiln_version.clone(),
        os: facts.os.clone(),
    }
}

/// Every explanation of a build's tasks that are not final.
pub(super) fn explanations(scheduler: &Scheduler, build: BuildId, now: Timestamp) -> v1::ExplainBuildResponse {
    let tasks: Vec<&TaskRecord> = scheduler.tasks_of(build).collect();
    let shown = |record: &TaskRecord| task(record, scheduler.waiting_reason(record));
    let wire = |explanation: TaskExplanation| v1::TaskExplanation {
        task: tasks.iter().find(|record| record.id == explanation.task).map(|record| shown(record)),
        queue_position: u32::try_from(explanation.queue_position).unwrap_or(u32::MAX),
        predicted_start: explanation.predicted_start.map(timestamp_to_wire),
        predicted_finish: explanation.predicted_finish.map(timestamp_to_wire),
        predicted_emulated: explanation.predicted_emulated,
        slowdown: explanation.slowdown,
        workers: explanation.verdicts.into_iter().map(verdict).collect(),
        summary: explanation.summary,
        answers: explanation.answers.into_iter().map(answer).collect(),
    };
    v1::ExplainBuildResponse { tasks: scheduler.explain(build, now).into_iter().map(wire).collect() }
}

fn verdict(verdict: Verdict) -> v1::WorkerVerdict {
    v1::WorkerVerdict {
        worker_id: verdict.worker.to_string(),
        worker_name: verdict.worker_name,
        qualifies: verdict.qualifies,
        grade: verdict.grade.map_or(v1::Grade::Unspecified, convert::grade_to_wire).into(),
        reason: verdict.reason,
    }
}

fn answer(answer: Answer) -> v1::WorkerAnswer {
    v1::WorkerAnswer {
        qualifies: answer.qualifies,
        grade: answer.grade.map_or(v1::Grade::Unspecified, convert::grade_to_wire).into(),
        answer: answer.answer,
        workers: u32::try_from(answer.workers).unwrap_or(u32::MAX),
        names: answer.names,
    }
}

/// How long a task's last attempt took; `None` while it runs.
pub(super) fn duration_of(task: &TaskRecord) -> Option<std::time::Duration> {
    let attempt = task.attempt.as_ref()?;
    let ended: Timestamp = attempt.finished_at?;
    Some(ended.since(attempt.started_at?))
}
