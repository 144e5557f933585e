//! The typed details of BuildKit's errors (`solver/errdefs/errdefs.proto`), which travel as JSON inside
//! `google.rpc.Status`.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bollard_buildkit_proto::google::rpc;
use prost::Message;
use serde::Deserialize;
use tonic::Status;

/// Lines of a Dockerfile that a message may quote.
const QUOTED_LINES: usize = 8;
const QUOTED_BYTES: usize = 600;

/// Where in the Dockerfile a failure happened.
#[derive(Debug, Default)]
pub struct Details {
    source: Option<Source>,
}

#[derive(Debug, Deserialize)]
struct Source {
    info: Info,
    #[serde(default)]
    ranges: Vec<Range>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Info {
    filename: String,
    /// The file itself, in base64.
    data: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Range {
    start: Position,
    #[serde(default)]
    end: Position,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Position {
    /// From 1.
    #[serde(default)]
    line: usize,
}

impl Details {
    pub fn of(status: &Status) -> Self {
        let Ok(status) = rpc::Status::decode(status.details()) else { return Self::default() };
        // Details are listed from the outermost error inwards; the innermost source is the step itself.
        let source = status
            .details
            .iter()
            .rev()
            .filter(|detail| detail.type_url.contains("errdefs.Source"))
            .find_map(|detail| serde_json::from_slice::<Source>(&detail.value).ok());
        Self { source }
    }

    pub const fn has_source(&self) -> bool {
        self.source.is_some()
    }

    /// `Dockerfile:3: RUN make: exit code: 2`.
    pub fn explain(&self, message: &str) -> String {
        let Some(source) = &self.source else { return message.to_owned() };
        let Some(range) = source.ranges.first() else { return format!("{}: {message}", source.info.filename) };
        let place = format!("{}:{}", source.info.filename, range.start.line);
        match source.info.quote(*range) {
            Some(text) if !message.contains(&text) => format!("{place}: {text}: {message}"),
            Some(_) | None => format!("{place}: {message}"),
        }
    }
}

impl Info {
    fn quote(&self, range: Range) -> Option<String> {
        let file = BASE64_STANDARD.decode(&self.data).ok()?;
        let file = String::from_utf8_lossy(&file);
        let first = range.start.line.checked_sub(1)?;
        let count = range.end.line.saturating_sub(first).clamp(1, QUOTED_LINES);
        let lines: Vec<_> =
            file.lines().skip(first).take(count).map(|line| line.trim().trim_end_matches('\\').trim_end()).collect();
        let text = lines.join(" ").chars().take(QUOTED_BYTES).collect::<String>();
        if text.is_empty() { None } else { Some(text) }
    }
}
