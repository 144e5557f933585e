//! A coordinator and a worker in this process on real engines, without the command line between them: builds, a failing
//! step, a cancel, and a coordinator that restarts while its worker builds.

use std::{path::Path, time::Duration};

use clap::Parser as _;
use harness::{Bed, bed::EngineKind};
use kiln_common::runtime::{Dialer, Shutdown, tls};
use kiln_proto::v1::{
    Build, BuildSpec, BuildState, CancelBuildRequest, GetBuildRequest, LogsRequest, PlatformRequest, SubmitRequest,
    WatchBuildRequest, build_service_client::BuildServiceClient, build_spec::Dockerfile, progress_entry::Event,
};
use tonic::{Request, metadata::AsciiMetadataValue, service::interceptor::InterceptedService, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Parser)]
struct CoordinatorArgs {
    #[command(flatten)]
    config: kiln_coordinator::Config,
}

type Client = BuildServiceClient<InterceptedService<Channel, Token>>;

#[derive(Clone)]
struct Token(AsciiMetadataValue);

impl tonic::service::Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

struct TestFarm {
    folder: tempfile::TempDir,
    port: u16,
    coordinator: Shutdown,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    worker: Shutdown,
}

impl TestFarm {
    async fn start(engine: EngineKind) -> Option<Self> {
        let engine = Bed.engine(engine)?;
        let folder = tempfile::tempdir().expect("a folder");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let (coordinator, running, token) = serve(folder.path(), port).await;
        std::fs::write(folder.path().join("join"), token).expect("written");
        let arguments = [
            "kiln-worker".to_owned(),
            format!("--engine={engine}"),
            format!("--data-dir={}", folder.path().join("worker").display()),
            format!("--join-token-file={}", folder.path().join("join").display()),
            "--name=bed".to_owned(),
        ];
        let config = kiln_worker::Args::parse_from(arguments).config().expect("sound");
        let worker = Shutdown::new();
        tokio::spawn(kiln_worker::run(config, worker.clone()));
        let farm = Self { folder, port, coordinator, running, worker };
        farm.ready().await;
        Some(farm)
    }

    async fn restart_coordinator(&mut self) {
        self.coordinator.stop();
        (&mut self.running).await.expect("ended").expect("well");
        (self.coordinator, self.running, _) = serve(self.folder.path(), self.port).await;
    }

    fn client(&self) -> Client {
        let home = self.folder.path().join("coordinator");
        let find = |name: &str| find_file(&home, name).unwrap_or_else(|| panic!("{name} under {}", home.display()));
        let ca = std::fs::read(find("ca.pem").as_path()).expect("the CA");
        let token = std::fs::read_to_string(find("admin.token")).expect("the token");
        let trust = tls::Trust::Ca(tls::certificates("ca", &ca).expect("a CA"));
        let dialer = Dialer::new(&[format!("127.0.0.1:{}", self.port)], tls::client_config(trust, None).expect("tls"));
        let channel = dialer.expect("an address").channel().expect("a channel");
        let token = format!("Bearer {}", token.trim()).parse().expect("a header");
        BuildServiceClient::with_interceptor(channel, Token(token))
    }

