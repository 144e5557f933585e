//! An engine that does what the build arg `SCRIPT` says:
//! `lines N` prints N lines, `gate` prints, waits to be let through and prints again, `hang` never ends, `fail TEXT`
//! fails as the user's own, `panic` is a defect, `secrets` prints every secret, `ssh ID TEXT` talks to an agent.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use kiln_common::{Feature, FeatureSet, Grade, Platform, spec::ImageDescriptor};
use kiln_proto::v1::{LogLine, MachineInfo, ProgressEntry, WorkerStats, progress_entry::Event};
use kiln_worker::{
    builder::{Builder, Job},
    engine::{BuildError, BuildOutcome, EngineError, EngineFacts, EngineKind, EngineState, Progress},
    probe::FileSystem,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

pub struct ScriptedEngine {
    pub state: watch::Sender<EngineState>,
    pub gate: Semaphore,
    /// Builds in the engine now.
    pub running: Arc<AtomicUsize>,
    /// What a probe finds.
    pub platforms: Mutex<BTreeMap<Platform, Grade>>,
}

impl ScriptedEngine {
    pub fn new() -> Arc<Self> {
        let state = watch::Sender::new(EngineState::Up(facts()));
        let platforms = Mutex::new(platform("linux/amd64", Grade::Native));
        Arc::new(Self { state, gate: Semaphore::new(0), running: Arc::default(), platforms })
    }

    /// Ends when no build is in the engine.
    pub async fn idle(&self) {
        let empty = async {
            while self.running.load(Ordering::SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(super::PATIENCE, empty).await.expect("builds end");
    }

    pub fn go_away(&self) {
        self.state.send_replace(EngineState::Down { last: facts(), problem: "it was stopped".to_owned() });
    }

    pub fn come_back(&self) {
        self.state.send_replace(EngineState::Up(facts()));
    }
}

pub fn platform(text: &str, grade: Grade) -> BTreeMap<Platform, Grade> {
    [(text.parse().expect("a platform"), grade)].into()
}

pub fn facts() -> EngineFacts {
    EngineFacts {
        kind: EngineKind::Buildkitd,
        version: "1.0".to_owned(),
        features: FeatureSet::from([Feature::Attestations]),
        platforms: vec!["linux/amd64".parse().expect("a platform")],
        host_gateway: None,
        several_exporters: true,
        machine: None,
    }
}

/// Counts a build for as long as it is in the engine.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Builder for ScriptedEngine {
    fn watch(&self) -> watch::Receiver<EngineState> {
        self.state.subscribe()
    }

    async fn platforms(&self, _: &EngineFacts) -> BTreeMap<Platform, Grade> {
        self.platforms.lock().expect("sound").clone()
    }

    fn machine(&self, _: &EngineFacts) -> MachineInfo {
        MachineInfo { cpus: 1, ..MachineInfo::default() }
    }

    fn stats(&self) -> WorkerStats {
        WorkerStats { load1: 0.5, ..WorkerStats::default() }
    }

    fn disk(&self) -> Option<FileSystem> {
        None
    }

    async fn prune(&self, _: u64) -> Result<u64, EngineError> {
        Ok(0)
    }

    async fn build(&self, job: Job, progress: Progress, _: CancellationToken) -> BuildOutcome {
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(self.running.clone());
        let script = job.spec.build_args.get("SCRIPT").cloned().unwrap_or_default();
        let (verb, rest) = script.split_once(' ').unwrap_or((&script, ""));
        match verb {
            "lines" => {
                for number in 0..rest.parse().expect("a number") {
                    progress(line(&format!("line {number}")));
                    if number % 100 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            }
            "gate" => {
                progress(line("before"));
                self.gate.acquire().await.expect("open").forget();
                progress(line("after"));
            }
            "hang" => std::future::pending().await,
            "fail" => return Err(BuildError::Build(rest.to_owned())),
            "panic" => panic!("the script says so"),
            "secrets" => {
                for value in job.secrets.values() {
                    progress(line(&format!("value: {}", String::from_utf8_lossy(value))));
                }
            }
            "ssh" => {
                let (id, text) = rest.split_once(' ').expect("an id and a text");
                let mut agent = job.agents.dial(id).await.map_err(|error| BuildError::Build(error.to_string()))?;
                agent.write_all(text.as_bytes()).await.expect("written");
                let mut answer = vec![0; text.len()];
                agent.read_exact(&mut answer).await.expect("an answer");
                progress(line(&String::from_utf8_lossy(&answer)));
            }
            other => panic!("no such script: {other}"),
        }
        let digest = format!("sha256:{}", "0".repeat(64)).parse().expect("a digest");
        Ok(ImageDescriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest,
            size: 1,
            bases: Vec::new(),
        })
    }

    async fn run(&self, _: Job, progress: Progress, _: CancellationToken) -> Result<(), BuildError> {
        progress(line("Hello, amd64!"));
        Ok(())
    }
}

fn line(text: &str) -> ProgressEntry {
    let line = LogLine { vertex: "sha256:step".to_owned(), stream: 1, text: text.into(), partial: false };
    ProgressEntry { time: None, event: Some(Event::Line(line)) }
}
