//! `--progress plain`: what buildx prints without a terminal, one step at a time with its number in front of each line.
//!
//! Lines of several legs arrive mixed. One step has the floor; the others' lines wait until it ends, or until they
//! have waited [`PATIENCE`], so that the text stays readable and nothing is held back for long.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Write},
    time::Duration,
};

use kiln_common::Timestamp;

use super::{
    Change, Model, View,
    model::{LegChange, Upload},
    step::Status,
};
use crate::output::text;

/// How long others wait for the step that has the floor, and how many lines they may hold.
const PATIENCE: Duration = Duration::from_secs(2);
const HELD_LINES: usize = 500;
/// How often an unfinished transfer is told.
const TRANSFER_INTERVAL: Duration = Duration::from_secs(5);

pub struct Plain<W> {
    out: W,
    steps: HashMap<Key, Held>,
    /// Steps with something to say, by when they began to wait.
    queue: VecDeque<Key>,
    floor: Option<Key>,
    /// A step that runs in parts keeps its number.
    numbers: HashMap<Key, usize>,
    upload_done: bool,
}

/// A leg, its attempt and a step's digest: a retried leg numbers its steps anew.
type Key = (usize, String, String);

#[derive(Default)]
struct Held {
    number: usize,
    label: String,
    lines: Vec<String>,
    since: Timestamp,
    done: bool,
    transfers: HashMap<String, Timestamp>,
}

impl<W: Write> Plain<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            steps: HashMap::new(),
            queue: VecDeque::new(),
            floor: None,
            numbers: HashMap::new(),
            upload_done: false,
        }
    }

    fn aside(&mut self, line: &str) -> io::Result<()> {
        self.yield_floor()?;
        writeln!(self.out, "#0 {line}")
    }

    fn say(&mut self, key: Key, label: String, line: Option<String>, now: Timestamp) {
        let held = self.steps.entry(key.clone()).or_default();
        held.label = label;
        if !self.queue.contains(&key) && self.floor.as_ref() != Some(&key) {
            held.since = now;
            self.queue.push_back(key);
        }
        held.lines.extend(line);
    }

    /// Prints what may be printed now; all of it when `flush`.
    fn pump(&mut self, now: Timestamp, flush: bool) -> io::Result<()> {
        loop {
            let Some(key) = self.floor.clone().or_else(|| self.queue.pop_front()) else { return self.out.flush() };
            if self.floor.is_none() {
                self.give_floor(&key)?;
            }
            let Some(held) = self.steps.get_mut(&key) else { return Ok(()) };
            for line in std::mem::take(&mut held.lines) {
                writeln!(self.out, "#{} {line}", held.number)?;
            }
            let impatient = |key: &Key| {
                self.steps
                    .get(key)
                    .is_some_and(|other| now.since(other.since) >= PATIENCE || other.lines.len() >= HELD_LINES)
            };
            if self.steps.get(&key).is_some_and(|held| held.done) {
                self.floor = None;
                self.steps.remove(&key);
                writeln!(self.out)?;
            } else if flush || self.queue.iter().any(impatient) {
                if self.queue.is_empty() {
                    return self.out.flush();
                }
                self.yield_floor()?;
            } else {
                return self.out.flush();
            }
        }
    }

    fn give_floor(&mut self, key: &Key) -> io::Result<()> {
        let Some(held) = self.steps.get_mut(key) else { return Ok(()) };
        let next = self.numbers.len() + 1;
        held.number = *self.numbers.entry(key.clone()).or_insert(next);
        self.floor = Some(key.clone());
        writeln!(self.out, "#{} {}", held.number, held.label)
    }

    fn yield_floor(&mut self) -> io::Result<()> {
        let Some(key) = self.floor.take() else { return Ok(()) };
        match self.steps.get(&key) {
            Some(held) => writeln!(self.out, "#{} ...\n", held.number),
            None => Ok(()),
        }
    }

    fn change(&mut self, model: &Model, change: Change, now: Timestamp) -> io::Result<()> {
        let keyed = |leg: usize, step: usize| {
            let (leg_of, step_of) = (&model.legs[leg], &model.legs[leg].steps[step]);
            ((leg, leg_of.attempt.clone(), step_of.digest.clone()), step_of.label(&leg_of.platform))
        };
        match change {
            Change::Upload => self.upload(model.upload.as_ref())?,
            Change::State => {
                if let Some(line) = state_line(model) {
                    self.aside(&line)?;
                }
            }
            Change::Leg { leg, text, kind } => {
                let warning = if kind == LegChange::Emulated { "WARNING: " } else { "" };
                self.aside(&format!("{warning}{}: {text}", model.legs[leg].platform))?;
            }
            Change::Attempt { leg } => {
                self.queue.retain(|key| key.0 != leg);
                if self.floor.as_ref().is_some_and(|key| key.0 == leg) {
                    self.yield_floor()?;
                }
                self.steps.retain(|key, _| key.0 != leg);
            }
            Change::Started { leg, step } => {
                let (key, label) = keyed(leg, step);
                self.say(key, label, None, now);
            }
            Change::Line { leg, step, at, text } => {
                let (key, label) = keyed(leg, step);
                self.say(key, label, Some(format!("{:.3} {text}", at.as_secs_f64())), now);
            }
            Change::Status { leg, step, status } => {
                let (key, label) = keyed(leg, step);
                let held = self.steps.entry(key.clone()).or_default();
                let due = held.transfers.get(&status.id).is_none_or(|told| now.since(*told) >= TRANSFER_INTERVAL);
                if due || status.completed.is_some() {
                    held.transfers.insert(status.id.clone(), now);
                    self.say(key, label, Some(transfer_line(&status)), now);
                }
            }
            Change::Done { leg, step } => {
                let (key, label) = keyed(leg, step);
                let done = &model.legs[leg].steps[step];
                let line = if !done.error.is_empty() {
                    format!("ERROR: {}", done.error)
                } else if done.cached {
                    "CACHED".to_owned()
                } else {
                    format!("DONE {:.1}s", done.duration(now).as_secs_f64())
                };
                self.say(key.clone(), label, Some(line), now);
                if let Some(held) = self.steps.get_mut(&key) {
                    held.done = true;
                }
            }
            Change::Warning { leg, step, warning } => {
                let line = format!("WARNING: {}", warning.short);
                match step {
                    Some(step) => {
                        let (key, label) = keyed(leg, step);
                        self.say(key, label, Some(line), now);
                    }
                    None => self.aside(&format!("{}: {line}", model.legs[leg].platform))?,
                }
            }
            Change::Notice(notice) => self.aside(&notice)?,
            Change::Entry { .. } => {}
        }
        Ok(())
    }

    fn upload(&mut self, upload: Option<&Upload>) -> io::Result<()> {
        match upload {
            Some(upload) if upload.done && !self.upload_done => {
                self.upload_done = true;
                self.aside(&upload_line(upload))
            }
            _ => Ok(()),
        }
    }
}

