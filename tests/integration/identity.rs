//! A worker's certificate over its life: issued, renewed in time, worthless once it has ended. A real coordinator and a
//! real worker, whose engine runs nothing.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use clap::Parser as _;
use kiln_common::{FeatureSet, Grade, Platform, runtime::Shutdown};
use kiln_coordinator::{Running, WorkerState};
use kiln_proto::v1::{MachineInfo, WorkerStats};
use kiln_worker::{
    Worker,
    builder::{Builder, Job},
    engine::{BuildError, BuildOutcome, EngineError, EngineFacts, EngineKind, EngineState, Progress},
    enroll::{self, Identity},
    probe::FileSystem,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// An engine with nothing to do.
struct Idle(watch::Sender<EngineState>);

#[tonic::async_trait]
impl Builder for Idle {
    fn watch(&self) -> watch::Receiver<EngineState> {
        self.0.subscribe()
    }

    async fn platforms(&self, _: &EngineFacts) -> BTreeMap<Platform, Grade> {
        BTreeMap::from([("linux/amd64".parse().expect("a platform"), Grade::Native)])
    }

    fn machine(&self, _: &EngineFacts) -> MachineInfo {
        MachineInfo::default()
    }

    fn stats(&self) -> WorkerStats {
        WorkerStats::default()
    }

    fn disk(&self) -> Option<FileSystem> {
        None
    }

    async fn prune(&self, _: u64) -> Result<u64, EngineError> {
        Ok(0)
    }

    async fn build(&self, _: Job, _: Progress, _: CancellationToken) -> BuildOutcome {
        Err(BuildError::Cancelled)
    }

    async fn run(&self, _: Job, _: Progress, _: CancellationToken) -> Result<(), BuildError> {
        Err(BuildError::Cancelled)
    }
}

fn idle() -> Arc<Idle> {
    let facts = EngineFacts {
        kind: EngineKind::Buildkitd,
        version: "1.0".to_owned(),
        features: FeatureSet::new(),
        platforms: vec!["linux/amd64".parse().expect("a platform")],
        host_gateway: None,
        several_exporters: true,
        machine: None,
    };
    Arc::new(Idle(watch::Sender::new(EngineState::Up(facts))))
}

#[derive(clap::Parser)]
struct CoordinatorArgs {
    #[command(flatten)]
    config: kiln_coordinator::Config,
}

async fn coordinator(folder: &Path, certificate_life: Duration) -> Running {
    let arguments = [
        "kiln-coordinator".to_owned(),
        format!("--data-dir={}", folder.display()),
        "--grpc-listen=127.0.0.1:0".to_owned(),
        "--http-listen=127.0.0.1:0".to_owned(),
    ];
    // The flag allows no life as short as a test has time for.
    let config = kiln_coordinator::Config { certificate_life, ..CoordinatorArgs::parse_from(arguments).config };
    kiln_coordinator::start(config, Shutdown::new()).await.expect("it starts")
}

async fn worker(folder: &Path, farm: &Running, token: Option<&str>) -> JoinHandle<anyhow::Result<()>> {
    let mut arguments = vec!["kiln-worker".to_owned(), format!("--data-dir={}", folder.display())];
    arguments.push(format!("--coordinator={}", farm.endpoint));
    let config = kiln_worker::Args::parse_from(arguments).config().expect("sound");
    let token = token.map(|token| token.parse().expect("a token"));
    std::fs::create_dir_all(folder).expect("a folder");
    let identity = enroll::identity(folder, token.as_ref(), &config.coordinators, "board").await.expect("joined");
    let worker = Worker::new(config, identity, idle()).await.expect("a worker");
    tokio::spawn(worker.run(Shutdown::new()))
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

async fn is_ready(farm: &Running) -> bool {
    let ready = farm.driver().query(|scheduler, _| scheduler.workers().any(|view| view.state == WorkerState::Ready));
    ready.await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_before_its_end_and_is_worth_nothing_after_it() {
    const LIFE: Duration = Duration::from_secs(6);
    let folder = tempfile::tempdir().expect("a folder");
    let (home, board) = (folder.path().join("coordinator"), folder.path().join("board"));
    let farm = coordinator(&home, LIFE).await;
    let token = farm.create_join_token().await.expect("a token");
    let joined = std::time::Instant::now();
    let running = worker(&board, &farm, Some(&token)).await;
    until("the worker is ready", async || is_ready(&farm).await).await;
    let first = std::fs::read(board.join("identity.json")).expect("an identity");

    until("a renewed certificate", async || {
        std::fs::read(board.join("identity.json")).is_ok_and(|identity| identity != first)
    })
    .await;
    assert!(joined.elapsed() < LIFE, "renewed in time, after {:?}", joined.elapsed());
    tokio::time::sleep(LIFE.saturating_sub(joined.elapsed()) + Duration::from_secs(2)).await;
    assert!(is_ready(&farm).await && !running.is_finished(), "the session goes on past the first certificate's end");
    running.abort();

    // A new connection with what it has now, then one with what has ended.
    let again = worker(&board, &farm, None).await;
    until("back with the renewed certificate", async || is_ready(&farm).await).await;
    again.abort();
    std::fs::write(board.join("identity.json"), first).expect("written");
    assert!(Identity::load(&board).expect("sound").is_some());
    // Its renewal is long due and must not be a way around.
    let ended = tokio::time::timeout(PATIENCE, worker(&board, &farm, None).await).await.expect("it gives up");
    let error = ended.expect("no panic").expect_err("refused").to_string();
    assert!(error.contains("expired") && error.contains("--join-token-file"), "{error}");
}
