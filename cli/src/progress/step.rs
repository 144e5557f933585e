//! One step of one attempt: what its vertex, its transfers and its output say.

use std::{collections::VecDeque, time::Duration};

use kiln_common::{Timestamp, limits};
use kiln_proto::{convert::timestamp_from_wire, v1};

/// Lines that are kept of a step, for the live view and for the report of a failure.
pub const TAIL_LINES: usize = 20;
/// Transfers that are kept of a step.
const STATUSES: usize = 256;

#[derive(Debug, Default)]
pub struct Step {
    pub digest: String,
    pub name: String,
    pub started: Option<Timestamp>,
    pub completed: Option<Timestamp>,
    pub cached: bool,
    /// Empty: it did not fail.
    pub error: String,
    /// The last lines with the time since the step's start.
    pub tail: VecDeque<(Duration, String)>,
    pub statuses: Vec<Status>,
    /// Lines that have no end yet, by stream.
    partial: [Vec<u8>; 2],
}

/// A transfer within a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub id: String,
    pub name: String,
    pub current: u64,
    /// 0: unknown.
    pub total: u64,
    pub started: Option<Timestamp>,
    pub completed: Option<Timestamp>,
}

impl Step {
    #[must_use]
    pub fn new(digest: &str) -> Self {
        Self { digest: digest.to_owned(), ..Self::default() }
    }

    #[must_use]
    pub const fn is_started(&self) -> bool {
        self.started.is_some() || self.cached
    }

    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.completed.is_some() || !self.error.is_empty()
    }

    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.started.is_some() && !self.is_done()
    }

    /// BuildKit's and Kiln's own housekeeping, which people look at only while it runs.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        !self.name.starts_with('[') || self.name.starts_with("[internal]") || self.digest.starts_with("kiln:")
    }

    /// How long it ran, or runs at `now` on the worker's clock.
    #[must_use]
    pub fn duration(&self, now: Timestamp) -> Duration {
        self.started.map_or(Duration::ZERO, |started| self.completed.unwrap_or(now).since(started))
    }

    /// The name with its platform, as buildx prefixes it: `[linux/arm64 build 2/4] RUN make`.
    #[must_use]
    pub fn label(&self, platform: &str) -> String {
        label(platform, if self.name.is_empty() { &self.digest } else { &self.name })
    }

    pub(super) fn apply_vertex(&mut self, vertex: &v1::Vertex) {
        if !vertex.name.is_empty() {
            self.name = one_line(&vertex.name);
        }
        let moment = |wire: Option<&prost_types::Timestamp>| wire.map(timestamp_from_wire);
        // A step that runs in parts starts again; it counts from its first start to its last end.
        self.started = self.started.or_else(|| moment(vertex.started_at.as_ref()));
        self.completed = moment(vertex.completed_at.as_ref());
        self.cached |= vertex.cached;
        if !vertex.error.is_empty() {
            self.error.clone_from(&vertex.error);
        }
    }

    pub(super) fn apply_status(&mut self, wire: &v1::VertexStatus) -> Status {
        let moment = |wire: Option<&prost_types::Timestamp>| wire.map(timestamp_from_wire);
        let status = Status {
            id: wire.id.clone(),
            name: one_line(if wire.name.is_empty() { &wire.id } else { &wire.name }),
            current: u64::try_from(wire.current).unwrap_or(0),
            total: u64::try_from(wire.total).unwrap_or(0),
            started: moment(wire.started_at.as_ref()),
            completed: moment(wire.completed_at.as_ref()),
        };
        match self.statuses.iter().position(|known| known.id == status.id) {
            Some(at) => self.statuses[at].clone_from(&status),
            None if self.statuses.len() < STATUSES => self.statuses.push(status.clone()),
            None => {}
        }
        status
    }

    /// The line that this piece ends, if it ends one.
    pub(super) fn apply_line(
        &mut self,
        piece: &v1::LogLine,
        at: Option<&prost_types::Timestamp>,
    ) -> Option<(Duration, String)> {
        let partial = &mut self.partial[usize::from(piece.stream == 2)];
        let room = limits::LOG_LINE_BYTES.saturating_sub(partial.len());
        partial.extend_from_slice(&piece.text[..piece.text.len().min(room)]);
        if piece.partial {
            return None;
        }
        let line = std::mem::take(partial);
        let since = match (at, self.started) {
            (Some(at), Some(started)) => timestamp_from_wire(at).since(started),
            _ => Duration::ZERO,
        };
        let text = last_return(&String::from_utf8_lossy(&line));
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back((since, text.clone()));
        Some((since, text))
    }
}

/// A step's name with its platform in front, within the brackets where it has some.
#[must_use]
pub fn label(platform: &str, name: &str) -> String {
    match name.strip_prefix('[') {
        Some(rest) => format!("[{platform} {rest}"),
        None => format!("[{platform}] {name}"),
    }
}

/// What a terminal would show of a line that carriage returns overwrite.
fn last_return(line: &str) -> String {
    let line = line.trim_end_matches(['\r', '\n']);
    line.rsplit('\r').next().unwrap_or(line).to_owned()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).collect()
}
