//! `--progress rawjson`: BuildKit's `SolveStatus` as JSON lines, as buildx prints it, for programs that read it already.
//!
//! Step names carry their platform and digests are made unique per attempt, because legs of one build share steps.
//! What Kiln itself tells of a leg (where it runs, why it waits, emulation) is a step of its own.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use base64::Engine as _;
use kiln_common::Timestamp;
use kiln_proto::v1::{self, progress_entry::Event};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Change, Model, View,
    model::{Leg, LegChange},
    step::label,
};

pub struct RawJson<W> {
    out: W,
    /// When each leg's own step began.
    placed: BTreeMap<usize, Timestamp>,
}

impl<W: Write> RawJson<W> {
    pub const fn new(out: W) -> Self {
        Self { out, placed: BTreeMap::new() }
    }

    fn print(&mut self, field: &str, message: Value) -> io::Result<()> {
        let mut status = Map::new();
        status.insert(field.to_owned(), Value::Array(vec![message]));
        writeln!(self.out, "{}", Value::Object(status))
    }

    fn entry(&mut self, leg: &Leg, entry: &v1::ProgressEntry) -> io::Result<()> {
        let time = entry.time.as_ref().map(rfc3339).unwrap_or_default();
        match &entry.event {
            Some(Event::Vertex(vertex)) => self.print("vertexes", vertex_json(leg, vertex)),
            Some(Event::Status(status)) => self.print("statuses", status_json(leg, status, &time)),
            Some(Event::Line(line)) => {
                let mut data = line.text.to_vec();
                if !line.partial {
                    data.push(b'\n');
                }
                let data = base64::engine::general_purpose::STANDARD.encode(data);
                let digest = unique(leg, &line.vertex);
                self.print("logs", json!({"vertex": digest, "stream": line.stream, "data": data, "timestamp": time}))
            }
            Some(Event::Warning(warning)) => {
                let text = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
                let detail: Vec<_> = warning.detail.iter().map(|line| text(line)).collect();
                let mut value =
                    json!({"vertex": unique(leg, &warning.vertex), "level": 1, "short": text(&warning.short)});
                set(&mut value, "detail", (!detail.is_empty()).then(|| json!(detail)));
                set(&mut value, "url", (!warning.url.is_empty()).then(|| json!(warning.url)));
                self.print("warnings", value)
            }
            None => Ok(()),
        }
    }

    /// Where a leg runs, as a step that lasts as long as the leg.
    fn leg(&mut self, model: &Model, at: usize, text: &str, kind: LegChange, now: Timestamp) -> io::Result<()> {
        let leg = &model.legs[at];
        let digest = sha256(&format!("{}\n{}\nkiln", leg.platform, model.build.as_ref().map_or("", |build| &build.id)));
        let started = *self.placed.entry(at).or_insert(now);
        let ended = matches!(kind, LegChange::Succeeded | LegChange::Failed | LegChange::Cancelled);
        let mut vertex = json!({
            "digest": digest, "name": label(&leg.platform, "[kiln] placement"), "started": moment(started),
        });
        set(&mut vertex, "completed", ended.then(|| json!(moment(now))));
        set(&mut vertex, "error", (kind == LegChange::Failed).then(|| json!(text)));
        self.print("vertexes", vertex)?;
        let data = base64::engine::general_purpose::STANDARD.encode(format!("{}: {text}\n", leg.platform));
        self.print("logs", json!({"vertex": digest, "stream": 1, "data": data, "timestamp": moment(now)}))
    }
}

fn vertex_json(leg: &Leg, vertex: &v1::Vertex) -> Value {
    let mut value = json!({"digest": unique(leg, &vertex.digest)});
    let inputs: Vec<_> = vertex.inputs.iter().map(|input| unique(leg, input)).collect();
    set(&mut value, "inputs", (!inputs.is_empty()).then(|| json!(inputs)));
    let name = leg.steps.iter().find(|step| step.digest == vertex.digest).map(|step| step.label(&leg.platform));
    set(&mut value, "name", name.map(Value::from));
    set(&mut value, "started", vertex.started_at.as_ref().map(|at| json!(rfc3339(at))));
    set(&mut value, "completed", vertex.completed_at.as_ref().map(|at| json!(rfc3339(at))));
    set(&mut value, "cached", vertex.cached.then_some(Value::Bool(true)));
    set(&mut value, "error", (!vertex.error.is_empty()).then(|| json!(vertex.error)));
    value
}