/// The context in one line: what was read and what had to be sent.
pub fn upload_line(upload: &Upload) -> String {
    let files = if upload.files == 1 { "1 file".to_owned() } else { format!("{} files", upload.files) };
    let (bytes, sent) = (text::bytes(upload.bytes), text::bytes(upload.sent));
    if !upload.done {
        let of = if upload.missing > 0 { format!(" of {}", text::bytes(upload.missing)) } else { String::new() };
        return format!("context: {files}, {bytes}; sent {sent}{of}");
    }
    let sent = if upload.sent == 0 { "all in the farm already".to_owned() } else { format!("sent {sent}") };
    format!("context: {files}, {bytes}; {sent} ({})", text::duration(upload.elapsed))
}

fn state_line(model: &Model) -> Option<String> {
    use kiln_proto::v1::BuildState;
    let build = model.build.as_ref()?;
    let tags = build.spec.as_ref().map(|spec| spec.tags.join(", ")).unwrap_or_default();
    match build.state() {
        BuildState::Queued => Some(format!("build {} queued: {tags}", build.id)),
        BuildState::Running => Some(format!("build {} running: {tags}", build.id)),
        BuildState::Publishing => Some(format!("publishing {tags}")),
        // The summary tells how it ended.
        BuildState::Unspecified
        | BuildState::Succeeded
        | BuildState::Incomplete
        | BuildState::Failed
        | BuildState::Cancelled => None,
    }
}

fn transfer_line(status: &Status) -> String {
    let mut line = status.name.clone();
    if status.total > 0 {
        line += &format!(" {} / {}", text::bytes(status.current), text::bytes(status.total));
    } else if status.current > 0 {
        line += &format!(" {}", text::bytes(status.current));
    }
    if let (Some(started), Some(completed)) = (status.started, status.completed) {
        line += &format!(" {:.1}s done", completed.since(started).as_secs_f64());
    }
    line
}

impl<W: Write> View for Plain<W> {
    fn changes(&mut self, model: &Model, changes: Vec<Change>, now: Timestamp) -> io::Result<()> {
        for change in changes {
            self.change(model, change, now)?;
            self.pump(now, false)?;
        }
        Ok(())
    }

    fn tick(&mut self, _model: &Model, now: Timestamp) -> io::Result<()> {
        self.pump(now, false)
    }

