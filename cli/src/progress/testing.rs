//! Short ways to write what a farm tells, for the tests of the views.

use kiln_common::Timestamp;
use kiln_proto::v1::{
    self, BuildState, Grade, LogLine, LogsResponse, ProgressEntry, Task, TaskState, Vertex, VertexStatus,
    progress_entry::Event,
};

/// A moment, in seconds.
pub fn at(seconds: f64) -> Timestamp {
    Timestamp::from_millis((seconds * 1000.0).round() as u64)
}

pub fn wire(seconds: f64) -> prost_types::Timestamp {
    kiln_proto::convert::timestamp_to_wire(at(seconds))
}

pub fn log(platform: &str, attempt: &str, first_sequence: u64, entries: Vec<ProgressEntry>) -> LogsResponse {
    LogsResponse { platform: platform.into(), attempt_id: attempt.into(), first_sequence, entries }
}

pub fn vertex(digest: &str, name: &str, started: Option<f64>, completed: Option<f64>) -> ProgressEntry {
    let vertex = Vertex {
        digest: digest.into(),
        name: name.into(),
        started_at: started.map(wire),
        completed_at: completed.map(wire),
        ..Vertex::default()
    };
    ProgressEntry { time: completed.or(started).map(wire), event: Some(Event::Vertex(vertex)) }
}

pub fn cached(digest: &str, name: &str, moment: f64) -> ProgressEntry {
    edit(vertex(digest, name, Some(moment), Some(moment)), |vertex| vertex.cached = true)
}

pub fn failed(digest: &str, name: &str, started: f64, completed: f64, error: &str) -> ProgressEntry {
    edit(vertex(digest, name, Some(started), Some(completed)), |vertex| vertex.error = error.into())
}

fn edit(mut entry: ProgressEntry, change: impl FnOnce(&mut Vertex)) -> ProgressEntry {
    if let Some(Event::Vertex(vertex)) = &mut entry.event {
        change(vertex);
    }
    entry
}

pub fn line(digest: &str, text: &str, moment: f64) -> ProgressEntry {
    let line = LogLine { vertex: digest.into(), stream: 1, text: text.into(), partial: false };
    ProgressEntry { time: Some(wire(moment)), event: Some(Event::Line(line)) }
}

pub fn status(digest: &str, id: &str, current: i64, total: i64, started: f64, completed: Option<f64>) -> ProgressEntry {
    let status = VertexStatus {
        vertex: digest.into(),
        id: id.into(),
        name: String::new(),
        current,
        total,
        started_at: Some(wire(started)),
        completed_at: completed.map(wire),
    };
    ProgressEntry { time: Some(wire(completed.unwrap_or(started))), event: Some(Event::Status(status)) }
}

pub fn task(platform: &str, state: TaskState, worker: &str, grade: Grade) -> Task {
    Task {
        id: format!("t-{platform}"),
        platform: platform.into(),
        state: state.into(),
        attempts: 1,
        worker_name: worker.into(),
        grade: grade.into(),
        started_at: Some(wire(0.0)),
        ..Task::default()
    }
}

pub fn build(state: BuildState, tasks: Vec<Task>) -> v1::Build {
    let request = |task: &Task| v1::PlatformRequest { platform: task.platform.clone(), optional: task.optional };
    let platforms = tasks.iter().map(request).collect();
    let tags = vec!["r.example/app:1.0".to_owned()];
    v1::Build {
        id: "0198f3c4-5d6e-7f80-9a1b-2c3d4e5f6071".into(),
        state: state.into(),
        created_at: Some(wire(0.0)),
        spec: Some(v1::BuildSpec { platforms, tags, ..v1::BuildSpec::default() }),
        tasks,
        ..v1::Build::default()
    }
}
