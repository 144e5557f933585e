//! BuildKit's status stream as Kiln's progress entries. `solve` feeds it; entries go out in the order of events.

use std::time::Instant;

use bollard_buildkit_proto::{
    google::protobuf,
    moby::buildkit::v1::{StatusResponse, Vertex, VertexStatus, VertexWarning},
};
use kiln_proto::v1::{self, ProgressEntry, progress_entry::Event};
use prost_types::Timestamp;

use super::{job::Progress, lines::LineSplitter};

/// Turns statuses into entries.
pub struct Reporter {
    progress: Progress,
    lines: LineSplitter,
}

impl Reporter {
    #[must_use]
    pub fn new(progress: Progress) -> Self {
        Self { progress, lines: LineSplitter::default() }
    }

    /// One message of the status stream.
    pub fn status(&mut self, status: StatusResponse, now: Instant) {
        // Output first: a message may end a step and bring its last words.
        for log in status.logs {
            let stream = u32::try_from(log.stream).unwrap_or(1);
            let time = log.timestamp.map(timestamp);
            self.lines.push(&log.vertex, stream, &log.msg, now, emit_at(&self.progress, time));
        }
        for vertex in status.vertexes {
            if vertex.completed.is_some() {
                self.lines.finish(&vertex.digest, emit_at(&self.progress, None));
            }
            let time = vertex.completed.or(vertex.started).map(timestamp);
            emit(&self.progress, time, Event::Vertex(vertex_entry(vertex)));
        }
        for status in status.statuses {
            let time = status.timestamp.map(timestamp);
            emit(&self.progress, time, Event::Status(status_entry(status)));
        }
        for warning in status.warnings {
            emit(&self.progress, None, Event::Warning(warning_entry(warning)));
        }
    }

    /// When [`flush`](Self::flush) has something to hand on.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.lines.deadline()
    }

    pub fn flush(&mut self, now: Instant) {
        self.lines.flush(now, emit_at(&self.progress, None));
    }
}

/// Nothing more comes: what was held back is all there is.
impl Drop for Reporter {
    fn drop(&mut self) {
        self.lines.finish_all(emit_at(&self.progress, None));
    }
}

fn emit_at(progress: &Progress, time: Option<Timestamp>) -> impl FnMut(v1::LogLine) {
    move |line| emit(progress, time, Event::Line(line))
}

/// Hands an event on, now unless the engine gave its time.
pub fn emit(progress: &Progress, time: Option<Timestamp>, event: Event) {
    progress(ProgressEntry { time: Some(time.unwrap_or_else(now)), event: Some(event) });
}

/// The system's clock.
#[must_use]
pub fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

fn timestamp(time: protobuf::Timestamp) -> Timestamp {
    Timestamp { seconds: time.seconds, nanos: time.nanos }
}

fn vertex_entry(vertex: Vertex) -> v1::Vertex {
    v1::Vertex {
        digest: vertex.digest,
        name: vertex.name,
        inputs: vertex.inputs,
        cached: vertex.cached,
        started_at: vertex.started.map(timestamp),
        completed_at: vertex.completed.map(timestamp),
        error: vertex.error,
    }
}

fn status_entry(status: VertexStatus) -> v1::VertexStatus {
    v1::VertexStatus {
        vertex: status.vertex,
        id: status.id,
        name: status.name,
        current: status.current,
        total: status.total,
        started_at: status.started.map(timestamp),
        completed_at: status.completed.map(timestamp),
    }
}

fn warning_entry(warning: VertexWarning) -> v1::BuildWarning {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    v1::BuildWarning {
        vertex: warning.vertex,
        short: text(&warning.short),
        detail: warning.detail.iter().map(text).collect(),
        url: warning.url,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bollard_buildkit_proto::moby::buildkit::v1::VertexLog;

    use super::*;

    #[test]
    fn a_step_s_last_words_come_before_its_end() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let mut reporter = Reporter::new(Arc::new(move |entry| sink.lock().unwrap().push(entry)));
        let time = Some(protobuf::Timestamp { seconds: 7, nanos: 0 });
        let log = VertexLog { vertex: "v".into(), timestamp: time, stream: 2, msg: b"a\nlast".to_vec() };
        let vertex = Vertex { digest: "v".into(), completed: time, error: "exit code: 1".into(), ..Default::default() };
        let status = StatusResponse { vertexes: vec![vertex], logs: vec![log], ..Default::default() };
        reporter.status(status, Instant::now());
        let events: Vec<_> = seen.lock().unwrap().iter().map(|entry| entry.event.clone().unwrap()).collect();
        let line =
            |text: &str| Event::Line(v1::LogLine { vertex: "v".into(), stream: 2, text: text.into(), partial: false });
        assert_eq!(events[..2], [line("a"), line("last")]);
        assert!(matches!(&events[2], Event::Vertex(vertex) if vertex.error == "exit code: 1"));
        assert_eq!(seen.lock().unwrap()[0].time.unwrap().seconds, 7);
    }
}