    /// Ends when the farm takes a build for this machine's platform.
    async fn ready(&self) {
        let waiting = async {
            while self.submit("ready", "FROM scratch\nLABEL a=b\n").await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the worker comes");
    }

    async fn submit(&self, name: &str, dockerfile: &str) -> Result<String, tonic::Status> {
        let spec = BuildSpec {
            dockerfile: Some(Dockerfile::DockerfileInline(dockerfile.to_owned())),
            platforms: vec![PlatformRequest { platform: "linux/amd64".to_owned(), optional: false }],
            tags: vec![format!("{}/e2e/worker:{name}", Bed.registry())],
            ..BuildSpec::default()
        };
        let request = SubmitRequest { spec: Some(spec), ..SubmitRequest::default() };
        let answer = self.client().submit(request).await?.into_inner();
        Ok(answer.build.expect("a build").id)
    }

    /// Waits for the final state.
    async fn finish(&self, id: &str) -> Build {
        let watching = async {
            loop {
                let request = WatchBuildRequest { id: id.to_owned() };
                if let Ok(stream) = self.client().watch(request).await {
                    let mut stream = stream.into_inner();
                    while let Ok(Some(_)) = stream.message().await {}
                }
                let request = GetBuildRequest { id: id.to_owned() };
                let Ok(build) = self.client().get(request).await else { continue };
                let build = build.into_inner();
                if build.finished_at.is_some() {
                    return build;
                }
            }
        };
        tokio::time::timeout(PATIENCE, watching).await.expect("the build ends")
    }

    /// Follows the log until a line says `text`.
    async fn line(&self, id: &str, text: &str) {
        let request = LogsRequest { id: id.to_owned(), follow: true, ..LogsRequest::default() };
        let reading = async {
            let mut stream = self.client().logs(request).await.expect("logs").into_inner();
            while let Ok(Some(batch)) = stream.message().await {
                if lines(&batch.entries).iter().any(|line| line.contains(text)) {
                    return;
                }
            }
            panic!("the log ended without `{text}`");
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("the line comes");
    }

    async fn log(&self, id: &str) -> Vec<String> {
        let request = LogsRequest { id: id.to_owned(), ..LogsRequest::default() };
        let mut stream = self.client().logs(request).await.expect("logs").into_inner();
        let mut all = Vec::new();
        while let Ok(Some(batch)) = stream.message().await {
            all.extend(lines(&batch.entries));
        }
        all
    }
}

impl Drop for TestFarm {
    fn drop(&mut self) {
        self.worker.stop();
        self.coordinator.stop();
    }
}

async fn serve(folder: &Path, port: u16) -> (Shutdown, tokio::task::JoinHandle<anyhow::Result<()>>, String) {
    let arguments = [
        "kiln-coordinator".to_owned(),
        format!("--data-dir={}", folder.join("coordinator").display()),
        format!("--grpc-listen=127.0.0.1:{port}"),
        "--http-listen=127.0.0.1:0".to_owned(),
        format!("--advertise=127.0.0.1:{port}"),
    ];
    let shutdown = Shutdown::new();
    let config = CoordinatorArgs::parse_from(arguments).config;
    // One that has just stopped in this process may hold its store for another moment.
    let starting = async {
        loop {
            match kiln_coordinator::start(config.clone(), shutdown.clone()).await {
                Ok(running) => return running,
                Err(error) => eprintln!("not yet: {error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let running = tokio::time::timeout(PATIENCE, starting).await.expect("it starts");
    let token = running.create_join_token().await.expect("a token");
    (shutdown, tokio::spawn(running.wait()), token)
}

fn find_file(folder: &Path, name: &str) -> Option<std::path::PathBuf> {
    std::fs::read_dir(folder).ok()?.filter_map(Result::ok).find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { find_file(&path, name) } else { path.ends_with(name).then_some(path) }
    })
}

fn lines(entries: &[kiln_proto::v1::ProgressEntry]) -> Vec<String> {
    let lines = entries.iter().filter_map(|entry| match &entry.event {
        Some(Event::Line(line)) => Some(String::from_utf8_lossy(&line.text).into_owned()),
        Some(Event::Vertex(_) | Event::Status(_) | Event::Warning(_)) | None => None,
    });
    lines.collect()
}

fn stamp() -> String {
    kiln_common::AttemptId::generate().to_string()
}

async fn builds_and_fails_and_cancels(engine: EngineKind) {
    let Some(farm) = TestFarm::start(engine).await else { return };
    let stamp = stamp();
    let id = farm.submit("good", &format!("FROM busybox\nRUN echo begun-{stamp}\n")).await.expect("accepted");
    let build = farm.finish(&id).await;
    assert_eq!(build.state(), BuildState::Succeeded, "{}", build.message);
    assert!(farm.log(&id).await.iter().any(|line| line.contains(&format!("begun-{stamp}"))));

    let id = farm.submit("bad", &format!("FROM busybox\nRUN echo {stamp} && exit 7\n")).await.expect("accepted");
    let build = farm.finish(&id).await;
    assert_eq!((build.state(), build.tasks[0].message.contains('7')), (BuildState::Failed, true), "{build:?}");

    let id =
        farm.submit("slow", &format!("FROM busybox\nRUN echo slow-{stamp} && sleep 600\n")).await.expect("accepted");
    farm.line(&id, &format!("slow-{stamp}")).await;
    let told = std::time::Instant::now();
    let request = CancelBuildRequest { id: id.clone(), reason: "enough".to_owned() };
    farm.client().cancel(request).await.expect("cancelled");
    assert_eq!(farm.finish(&id).await.state(), BuildState::Cancelled);
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_28_builds_fails_and_cancels() {
    builds_and_fails_and_cancels(EngineKind::Docker28).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_20_builds_fails_and_cancels() {
    builds_and_fails_and_cancels(EngineKind::Docker20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_goes_on_while_the_coordinator_restarts() {
    let mut farm = TestFarm::start(EngineKind::Docker28).await.expect("docker 28");
    let stamp = stamp();
    let steps = format!("FROM busybox\nRUN for i in $(seq 60); do echo {stamp}-$i; sleep 0.1; done\n");
    let id = farm.submit("restart", &steps).await.expect("accepted");
    farm.line(&id, &format!("{stamp}-5")).await;
    farm.restart_coordinator().await;
    let build = farm.finish(&id).await;
    assert_eq!(build.state(), BuildState::Succeeded, "{}", build.message);
    let own: Vec<_> = farm.log(&id).await.into_iter().filter(|line| line.contains(&stamp)).collect();
    assert_eq!(own, (1..=60).map(|number| format!("{stamp}-{number}")).collect::<Vec<_>>());
}