fn status_json(leg: &Leg, status: &v1::VertexStatus, time: &str) -> Value {
    let mut value = json!({
        "id": status.id, "vertex": unique(leg, &status.vertex), "current": status.current, "timestamp": time,
    });
    set(&mut value, "name", (!status.name.is_empty()).then(|| json!(status.name)));
    set(&mut value, "total", (status.total != 0).then(|| json!(status.total)));
    set(&mut value, "started", status.started_at.as_ref().map(|at| json!(rfc3339(at))));
    set(&mut value, "completed", status.completed_at.as_ref().map(|at| json!(rfc3339(at))));
    value
}

/// Sets a field that is present, as Go's `omitempty` does.
fn set(object: &mut Value, key: &str, value: Option<Value>) {
    if let (Some(map), Some(value)) = (object.as_object_mut(), value) {
        map.insert(key.to_owned(), value);
    }
}

fn unique(leg: &Leg, digest: &str) -> String {
    sha256(&format!("{}\n{}\n{digest}", leg.platform, leg.attempt))
}

fn sha256(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().fold("sha256:".to_owned(), |out, byte| out + &format!("{byte:02x}"))
}

fn moment(at: Timestamp) -> String {
    rfc3339(&kiln_proto::convert::timestamp_to_wire(at))
}

fn rfc3339(at: &prost_types::Timestamp) -> String {
    let nanos = i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    let moment = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

impl<W: Write> View for RawJson<W> {
    fn changes(&mut self, model: &Model, changes: Vec<Change>, now: Timestamp) -> io::Result<()> {
        for change in changes {
            match change {
                Change::Entry { leg, entry } => self.entry(&model.legs[leg], &entry)?,
                Change::Leg { leg, text, kind } => self.leg(model, leg, &text, kind, now)?,
                Change::Upload
                | Change::State
                | Change::Attempt { .. }
                | Change::Started { .. }
                | Change::Line { .. }
                | Change::Status { .. }
                | Change::Done { .. }
                | Change::Warning { .. }
                | Change::Notice(_) => {}
            }
        }
        self.out.flush()
    }

    fn tick(&mut self, _model: &Model, _now: Timestamp) -> io::Result<()> {
        Ok(())
    }

    fn suspend(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, _model: &Model, _now: Timestamp) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::v1::{BuildState, Grade, TaskState};

    use super::*;
    use crate::progress::{
        model::Input,
        testing::{at, build, line, log, status, task, vertex},
    };

    fn play(inputs: Vec<Input>) -> Vec<Value> {
        let (mut model, mut view) = (Model::default(), RawJson::new(Vec::new()));
        for input in inputs {
            let changes = model.apply(input, at(1.0));
            view.changes(&model, changes, at(1.0)).unwrap();
        }
        let text = String::from_utf8(view.out).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn entries_become_solve_statuses_with_prefixed_names() {
        let entries = vec![
            vertex("sha256:v", "[build 2/4] RUN make", Some(1.5), None),
            line("sha256:v", "hi", 2.0),
            status("sha256:v", "extracting", 3, 9, 1.0, None),
        ];
        let told = play(vec![Input::Log(log("linux/arm64", "a1", 0, entries))]);
        let vertex = &told[0]["vertexes"][0];
        assert_eq!(vertex["name"], "[linux/arm64 build 2/4] RUN make");
        assert_eq!(vertex["started"], "1970-01-01T00:00:01.5Z");
        assert!(vertex.get("completed").is_none() && vertex.get("cached").is_none());
        assert_eq!(vertex["digest"].as_str().unwrap().len(), 71);
        let log = &told[1]["logs"][0];
        assert_eq!((&log["data"], &log["stream"], &log["vertex"]), (&json!("aGkK"), &json!(1), &vertex["digest"]));
        assert_eq!(told[2]["statuses"][0]["total"], 9);
    }

    #[test]
    fn the_same_step_of_two_legs_has_two_digests_and_placement_is_told() {
        let entry = || vec![vertex("sha256:v", "[1/1] FROM x", Some(1.0), None)];
        let mut emulated = task("linux/arm/v6", TaskState::Running, "tower", Grade::Emulated);
        emulated.reason = "no native worker".into();
        let told = play(vec![
            Input::Log(log("linux/amd64", "a1", 0, entry())),
            Input::Log(log("linux/arm/v6", "a2", 0, entry())),
            Input::Build(Box::new(build(BuildState::Running, vec![emulated]))),
        ]);
        assert_ne!(told[0]["vertexes"][0]["digest"], told[1]["vertexes"][0]["digest"]);
        assert_eq!(told[2]["vertexes"][0]["name"], "[linux/arm/v6 kiln] placement");
        let data = told[3]["logs"][0]["data"].as_str().unwrap();
        let text = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "linux/arm/v6: EMULATED on tower: no native worker\n");
    }
}
