//! A coordinator in this process over real TLS, people who call it, and workers that only pretend to build.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use clap::Parser;
use kiln_common::{
    Digest, ImageReference, Timestamp,
    runtime::{Dialer, JoinToken, Shutdown, tls},
};
use kiln_coordinator::{
    Config, Running,
    credentials::RegistryCredential,
    driver::{PublishOutcome, Publisher, Removed},
};
use kiln_proto::v1::{
    self, build_service_client::BuildServiceClient, coordinator_message::Message as Down,
    farm_service_client::FarmServiceClient, worker_message::Message as Up, worker_service_client::WorkerServiceClient,
};
use kiln_scheduler::{effect::PublishJob, record::Published};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming, metadata::MetadataValue, service::Interceptor, transport::Channel};

/// Nothing in these tests takes longer than this but by a defect.
const PATIENCE: Duration = Duration::from_secs(20);

/// What must come, comes.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// Publishes nowhere and counts.
#[derive(Debug, Default)]
pub struct FakePublisher {
    pub published: AtomicUsize,
}

/// What the registry of [`FakePublisher`] does not have.
pub fn never_pushed() -> Digest {
    Digest::from_sha256([9; 32])
}

#[async_trait]
impl Publisher for FakePublisher {
    async fn tags(
        &self,
        tags: &[ImageReference],
        _: Vec<RegistryCredential>,
    ) -> Result<BTreeMap<ImageReference, Option<Digest>>, String> {
        Ok(tags.iter().map(|tag| (tag.clone(), Some(digest()))).collect())
    }

    async fn remove(
        &self,
        _: &ImageReference,
        _: BTreeSet<Digest>,
        _: Vec<RegistryCredential>,
        _: bool,
    ) -> Result<Removed, String> {
        Err("nothing is removed here".to_owned())
    }

    async fn publish(&self, job: PublishJob, _: Vec<RegistryCredential>, _: CancellationToken) -> PublishOutcome {
        let missing = job.legs.iter().filter(|leg| leg.image.digest == never_pushed());
        let platforms: Vec<_> = missing.map(|leg| leg.platform.clone()).collect();
        if !platforms.is_empty() {
            return PublishOutcome::LegsMissing { platforms, message: format!("{} does not exist", never_pushed()) };
        }
        self.published.fetch_add(1, Ordering::SeqCst);
        PublishOutcome::Succeeded(Published {
            digest: digest(),
            media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
            size: 100,
            tags: job.spec.tags.iter().map(ToString::to_string).collect(),
            platform_sizes: Default::default(),
            at: Timestamp::now(),
        })
    }
}

