//! The engine's push as a step of the build, layer by layer.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kiln_proto::v1::{Vertex, VertexStatus, progress_entry::Event};
use prost_types::Timestamp;

use crate::engine::{
    docker::PushLine,
    job::Progress,
    progress::{emit, now},
};

/// The worker's own step (`progress.proto`, Vertex).
const VERTEX: &str = "kiln:push";
/// dockerd reports a layer with every buffer that it sends.
const INTERVAL: Duration = Duration::from_millis(200);

pub struct PushReport {
    progress: Progress,
    vertex: Vertex,
    layers: BTreeMap<String, Layer>,
}

struct Layer {
    started: Timestamp,
    reported: Instant,
    total: i64,
    ended: bool,
}

impl PushReport {
    pub fn start(progress: Progress, repositories: &str) -> Self {
        let vertex = Vertex {
            digest: VERTEX.to_owned(),
            name: format!("pushing to {repositories}"),
            started_at: Some(now()),
            ..Default::default()
        };
        emit(&progress, None, Event::Vertex(vertex.clone()));
        Self { progress, vertex, layers: BTreeMap::new() }
    }

    pub fn line(&mut self, line: &PushLine) {
        let ended = matches!(line.status.as_str(), "Pushed" | "Layer already exists")
            || line.status.starts_with("Mounted from");
        let moves = line.status == "Pushing";
        if line.id.is_empty() || !(ended || moves) {
            return;
        }
        let at = Instant::now();
        let fresh = !self.layers.contains_key(&line.id);
        let layer = self.layers.entry(line.id.clone()).or_insert_with(|| Layer {
            started: now(),
            reported: at,
            total: 0,
            ended: false,
        });
        layer.total = layer.total.max(line.progress_detail.total).max(line.progress_detail.current);
        if layer.ended || (!ended && !fresh && at.duration_since(layer.reported) < INTERVAL) {
            return;
        }
        (layer.reported, layer.ended) = (at, ended);
        let status = VertexStatus {
            vertex: VERTEX.to_owned(),
            id: line.id.clone(),
            name: if moves { "pushing layer".to_owned() } else { line.status.to_ascii_lowercase() },
            current: if ended { layer.total } else { line.progress_detail.current },
            total: layer.total,
            started_at: Some(layer.started),
            completed_at: ended.then(now),
        };
        emit(&self.progress, None, Event::Status(status));
    }

    pub fn finish(self, error: Option<String>) {
        let vertex = Vertex { completed_at: Some(now()), error: error.unwrap_or_default(), ..self.vertex };
        emit(&self.progress, None, Event::Vertex(vertex));
    }
}
