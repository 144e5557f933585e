//! A farm for black-box tests of the worker: a coordinator over real TLS that can be killed, and an engine by script.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

pub mod coordinator;
pub mod engine;
pub mod pki;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use kiln_common::{AttemptId, runtime::Shutdown};
use kiln_proto::v1::{
    Assignment, BuildSpec, DockerfileInTree, Grade, PlatformRequest, ProgressEntry, build_spec::Dockerfile,
    progress_entry::Event,
};
use kiln_worker::{Config, Worker, config::EngineConfig, disk::DiskPolicy, enroll};
use tokio::task::JoinHandle;

use self::{coordinator::Coordinator, engine::ScriptedEngine};

/// Longer than anything here takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A worker that runs in this process.
pub struct TestWorker {
    pub shutdown: Shutdown,
    pub running: JoinHandle<anyhow::Result<()>>,
    pub data_dir: tempfile::TempDir,
}

pub fn config(coordinator: &Coordinator, data_dir: &Path, slots: u32) -> Config {
    Config {
        data_dir: data_dir.to_owned(),
        coordinators: vec![coordinator.address()],
        join_token: Some(coordinator.token()),
        engine: EngineConfig {
            address: "unix:///nowhere".parse().expect("an address"),
            data_dir: None,
            slots: Some(slots),
            disk: DiskPolicy::default(),
        },
        platforms: BTreeMap::new(),
        labels: [("zone".to_owned(), "here".to_owned())].into(),
        name: "test-worker".to_owned(),
    }
}

/// Joins the farm and starts.
pub async fn worker(coordinator: &Coordinator, engine: &Arc<ScriptedEngine>, slots: u32) -> TestWorker {
    worker_with(coordinator, engine, slots, |_| {}).await
}

/// The same with a configuration of one's own.
pub async fn worker_with(
    coordinator: &Coordinator,
    engine: &Arc<ScriptedEngine>,
    slots: u32,
    configure: impl FnOnce(&mut Config),
) -> TestWorker {
    let data_dir = tempfile::tempdir().expect("a folder");
    let mut config = config(coordinator, data_dir.path(), slots);
    configure(&mut config);
    let identity = enroll::identity(data_dir.path(), config.join_token.as_ref(), &config.coordinators, &config.name);
    let worker = Worker::new(config.clone(), identity.await.expect("joined"), engine.clone()).await.expect("a worker");
    let shutdown = Shutdown::new();
    let running = tokio::spawn(worker.run(shutdown.clone()));
    coordinator.until("the worker is in session", |seen| !seen.hellos.is_empty()).await;
    TestWorker { shutdown, running, data_dir }
}

/// An assignment whose engine follows `script`, see [`ScriptedEngine`].
pub fn assignment(coordinator: &Coordinator, script: &str) -> (AttemptId, Assignment) {
    let attempt = AttemptId::generate();
    let tree = coordinator.tree().to_string();
    let spec = BuildSpec {
        dockerfile: Some(Dockerfile::DockerfileInTree(DockerfileInTree { tree, filename: "Dockerfile".to_owned() })),
        platforms: vec![PlatformRequest { platform: "linux/amd64".to_owned(), optional: false }],
        tags: vec!["registry.example/app:1".to_owned()],
        build_args: [("SCRIPT".to_owned(), script.to_owned())].into(),
        ..BuildSpec::default()
    };
    let assignment = Assignment {
        attempt_id: attempt.to_string(),
        platform: "linux/amd64".to_owned(),
        grade: Grade::Native.into(),
        spec: Some(spec),
        ..Assignment::default()
    };
    (attempt, assignment)
}

/// The output of the build itself.
pub fn lines(entries: &[ProgressEntry]) -> Vec<String> {
    let lines = entries.iter().filter_map(|entry| match &entry.event {
        Some(Event::Line(line)) => Some(String::from_utf8_lossy(&line.text).into_owned()),
        Some(Event::Vertex(_) | Event::Status(_) | Event::Warning(_)) | None => None,
    });
    lines.collect()
}