    fn suspend(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn finish(&mut self, _model: &Model, now: Timestamp) -> io::Result<()> {
        self.pump(now, true)
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::v1::{BuildState, Grade, LogsResponse, TaskState};

    use super::*;
    use crate::progress::{
        model::Input,
        testing::{at, build, cached, failed, line, log, status, task, vertex},
    };

    fn play(inputs: Vec<(f64, Input)>) -> String {
        let (mut model, mut view) = (Model::default(), Plain::new(Vec::new()));
        let mut last = at(0.0);
        for (moment, input) in inputs {
            last = at(moment);
            let changes = model.apply(input, last);
            view.changes(&model, changes, last).unwrap();
        }
        view.finish(&model, last).unwrap();
        String::from_utf8(view.out).unwrap()
    }

    fn entry(platform: &str, first: u64, entry: kiln_proto::v1::ProgressEntry) -> Input {
        Input::Log(LogsResponse { entries: vec![entry], ..log(platform, "a1", first, vec![]) })
    }

    #[test]
    fn one_leg_reads_as_buildx_prints_it() {
        let leg = |first, event| entry("linux/amd64", first, event);
        let told = play(vec![
            (0.0, leg(0, vertex("i", "[internal] load build definition from Dockerfile", Some(0.0), None))),
            (0.0, leg(1, status("i", "transferring dockerfile", 205, 0, 0.0, Some(0.0)))),
            (0.0, leg(2, vertex("i", "", Some(0.0), Some(0.0)))),
            (0.1, leg(3, cached("f", "[1/2] FROM docker.io/library/alpine", 0.1))),
            (0.2, leg(4, vertex("r", "[2/2] RUN echo hi", Some(0.2), None))),
            (0.5, leg(5, line("r", "hi", 0.545))),
            (0.9, leg(6, vertex("r", "", Some(0.2), Some(0.9)))),
        ]);
        assert_eq!(
            told,
            "#1 [linux/amd64 internal] load build definition from Dockerfile\n\
             #1 transferring dockerfile 205B 0.0s done\n\
             #1 DONE 0.0s\n\
             \n\
             #2 [linux/amd64 1/2] FROM docker.io/library/alpine\n\
             #2 CACHED\n\
             \n\
             #3 [linux/amd64 2/2] RUN echo hi\n\
             #3 0.345 hi\n\
             #3 DONE 0.7s\n\
             \n"
        );
    }

    #[test]
    fn a_step_that_runs_in_parts_keeps_its_number() {
        let leg = |first, event| entry("linux/amd64", first, event);
        let told = play(vec![
            (0.0, leg(0, vertex("f", "[1/2] FROM alpine", Some(0.0), Some(0.1)))),
            (0.2, leg(1, vertex("r", "[2/2] RUN x", Some(0.2), Some(0.3)))),
            (0.4, leg(2, status("f", "extracting", 10, 10, 0.4, Some(0.4)))),
            (0.5, leg(3, vertex("f", "", Some(0.0), Some(0.5)))),
        ]);
        let numbers: Vec<&str> =
            told.lines().filter_map(|line| line.split(' ').next()).filter(|n| !n.is_empty()).collect();
        assert_eq!(numbers, ["#1", "#1", "#2", "#2", "#1", "#1"], "{told}");
    }

    #[test]
    fn legs_take_turns_without_cutting_each_other_s_lines() {
        let told = play(vec![
            (0.0, entry("linux/amd64", 0, vertex("a", "[2/2] RUN x", Some(0.0), None))),
            (0.0, entry("linux/arm64", 0, vertex("b", "[2/2] RUN x", Some(0.0), None))),
            (0.5, entry("linux/arm64", 1, line("b", "from arm64", 0.5))),
            (0.6, entry("linux/amd64", 1, line("a", "from amd64", 0.6))),
            (2.5, entry("linux/amd64", 2, line("a", "more", 2.5))),
            (3.0, entry("linux/arm64", 2, vertex("b", "", Some(0.0), Some(3.0)))),
            (4.0, entry("linux/amd64", 3, vertex("a", "", Some(0.0), Some(4.0)))),
        ]);
        assert_eq!(
            told,
            "#1 [linux/amd64 2/2] RUN x\n\
             #1 0.600 from amd64\n\
             #1 2.500 more\n\
             #1 ...\n\
             \n\
             #2 [linux/arm64 2/2] RUN x\n\
             #2 0.500 from arm64\n\
             #2 DONE 3.0s\n\
             \n\
             #1 [linux/amd64 2/2] RUN x\n\
             #1 DONE 4.0s\n\
             \n"
        );
    }

    #[test]
    fn placement_emulation_and_errors_are_said_in_words() {
        let mut emulated = task("linux/arm/v6", TaskState::Running, "tower", Grade::Emulated);
        emulated.reason = "no native worker is registered".into();
        let tasks = vec![task("linux/amd64", TaskState::Running, "tower", Grade::Native), emulated];
        let told = play(vec![
            (0.0, Input::Build(Box::new(build(BuildState::Running, tasks)))),
            (0.0, entry("linux/amd64", 0, failed("r", "[2/2] RUN false", 0.0, 0.1, "exit code: 1"))),
        ]);
        assert_eq!(
            told,
            "#0 build 0198f3c4-5d6e-7f80-9a1b-2c3d4e5f6071 running: r.example/app:1.0\n\
             #0 linux/amd64: on tower (native)\n\
             #0 WARNING: linux/arm/v6: EMULATED on tower: no native worker is registered\n\
             #1 [linux/amd64 2/2] RUN false\n\
             #1 ERROR: exit code: 1\n\
             \n"
        );
    }
}
