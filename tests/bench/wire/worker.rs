//! Simulated workers: each joins, holds one session over a connection of its own, sends heartbeats as it is asked to, and
//! ends every task a moment after it has begun.

use std::{
    io::Write as _,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use kiln_common::runtime::{Dialer, JoinToken, tls};
use kiln_proto::{
    SESSION_PROTOCOLS, convert,
    v1::{
        self, attempt_report::Outcome, coordinator_message::Message as Down, worker_message::Message as Up,
        worker_service_client::WorkerServiceClient,
    },
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, interval_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Workers that join or connect at once.
const AT_ONCE: usize = 64;
const SLOTS: u32 = 16;
/// How long a task takes.
const TASK: Duration = Duration::from_millis(100);

/// Which build arrived when.
type Received = Arc<Mutex<Vec<(String, Duration)>>>;

/// Says `ready` once all are welcome; once the input ends, prints which build arrived when.
pub async fn serve(token: &str, workers: usize) -> anyhow::Result<()> {
    let parsed: JoinToken = token.parse()?;
    let trust = tls::Trust::Fingerprint(parsed.ca_fingerprint);
    let entrance = Dialer::new(&parsed.coordinators, tls::client_config(trust, None)?)?.channel()?;
    let received = Received::default();
    let gate = Arc::new(Semaphore::new(AT_ONCE));
    let mut joining = JoinSet::new();
    for number in 0..workers {
        let (gate, entrance, received) = (Arc::clone(&gate), entrance.clone(), Arc::clone(&received));
        let (token, addresses) = (token.to_owned(), parsed.coordinators.clone());
        joining.spawn(async move {
            let _permit = gate.acquire_owned().await?;
            let dialer = join(entrance, token, &addresses, number).await.context("join")?;
            let session = Session::open(dialer).await.context("session")?;
            tokio::spawn(async move {
                if let Err(error) = session.run(received).await {
                    eprintln!("worker {number}: {error:#}");
                }
            });
            anyhow::Ok(())
        });
    }
    while let Some(joined) = joining.join_next().await {
        joined??;
    }
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin())).await??;
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    for (build, at) in received.lock().expect("whole").drain(..) {
        writeln!(output, "{build} {}", at.as_micros())?;
    }
    writeln!(output, "end")?;
    Ok(())
}

async fn join(entrance: Channel, token: String, addresses: &[String], number: usize) -> anyhow::Result<Dialer> {
    let key = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
    let request =
        v1::EnrollRequest { join_token: token, csr_der: csr.der().to_vec(), name: format!("simulated-{number}") };
    let enrolled = WorkerServiceClient::new(entrance).enroll(request).await?.into_inner();
    let identity = tls::Identity {
        chain: tls::certificates("worker", enrolled.certificate_pem.as_bytes())?,
        key: tls::private_key("worker", key.serialize_pem().as_bytes())?,
    };
    let trust = tls::Trust::Ca(tls::certificates("ca", enrolled.ca_pem.as_bytes())?);
    Ok(Dialer::new(addresses, tls::client_config(trust, Some(identity))?)?)
}

struct Session {
    say: mpsc::Sender<v1::WorkerMessage>,
    hear: tonic::Streaming<v1::CoordinatorMessage>,
    every: Duration,
}

impl Session {
    async fn open(dialer: Dialer) -> anyhow::Result<Self> {
        let channel = dialer.connect().await?;
        let (say, said) = mpsc::channel(64);
        say.send(message(Up::Hello(hello()))).await?;
        let mut hear = WorkerServiceClient::new(channel).session(ReceiverStream::new(said)).await?.into_inner();
        let Some(Down::Welcome(welcome)) = hear.message().await?.and_then(|message| message.message) else {
            bail!("no welcome");
        };
        let every = welcome.heartbeat_interval.as_ref().and_then(convert::duration_from_wire);
        Ok(Self { say, hear, every: every.context("no heartbeat interval")? })
    }

    async fn run(mut self, received: Received) -> anyhow::Result<()> {
        let mut beats = interval_at(Instant::now() + self.every, self.every);
        loop {
            tokio::select! {
                message = self.hear.message() => match message?.and_then(|message| message.message) {
                    Some(Down::Assignment(assignment)) => {
                        let at = SystemTime::now().duration_since(UNIX_EPOCH)?;
                        received.lock().expect("whole").push((assignment.build_id, at));
                        tokio::spawn(pretend(self.say.clone(), assignment.attempt_id));
                    }
                    Some(_) => {}
                    None => bail!("the session ended"),
                },
                _ = beats.tick() => {
                    let stats = Some(v1::WorkerStats { load1: 0.1, memory_available_bytes: 1 << 30, ..Default::default() });
                    self.say.send(message(Up::Heartbeat(v1::Heartbeat { stats }))).await?;
                }
            }
        }
    }
}

async fn pretend(say: mpsc::Sender<v1::WorkerMessage>, attempt_id: String) {
    let report =
        |outcome| message(Up::Report(v1::AttemptReport { attempt_id: attempt_id.clone(), outcome: Some(outcome) }));
    let failed = v1::AttemptFailed { kind: v1::FailureKind::Build.into(), message: "simulated".into(), log_entries: 0 };
    // A session that ended takes nothing more; the measuring side misses the build then.
    let _ = say.send(report(Outcome::Started(v1::AttemptStarted {}))).await;
    tokio::time::sleep(TASK).await;
    let _ = say.send(report(Outcome::Failed(failed))).await;
}

const fn message(message: Up) -> v1::WorkerMessage {
    v1::WorkerMessage { message: Some(message) }
}

fn hello() -> v1::Hello {
    let platform = v1::WorkerPlatform { platform: "linux/amd64".into(), grade: v1::Grade::Native.into() };
    v1::Hello {
        protocol: SESSION_PROTOCOLS.newest,
        platforms: vec![platform],
        slots: SLOTS,
        engine: Some(v1::EngineInfo { kind: "buildkitd".into(), version: "0.20".into(), ..Default::default() }),
        machine: Some(v1::MachineInfo { cpu_model: "simulated".into(), cpus: 4, ..Default::default() }),
        ..Default::default()
    }
}
