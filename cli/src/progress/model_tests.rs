//! The model lets every entry through once, whatever the streams do.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks at one kind of change")]

use kiln_proto::v1::{LogLine, LogsResponse, ProgressEntry};

use super::*;
use crate::progress::testing::{at, build, cached, line, log, task, vertex};

fn lines(changes: &[Change]) -> Vec<String> {
    let text = |change: &Change| match change {
        Change::Line { text, .. } => Some(text.clone()),
        _ => None,
    };
    changes.iter().filter_map(text).collect()
}

fn output(first: u64, texts: &[&str]) -> LogsResponse {
    log("linux/amd64", "a1", first, texts.iter().map(|text| line("v", text, 1.0)).collect())
}

#[test]
fn a_replayed_stream_loses_and_doubles_no_line() {
    let mut model = Model::default();
    let now = at(1.0);
    assert_eq!(lines(&model.apply(Input::Log(output(0, &["a", "b"])), now)), ["a", "b"]);
    assert_eq!(lines(&model.apply(Input::Log(output(0, &["a"])), now)), [""; 0]);
    assert_eq!(lines(&model.apply(Input::Log(output(1, &["b", "c"])), now)), ["c"]);
    assert_eq!(lines(&model.apply(Input::Log(output(3, &["d"])), now)), ["d"]);
}

#[test]
fn a_later_attempt_replaces_the_steps_and_an_earlier_one_is_ignored() {
    let mut model = Model::default();
    let now = at(1.0);
    let entry = |attempt: &str| log("linux/amd64", attempt, 0, vec![vertex("v", "[1/2] RUN x", Some(0.0), None)]);
    model.apply(Input::Log(entry("a1")), now);
    let changes = model.apply(Input::Log(entry("a2")), now);
    assert!(changes.iter().any(|change| matches!(change, Change::Attempt { leg: 0 })));
    assert!(model.apply(Input::Log(output(5, &["late"])), now).is_empty());
    assert_eq!(model.legs[0].steps.len(), 1);
}

#[test]
fn pieces_of_a_line_become_one_line_per_stream() {
    let mut model = Model::default();
    let piece = |stream, text: &str, partial| ProgressEntry {
        time: None,
        event: Some(Event::Line(LogLine { vertex: "v".into(), stream, text: text.into(), partial })),
    };
    let entries =
        vec![piece(1, "out", true), piece(2, "err", false), piece(1, "put\r", false), piece(1, "1%\r50%", false)];
    let changes = model.apply(Input::Log(log("linux/amd64", "a1", 0, entries)), at(0.0));
    assert_eq!(lines(&changes), ["err", "output", "50%"]);
}

#[test]
fn news_of_a_leg_are_told_once_and_emulation_apart() {
    let mut model = Model::default();
    let mut emulated = task("linux/arm/v6", TaskState::Running, "tower", v1::Grade::Emulated);
    emulated.reason = "no native worker is registered".into();
    let kinds = |changes: &[Change]| -> Vec<_> {
        let kind = |change: &Change| match change {
            Change::Leg { kind, text, .. } => Some((*kind, text.clone())),
            _ => None,
        };
        changes.iter().filter_map(kind).collect()
    };
    let first = model.apply(Input::Build(Box::new(build(BuildState::Running, vec![emulated.clone()]))), at(0.0));
    let text = "EMULATED on tower: no native worker is registered".to_owned();
    assert_eq!(kinds(&first), [(LegChange::Emulated, text)]);
    let again = model.apply(Input::Build(Box::new(build(BuildState::Running, vec![emulated]))), at(0.0));
    assert!(kinds(&again).is_empty());
}

#[test]
fn an_older_revision_changes_nothing() {
    let mut model = Model::default();
    let newer = v1::Build { revision: 5, ..build(BuildState::Succeeded, vec![]) };
    model.apply(Input::Build(Box::new(newer)), at(0.0));
    let older = v1::Build { revision: 4, ..build(BuildState::Running, vec![]) };
    assert!(model.apply(Input::Build(Box::new(older)), at(0.0)).is_empty());
    assert_eq!(model.state(), Some(BuildState::Succeeded));
}

#[test]
fn running_times_follow_the_worker_s_clock() {
    let mut model = Model::default();
    let started = vertex("v", "[1/2] RUN x", Some(100.0), None);
    model.apply(Input::Log(log("linux/amd64", "a1", 0, vec![started])), at(5.0));
    let leg = &model.legs[0];
    assert_eq!(leg.steps[0].duration(leg.worker_now(at(7.0))), Duration::from_secs(2));
}

#[test]
fn a_cached_step_starts_and_ends_at_once() {
    let mut model = Model::default();
    let entry = cached("v", "[1/2] FROM x", 1.0);
    let changes = model.apply(Input::Log(log("linux/amd64", "a1", 0, vec![entry])), at(1.0));
    assert!(matches!(changes[0], Change::Started { .. }) && matches!(changes[1], Change::Done { .. }));
}
