//! `--progress auto` in a terminal: every leg at once, with what it does now; finished legs fold into one line.

use std::io::{self, Stderr};

use console::{Alignment, measure_text_width, pad_str, strip_ansi_codes, truncate_str};
use kiln_common::Timestamp;
use kiln_proto::v1::{BuildState, Grade, TaskState};

use super::{
    Change, Model, View,
    model::{Leg, LegChange},
    plain::upload_line,
    screen::{self, Screen},
    step::Step,
};
use crate::output::{Paint, text};

const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// Rows that one leg may take below its header, and output lines among them.
const ROWS_PER_LEG: usize = 9;
const LINES_PER_STEP: usize = 5;

pub struct Live {
    screen: Screen<Stderr>,
    paint: Paint,
    /// Lines to print for good with the next frame.
    above: Vec<String>,
}

impl Live {
    pub fn new(paint: Paint) -> Self {
        Self { screen: Screen::new(io::stderr()), paint, above: Vec::new() }
    }

    fn note(&mut self, model: &Model, change: Change) {
        let paint = self.paint;
        match change {
            Change::Leg { leg, text, kind: LegChange::Emulated | LegChange::Retrying } => {
                self.above.push(paint.yellow(&format!("! {}: {}", model.legs[leg].platform, sober(&text))));
            }
            Change::Warning { leg, warning, .. } => {
                self.above.push(paint.yellow(&format!("! {}: {}", model.legs[leg].platform, sober(&warning.short))));
            }
            Change::Notice(notice) => self.above.push(paint.yellow(&format!("! {}", sober(&notice)))),
            Change::Upload
            | Change::State
            | Change::Leg { .. }
            | Change::Attempt { .. }
            | Change::Started { .. }
            | Change::Line { .. }
            | Change::Status { .. }
            | Change::Done { .. }
            | Change::Entry { .. } => {}
        }
    }
}

impl View for Live {
    fn changes(&mut self, model: &Model, changes: Vec<Change>, _now: Timestamp) -> io::Result<()> {
        for change in changes {
            self.note(model, change);
        }
        Ok(())
    }

    fn tick(&mut self, model: &Model, now: Timestamp) -> io::Result<()> {
        let (width, height) = screen::size();
        let frame = Frame { model, now, width, paint: self.paint }.lines(height.saturating_sub(1));
        let above = std::mem::take(&mut self.above);
        let above: Vec<_> = above.iter().map(|line| truncate_str(line, width.max(20), "…").into_owned()).collect();
        self.screen.draw(&above, &frame, width)
    }

    fn suspend(&mut self) -> io::Result<()> {
        let above = std::mem::take(&mut self.above);
        self.screen.clear(&above, screen::size().0)
    }

    fn finish(&mut self, _model: &Model, _now: Timestamp) -> io::Result<()> {
        self.suspend()
    }
}

/// One picture of the model; pure.
struct Frame<'a> {
    model: &'a Model,
    now: Timestamp,
    width: usize,
    paint: Paint,
}