pub fn digest() -> Digest {
    Digest::from_sha256([7; 32])
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

pub fn config(data_dir: &Path) -> Config {
    let data_dir = data_dir.to_str().expect("utf-8");
    let arguments = ["test", "--data-dir", data_dir, "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    Flags::parse_from(arguments).config
}

pub struct Farm {
    pub running: Running,
    pub publisher: Arc<FakePublisher>,
}

impl Farm {
    pub async fn start(data_dir: &Path) -> Self {
        let publisher = Arc::new(FakePublisher::default());
        let deadline = tokio::time::Instant::now() + PATIENCE;
        // An earlier coordinator of this process may still be letting go of its files.
        loop {
            let started =
                kiln_coordinator::start_with(config(data_dir), Shutdown::new(), Arc::clone(&publisher) as _).await;
            match started {
                Ok(running) => return Self { running, publisher },
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn people(&self) -> People {
        People::connect(&self.running.endpoint, &self.running.ca_file, &self.running.admin_token_file)
    }

    pub async fn worker(&self, name: &str) -> Worker {
        let token = self.running.create_join_token().await.expect("a token");
        Worker::join(&token, name).await
    }
}

/// Someone with an admin token.
#[derive(Clone)]
pub struct People {
    pub builds: BuildServiceClient<tonic::service::interceptor::InterceptedService<Channel, Bearer>>,
    pub farm: FarmServiceClient<tonic::service::interceptor::InterceptedService<Channel, Bearer>>,
}

#[derive(Clone)]
pub struct Bearer(MetadataValue<tonic::metadata::Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl People {
    pub fn connect(endpoint: &str, ca_file: &Path, token_file: &Path) -> Self {
        let ca = tls::certificates("ca", &std::fs::read(ca_file).expect("the CA")).expect("PEM");
        let config = tls::client_config(tls::Trust::Ca(ca), None).expect("a TLS configuration");
        let channel = Dialer::new(&[endpoint], config).expect("an address").channel().expect("a channel");
        let token = std::fs::read_to_string(token_file).expect("the token");
        let bearer = Bearer(format!("Bearer {}", token.trim()).parse().expect("ASCII"));
        Self {
            builds: BuildServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            farm: FarmServiceClient::with_interceptor(channel, bearer),
        }
    }

    pub async fn submit(&mut self, request: v1::SubmitRequest) -> Result<v1::Build, Status> {
        let response = soon("the answer to a submit", self.builds.submit(request)).await?;
        Ok(response.into_inner().build.expect("a build"))
    }

    pub async fn join_token(&mut self) -> String {
        let request = v1::CreateJoinTokenRequest { uses: 1, ..Default::default() };
        soon("a token", self.farm.create_join_token(request)).await.expect("made").into_inner().token
    }

    pub async fn get(&mut self, id: &str) -> v1::Build {
        let request = v1::GetBuildRequest { id: id.to_owned() };
        soon("a build", self.builds.get(request)).await.expect("known").into_inner()
    }

    /// The whole audit trail, newest first, once all that was said before this is written.
    pub async fn audit(&mut self) -> Vec<v1::AuditEntry> {
        // The trail is written in order, and this is answered once its own entry is.
        self.join_token().await;
        let request = v1::ListAuditRequest { page_size: 500, ..Default::default() };
        soon("the trail", self.farm.list_audit(request)).await.expect("listed").into_inner().entries
    }

    /// What was refused under this action, newest first.
    pub async fn refusals(&mut self, action: &str) -> Vec<v1::AuditEntry> {
        let mut all = self.audit().await;
        all.retain(|entry| entry.action == action && entry.outcome() == v1::AuditOutcome::Refused);
        all
    }

    /// The build once it is final.
    pub async fn finished(&mut self, id: &str) -> v1::Build {
        let request = v1::WatchBuildRequest { id: id.to_owned() };
        let mut watch = self.builds.watch(request).await.expect("watched").into_inner();
        let mut last = None;
        while let Some(build) = soon("a change of the build", watch.message()).await.expect("no error") {
            last = Some(build);
        }
        last.expect("at least the build as it is")
    }

    /// How many entries the build's log has once it has ended.
    pub async fn logged_lines(&mut self, build: &str) -> usize {
        let request = v1::LogsRequest { id: build.to_owned(), follow: true, ..Default::default() };
        let mut logs = self.builds.logs(request).await.expect("logs").into_inner();
        let mut lines = 0;
        while let Some(batch) = soon("the end of the logs", logs.message()).await.expect("no error") {
            lines += batch.entries.len();
        }
        lines
    }
}

pub fn request(platforms: &[&str]) -> v1::SubmitRequest {
    let platform = |platform: &&str| v1::PlatformRequest { platform: (*platform).to_owned(), optional: false };
    v1::SubmitRequest {
        spec: Some(v1::BuildSpec {
            dockerfile: Some(v1::build_spec::Dockerfile::DockerfileInline("FROM scratch\n".to_owned())),
            platforms: platforms.iter().map(platform).collect(),
            tags: vec!["r.example/team/app:1".to_owned()],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A worker's identity and its way to the farm.
pub struct Worker {
    pub id: String,
    pub name: String,
    pub calls: WorkerServiceClient<Channel>,
    identity: tls::Identity,
    ca: Vec<rustls_pki_types::CertificateDer<'static>>,
}

/// An open session.
pub struct Session {
    pub say: mpsc::Sender<v1::WorkerMessage>,
    pub hear: Streaming<v1::CoordinatorMessage>,
}

impl Worker {
    pub async fn join(token: &str, name: &str) -> Self {
        Self::try_join(token, name, rcgen::CertificateParams::default()).await.expect("enrolled")
    }

    /// Joins with a certificate request of its own making.
    pub async fn try_join(token: &str, name: &str, params: rcgen::CertificateParams) -> Result<Self, Status> {
        let parsed: JoinToken = token.parse().expect("a token");
        let trust = tls::Trust::Fingerprint(parsed.ca_fingerprint);
        let dialer = Dialer::new(&parsed.coordinators, tls::client_config(trust, None).expect("TLS")).expect("address");
        let key = rcgen::KeyPair::generate().expect("a key");
        let csr = params.serialize_request(&key).expect("a request");
        let request =
            v1::EnrollRequest { join_token: token.to_owned(), csr_der: csr.der().to_vec(), name: name.to_owned() };
        let mut calls = WorkerServiceClient::new(dialer.channel().expect("a channel"));
        let enrolled = soon("the certificate", calls.enroll(request)).await?.into_inner();
        let identity = tls::Identity {
            chain: tls::certificates("worker", enrolled.certificate_pem.as_bytes()).expect("PEM"),
            key: tls::private_key("worker", key.serialize_pem().as_bytes()).expect("PEM"),
        };
        let ca = tls::certificates("ca", enrolled.ca_pem.as_bytes()).expect("PEM");
        let mut worker = Self { id: enrolled.worker_id, name: enrolled.name, calls, identity, ca };
        worker.dial(&parsed.coordinators[0]);
        Ok(worker)
    }

    /// Trusts this farm, with the identity that another one gave.
    pub fn with_trust_of(mut self, other: &Self, endpoint: &str) -> Self {
        self.ca.clone_from(&other.ca);
        self.dial(endpoint);
        self
    }

    /// Asks for a new certificate with the one that it has.
    pub async fn renew(&mut self) -> Result<v1::EnrollResponse, Status> {
        let key = rcgen::KeyPair::generate().expect("a key");
        let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
        let request = v1::EnrollRequest { csr_der: csr.der().to_vec(), ..Default::default() };
        Ok(soon("the certificate", self.calls.enroll(request)).await?.into_inner())
    }

    /// Opens a session that begins with this message.
    pub async fn session_with(&mut self, first: Up) -> Session {
        let (say, said) = mpsc::channel(4096);
        say.send(message(first)).await.expect("room");
        let hear = soon("the session", self.calls.session(ReceiverStream::new(said))).await.expect("a session");
        Session { say, hear: hear.into_inner() }
    }

    /// Takes the way to a coordinator that listens elsewhere now.
    pub fn dial(&mut self, endpoint: &str) {
        let config = tls::client_config(tls::Trust::Ca(self.ca.clone()), Some(self.identity.clone())).expect("TLS");
        let channel = Dialer::new(&[endpoint], config).expect("an address").channel().expect("a channel");
        self.calls = WorkerServiceClient::new(channel);
    }

    /// Sends one line of an attempt's log, its first.
    pub async fn log_a_line(&mut self, attempt: &str) {
        let line = v1::LogLine { text: b"hello".to_vec(), ..Default::default() };
        let entry = v1::ProgressEntry { event: Some(v1::progress_entry::Event::Line(line)), ..Default::default() };
        let batch = v1::LogBatch { attempt_id: attempt.to_owned(), first_sequence: 0, entries: vec![entry] };
        let mut acks = self.calls.logs(tokio_stream::iter([batch])).await.expect("a log stream").into_inner();
        let ack = soon("an acknowledgement", acks.message()).await.expect("no error").expect("one");
        assert_eq!(ack.next_sequence, 1);
    }

    pub async fn session(&mut self, platforms: &[&str], attempts: &[String]) -> Session {
        self.session_with(Up::Hello(hello(platforms, attempts))).await
    }
}

impl Session {
    pub async fn next(&mut self) -> Down {
        let message = soon("a message", self.hear.message()).await.expect("no error").expect("goes on");
        message.message.expect("something")
    }

    pub async fn welcome(&mut self) -> v1::Welcome {
        let next = self.next().await;
        let Down::Welcome(welcome) = next else { panic!("{next:?} instead of a welcome") };
        welcome
    }

    pub async fn assignment(&mut self) -> v1::Assignment {
        let next = self.next().await;
        let Down::Assignment(assignment) = next else { panic!("{next:?} instead of an assignment") };
        assignment
    }

    /// Sends a report and waits until it is dealt with.
    pub async fn claim(&mut self, attempt: &str, outcome: v1::attempt_report::Outcome) {
        self.report(attempt, outcome).await;
        let next = self.next().await;
        let Down::Ack(ack) = next else { panic!("{next:?} instead of an acknowledgement") };
        assert_eq!(ack.attempt_id, attempt);
    }

    pub async fn report(&self, attempt: &str, outcome: v1::attempt_report::Outcome) {
        let report = v1::AttemptReport { attempt_id: attempt.to_owned(), outcome: Some(outcome) };
        self.say.send(message(Up::Report(report))).await.expect("room");
    }

    pub async fn succeed(&mut self, attempt: &str) {
        self.report(attempt, v1::attempt_report::Outcome::Started(v1::AttemptStarted {})).await;
        self.claim(attempt, succeeded()).await;
    }

    /// The status with which the coordinator ended the session.
    pub async fn end(&mut self) -> Status {
        loop {
            match soon("the session's end", self.hear.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("ended"),
                Err(status) => return status,
            }
        }
    }
}

pub fn succeeded() -> v1::attempt_report::Outcome {
    v1::attempt_report::Outcome::Succeeded(v1::AttemptSucceeded {
        digest: digest().to_string(),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        size_bytes: 500,
        ..Default::default()
    })
}

pub fn message(message: Up) -> v1::WorkerMessage {
    v1::WorkerMessage { message: Some(message) }
}

pub fn hello(platforms: &[&str], attempts: &[String]) -> v1::Hello {
    let platform =
        |platform: &&str| v1::WorkerPlatform { platform: (*platform).to_owned(), grade: v1::Grade::Native.into() };
    v1::Hello {
        protocol: kiln_proto::SESSION_PROTOCOLS.newest,
        platforms: platforms.iter().map(platform).collect(),
        slots: 4,
        attempt_ids: attempts.to_vec(),
        ..Default::default()
    }
}
