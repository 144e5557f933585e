//! Cuts a step's output into lines while it arrives. `progress` owns one for each build.
//!
//! A line that is not finished is held back for a moment, so that lines arrive whole as a rule, and then handed on in
//! parts, so that slow dots show while they are printed. No more than [`limits::LOG_LINE_BYTES`] of one are ever held.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kiln_common::limits;
use kiln_proto::v1::LogLine;

/// How long the beginning of a line waits for its end.
const HOLD: Duration = Duration::from_millis(400);

#[derive(Debug, Default)]
pub struct LineSplitter {
    open: BTreeMap<(String, u32), OpenLine>,
}

#[derive(Debug)]
struct OpenLine {
    text: Vec<u8>,
    since: Instant,
    /// A part of it went out already.
    continued: bool,
}

impl LineSplitter {
    /// More output of a step; complete lines go to `emit`.
    pub fn push(&mut self, vertex: &str, stream: u32, bytes: &[u8], now: Instant, mut emit: impl FnMut(LogLine)) {
        let key = (vertex.to_owned(), stream);
        let mut line = self.open.remove(&key).unwrap_or(OpenLine { text: Vec::new(), since: now, continued: false });
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            line.append(text, &key, &mut emit);
            if ended {
                line.end(&key, &mut emit);
                line = OpenLine { text: Vec::new(), since: now, continued: false };
            }
        }
        if !line.text.is_empty() || line.continued {
            self.open.insert(key, line);
        }
    }

    /// The step has ended: so has its last line.
    pub fn finish(&mut self, vertex: &str, mut emit: impl FnMut(LogLine)) {
        let keys: Vec<_> = self.open.keys().filter(|(of, _)| of == vertex).cloned().collect();
        for key in keys {
            if let Some(line) = self.open.remove(&key) {
                line.end(&key, &mut emit);
            }
        }
    }

    /// All steps have ended.
    pub fn finish_all(&mut self, mut emit: impl FnMut(LogLine)) {
        for (key, line) in std::mem::take(&mut self.open) {
            line.end(&key, &mut emit);
        }
    }

    /// When [`flush`](Self::flush) has something to hand on; `None`: nothing is held.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.open.values().filter(|line| !line.text.is_empty()).map(|line| line.since + HOLD).min()
    }

    /// Hands on what was held long enough.
    pub fn flush(&mut self, now: Instant, mut emit: impl FnMut(LogLine)) {
        for (key, line) in &mut self.open {
            if !line.text.is_empty() && line.since + HOLD <= now {
                line.part(key, &mut emit);
                line.since = now;
            }
        }
    }
}

impl OpenLine {
    fn append(&mut self, mut text: &[u8], key: &(String, u32), emit: &mut impl FnMut(LogLine)) {
        while self.text.len() + text.len() > limits::LOG_LINE_BYTES {
            let (head, tail) = text.split_at(limits::LOG_LINE_BYTES - self.text.len());
            self.text.extend_from_slice(head);
            self.part(key, emit);
            text = tail;
        }
        self.text.extend_from_slice(text);
    }

    fn part(&mut self, key: &(String, u32), emit: &mut impl FnMut(LogLine)) {
        emit(entry(key, std::mem::take(&mut self.text), true));
        self.continued = true;
    }

    fn end(mut self, key: &(String, u32), emit: &mut impl FnMut(LogLine)) {
        if self.text.last() == Some(&b'\r') {
            self.text.pop();
        }
        emit(entry(key, self.text, false));
    }
}

fn entry((vertex, stream): &(String, u32), text: Vec<u8>, partial: bool) -> LogLine {
    LogLine { vertex: vertex.clone(), stream: *stream, text, partial }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[LogLine]) -> Vec<(String, bool)> {
        lines.iter().map(|line| (String::from_utf8_lossy(&line.text).into_owned(), line.partial)).collect()
    }

    #[test]
    fn lines_come_out_whole_however_they_arrive() {
        let (mut splitter, mut out, now) = (LineSplitter::default(), Vec::new(), Instant::now());
        for bytes in [&b"one\ntw"[..], b"o\r\n", b"\nfour"] {
            splitter.push("v", 1, bytes, now, |line| out.push(line));
        }
        splitter.push("v", 2, b"err", now, |line| out.push(line));
        assert_eq!(texts(&out), [("one".into(), false), ("two".into(), false), (String::new(), false)]);
        splitter.finish("v", |line| out.push(line));
        assert_eq!(texts(&out[3..]), [("four".into(), false), ("err".into(), false)]);
        assert_eq!(splitter.deadline(), None);
    }

    #[test]
    fn a_slow_line_shows_in_parts_and_ends_with_a_whole_one() {
        let (mut splitter, mut out, now) = (LineSplitter::default(), Vec::new(), Instant::now());
        splitter.push("v", 1, b"wait", now, |line| out.push(line));
        splitter.flush(now, |line| out.push(line));
        assert!(out.is_empty(), "a fresh line is held");
        let later = splitter.deadline().expect("held");
        splitter.flush(later, |line| out.push(line));
        splitter.push("v", 1, b"\nnext\n", later, |line| out.push(line));
        assert_eq!(texts(&out), [("wait".into(), true), (String::new(), false), ("next".into(), false)]);
    }

    #[test]
    fn a_line_without_end_is_held_to_its_limit_only() {
        let (mut splitter, mut out, now) = (LineSplitter::default(), Vec::new(), Instant::now());
        splitter.push("v", 1, &vec![b'x'; 2 * limits::LOG_LINE_BYTES + 1], now, |line| out.push(line));
        assert_eq!(out.len(), 2);
        assert!(out.iter().all(|line| line.partial && line.text.len() == limits::LOG_LINE_BYTES));
    }
}