impl Frame<'_> {
    fn lines(&self, height: usize) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.header());
        lines.extend(self.upload());
        let footer = self.publishing();
        let fixed = lines.len() + self.model.legs.len() + usize::from(footer.is_some());
        let running = self.model.legs.iter().filter(|leg| leg.state() == TaskState::Running).count();
        let share = height.saturating_sub(fixed).checked_div(running).unwrap_or(0).min(ROWS_PER_LEG);
        for leg in &self.model.legs {
            lines.push(self.leg(leg));
            if leg.state() == TaskState::Running {
                lines.extend(self.activity(leg, share));
            }
        }
        lines.extend(footer);
        if lines.len() > height {
            let hidden = lines.len() - height.saturating_sub(1);
            lines.truncate(height.saturating_sub(1));
            lines.push(self.paint.dim(&format!("   … {hidden} more lines; the window is too small")));
        }
        lines.iter().map(|line| truncate_str(line, self.width, "…").into_owned()).collect()
    }

    fn spinner(&self) -> String {
        let at = usize::try_from(self.now.as_millis() / 100).unwrap_or(0) % SPINNER.len();
        self.paint.cyan(SPINNER[at])
    }

    /// `left` cut and padded so that `right` ends at the edge of the terminal.
    fn spread(&self, left: &str, right: &str) -> String {
        let room = self.width.saturating_sub(measure_text_width(right) + 2);
        format!("{}  {right}", pad_str(left, room, Alignment::Left, Some("…")))
    }

    fn header(&self) -> Option<String> {
        let build = self.model.build.as_ref()?;
        let tags = build.spec.as_ref().map(|spec| spec.tags.as_slice()).unwrap_or_default();
        let first = tags.first().map_or("", String::as_str);
        let more = if tags.len() > 1 { format!(" +{}", tags.len() - 1) } else { String::new() };
        let state = text::build_state(build.state());
        let left = format!(
            "{} {}  {first}{more}  {}",
            self.paint.bold("kiln"),
            self.paint.dim(text::short_id(&build.id)),
            text::paint_state(self.paint, state)
        );
        Some(self.spread(&left, &text::span(build.created_at.as_ref(), build.finished_at.as_ref(), self.now)))
    }

    fn upload(&self) -> Option<String> {
        let upload = self.model.upload.as_ref()?;
        let mark = if upload.done { self.paint.green("✔") } else { self.spinner() };
        Some(format!(" {mark} {}", upload_line(upload)))
    }

    fn publishing(&self) -> Option<String> {
        let build = self.model.build.as_ref().filter(|build| build.state() == BuildState::Publishing)?;
        let tags = build.spec.as_ref().map_or(0, |spec| spec.tags.len());
        let what = if tags == 1 { "the tag".to_owned() } else { format!("{tags} tags") };
        Some(format!(" {} publishing {what}", self.spinner()))
    }

    fn leg(&self, leg: &Leg) -> String {
        let paint = self.paint;
        let widest = self.model.legs.iter().map(|leg| leg.platform.len()).max().unwrap_or(0);
        let platform = format!("{:widest$}", leg.platform);
        let Some(task) = &leg.task else {
            return format!(" {} {}", self.spinner(), paint.bold(&platform));
        };
        let grade = match task.grade() {
            Grade::Emulated => paint.yellow("EMULATED"),
            Grade::Unspecified => String::new(),
            grade @ (Grade::Native | Grade::Compat) => text::grade(grade).to_owned(),
        };
        let place = format!("on {} ({grade})", paint.cyan(&sober(&task.worker_name)));
        let attempt = if task.attempts > 1 { format!(", attempt {}", task.attempts) } else { String::new() };
        let reason = sober(if task.message.is_empty() { &task.reason } else { &task.message });
        let build_start = self.model.build.as_ref().and_then(|build| build.created_at.as_ref());
        let (mark, what, since) = match task.state() {
            TaskState::Unspecified | TaskState::Waiting => {
                let what = if reason.is_empty() { "waiting".to_owned() } else { format!("waiting: {reason}") };
                (paint.yellow("◷"), paint.yellow(&what), build_start)
            }
            TaskState::Backoff => {
                let what = format!("tried again soon, {} {reason}", after(task.attempts));
                (paint.yellow("↻"), paint.yellow(&what), task.started_at.as_ref())
            }
            TaskState::Assigned => (self.spinner(), format!("{place}{attempt}"), task.started_at.as_ref()),
            TaskState::Running => {
                let what = format!("{place}{attempt}{}", self.counts(leg));
                (self.spinner(), what, task.started_at.as_ref())
            }
            TaskState::Succeeded => {
                (paint.green("✔"), format!("{place}{}", self.counts(leg)), task.started_at.as_ref())
            }
            TaskState::Failed => (paint.red("✗"), paint.red(&format!("failed: {reason}")), task.started_at.as_ref()),
            TaskState::Cancelled => (paint.yellow("■"), "cancelled".to_owned(), task.started_at.as_ref()),
        };
        let time = text::span(since, task.finished_at.as_ref(), self.now);
        self.spread(&format!(" {mark} {} {what}", paint.bold(&platform)), &time)
    }

    /// Steps done, where some are known.
    fn counts(&self, leg: &Leg) -> String {
        let steps = || leg.steps.iter().filter(|step| !step.is_internal());
        let (all, done) = (steps().count(), steps().filter(|step| step.is_done()).count());
        let cached = steps().filter(|step| step.cached).count();
        match (all, cached) {
            (0, _) => String::new(),
            (_, 0) => self.paint.dim(&format!("  {done}/{all} steps")),
            (_, _) => self.paint.dim(&format!("  {done}/{all} steps, {cached} cached")),
        }
    }

    /// What a running leg does now, in at most `rows` lines: its running steps, their transfers, their last output.
    fn activity(&self, leg: &Leg, rows: usize) -> Vec<String> {
        let now = leg.worker_now(self.now);
        let running: Vec<&Step> = leg.steps.iter().filter(|step| step.is_running()).collect();
        let shown = &running[running.len().saturating_sub(rows)..];
        let mut room = rows - shown.len();
        let mut below: Vec<Vec<String>> = Vec::new();
        // The latest step gets the room first: it is what people wait for.
        for step in shown.iter().rev() {
            let lines = self.detail(step, room.min(LINES_PER_STEP));
            room -= lines.len();
            below.push(lines);
        }
        let mut lines = Vec::new();
        for (step, detail) in shown.iter().zip(below.into_iter().rev()) {
            let time = text::duration(step.duration(now));
            lines.push(self.spread(&format!("   {} {}", self.spinner(), step.name), &self.paint.dim(&time)));
            lines.extend(detail);
        }
        lines
    }

    fn detail(&self, step: &Step, rows: usize) -> Vec<String> {
        let transfers = step.statuses.iter().filter(|status| status.completed.is_none());
        let mut lines: Vec<String> = transfers
            .map(|status| {
                let of = if status.total > 0 { format!(" / {}", text::bytes(status.total)) } else { String::new() };
                let name = text::short_digest(&status.name);
                self.paint.dim(&format!("     ↓ {name} {}{of}", text::bytes(status.current)))
            })
            .take(rows)
            .collect();
        let room = rows - lines.len();
        let tail = step.tail.iter().skip(step.tail.len().saturating_sub(room));
        lines.extend(tail.map(|(_, line)| self.paint.dim(&format!("     │ {}", sober(line)))));
        lines
    }
}

