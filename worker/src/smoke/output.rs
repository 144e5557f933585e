//! What a smoke run prints, kept as far as it matters while it goes into the log.

use std::sync::{Arc, Mutex, PoisonError};

use kiln_common::limits;
use kiln_proto::v1::{ProgressEntry, progress_entry::Event};

use crate::engine::Progress;

/// How much of an output a message shows.
const SHOWN_CHARS: usize = 200;
/// Names of the run's steps begin with it in the log.
const PREFIX: &str = "[smoke] ";

#[derive(Debug, Default)]
pub struct Output(Mutex<Vec<u8>>);

impl Output {
    /// Reads along with what goes to `log`, and names the steps there.
    #[must_use]
    pub fn tap(self: Arc<Self>, log: Progress) -> Progress {
        Arc::new(move |mut entry: ProgressEntry| {
            match &mut entry.event {
                Some(Event::Line(line)) => self.add(&line.text, line.partial),
                Some(Event::Vertex(vertex)) if !vertex.name.is_empty() => vertex.name.insert_str(0, PREFIX),
                Some(Event::Vertex(_) | Event::Status(_) | Event::Warning(_)) | None => {}
            }
            log(entry);
        })
    }

    /// Whether the text is part of what was printed.
    pub fn contains(&self, text: &str) -> bool {
        let printed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memchr::memmem::find(&printed, text.as_bytes()).is_some()
    }

    /// What was printed first, for a message.
    pub fn beginning(&self) -> String {
        let printed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&printed);
        match text.trim() {
            "" => "nothing".to_owned(),
            text => format!("`{}`", text.chars().take(SHOWN_CHARS).collect::<String>()),
        }
    }

    fn add(&self, line: &[u8], is_partial: bool) {
        let mut printed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = limits::SMOKE_OUTPUT_BYTES.saturating_sub(printed.len());
        printed.extend_from_slice(&line[..line.len().min(room)]);
        if !is_partial && room > line.len() {
            printed.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::v1::LogLine;

    use super::*;

    fn print(output: &Arc<Output>, lines: &[(&str, bool)]) {
        let tapped = output.clone().tap(Arc::new(|_| {}));
        for (text, partial) in lines {
            let line = LogLine { vertex: "v".into(), stream: 1, text: text.as_bytes().to_vec(), partial: *partial };
            tapped(ProgressEntry { time: None, event: Some(Event::Line(line)) });
        }
    }

    #[test]
    fn an_expectation_may_span_parts_of_a_line_and_lines() {
        let output = Arc::new(Output::default());
        assert_eq!(output.beginning(), "nothing");
        print(&output, &[("Hello, ", true), ("arm64!", false), ("bye", false)]);
        assert!(output.contains("Hello, arm64!") && output.contains("arm64!\nbye"));
        assert!(!output.contains("Hello, arm!"));
        assert_eq!(output.beginning(), "`Hello, arm64!\nbye`");
    }

    #[test]
    fn an_endless_output_is_not_kept_whole() {
        let output = Arc::new(Output::default());
        let line = "x".repeat(1000);
        for _ in 0..limits::SMOKE_OUTPUT_BYTES / 500 {
            print(&output, &[(&line, false)]);
        }
        assert!(output.0.lock().unwrap().len() <= limits::SMOKE_OUTPUT_BYTES);
    }
}