fn after(attempts: u32) -> String {
    format!("after attempt {attempts}:")
}

/// Text of others without what would move the cursor or change colours.
fn sober(line: &str) -> String {
    let line = strip_ansi_codes(line).replace('\t', "    ");
    line.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{
        model::{Input, Upload},
        testing::{at, build, cached, line, log, status, task, vertex, wire},
    };

    fn frame(model: &Model, width: usize, height: usize) -> String {
        let lines = Frame { model, now: at(8.0), width, paint: Paint::new(false) }.lines(height);
        lines.iter().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    fn four_legs() -> Model {
        let mut model = Model::default();
        let upload = Upload { files: 3, bytes: 1_200, sent: 700, done: true, ..Upload::default() };
        let mut waiting = task("linux/arm/v7", TaskState::Waiting, "", Grade::Unspecified);
        waiting.reason = "every worker for it is busy".into();
        let mut done = task("linux/386", TaskState::Succeeded, "tower", Grade::Compat);
        done.finished_at = Some(wire(3.0));
        let tasks = vec![
            task("linux/amd64", TaskState::Running, "tower", Grade::Native),
            done,
            waiting,
            task("linux/arm/v6", TaskState::Running, "tower", Grade::Emulated),
        ];
        model.apply(Input::Upload(upload), at(0.0));
        model.apply(Input::Build(Box::new(build(BuildState::Running, tasks))), at(0.0));
        let entries = vec![
            cached("f", "[build 1/3] FROM docker.io/library/golang:alpine", 0.5),
            vertex("r", "[build 2/3] RUN go build -o /hello .", Some(1.0), None),
            line("r", "go: downloading \x1b[31mexample.com/x\x1b[0m", 2.0),
            line("r", "compiling", 8.0),
        ];
        model.apply(Input::Log(log("linux/amd64", "a1", 0, entries)), at(8.0));
        let pull = vec![
            vertex("f", "[1/2] FROM docker.io/library/alpine", Some(7.0), None),
            status("f", "sha256:0123456789abcdef0123", 3_140_000, 28_000_000, 7.0, None),
        ];
        model.apply(Input::Log(log("linux/arm/v6", "a2", 0, pull)), at(7.0));
        model
    }

    #[test]
    fn four_legs_show_what_each_does_now() {
        let want = "\
kiln 0198f3c4-5d6e  r.example/app:1.0  running                             8.0s
 ✔ context: 3 files, 1.20kB; sent 700B (0.0s)
 ⠋ linux/amd64  on tower (native)  1/2 steps, 1 cached                     8.0s
   ⠋ [build 2/3] RUN go build -o /hello .                                  7.0s
     │ go: downloading example.com/x
     │ compiling
 ✔ linux/386    on tower (compat)                                          3.0s
 ◷ linux/arm/v7 waiting: every worker for it is busy                       8.0s
 ⠋ linux/arm/v6 on tower (EMULATED)  0/1 steps                             8.0s
   ⠋ [1/2] FROM docker.io/library/alpine                                   1.0s
     ↓ sha256:0123456789ab 3.14MB / 28.0MB
";
        assert_eq!(frame(&four_legs(), 79, 24), want);
    }

    #[test]
    fn small_windows_are_never_overflown() {
        let model = four_legs();
        for (width, height) in [(20, 5), (40, 8), (10, 3), (200, 6), (1, 1)] {
            let text = frame(&model, width, height);
            assert!(text.lines().count() <= height, "{width}x{height}:\n{text}");
            assert!(text.lines().all(|line| measure_text_width(line) <= width), "{width}x{height}:\n{text}");
        }
    }
}
