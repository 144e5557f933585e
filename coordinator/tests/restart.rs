//! A coordinator that dies anywhere loses no build that it acknowledged.

mod support;

use std::{
    io::BufRead,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
};

use kiln_proto::v1;
use support::{Farm, People, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_returns_after_a_restart_keeps_its_attempt() {
    let directory = tempfile::tempdir().expect("a directory");
    let farm = Farm::start(directory.path()).await;
    let mut worker = farm.worker("board").await;
    let mut session = worker.session(&["linux/amd64"], &[]).await;
    session.welcome().await;
    let build = farm.people().submit(request(&["linux/amd64"])).await.expect("accepted");
    let attempt = session.assignment().await.attempt_id;
    drop(farm);

    let farm = Farm::start(directory.path()).await;
    worker.dial(&farm.running.endpoint);
    let mut session = worker.session(&["linux/amd64"], std::slice::from_ref(&attempt)).await;
    assert_eq!(session.welcome().await.adopted_attempt_ids, std::slice::from_ref(&attempt));
    session.succeed(&attempt).await;
    let done = farm.people().finished(&build.id).await;
    assert_eq!((done.state(), done.tasks[0].attempts), (v1::BuildState::Succeeded, 1));
    assert_eq!(farm.publisher.published.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_build_is_there_after_kill_9() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut process = Process::start(directory.path());
    let mut worker = support::Worker::join(&process.people().join_token().await, "board").await;
    let mut session = worker.session(&["linux/amd64"], &[]).await;
    session.welcome().await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let people = process.people();
        let (answered, mut answers) = tokio::sync::mpsc::channel(50);
        let submits: Vec<_> = (0..50)
            .map(|number| {
                let (mut people, answered) = (people.clone(), answered.clone());
                let submit = v1::SubmitRequest { request_id: format!("{round}/{number}"), ..request(&["linux/amd64"]) };
                tokio::spawn(async move {
                    let outcome = people.submit(submit).await.map(|build| build.id);
                    answered.send(()).await.expect("room");
                    outcome
                })
            })
            .collect();
        // Dies while submits are under way: some are acknowledged, some are not.
        for _ in 0..=10 * round {
            support::soon("an answer", answers.recv()).await;
        }
        process.kill();
        for submit in submits {
            match submit.await.expect("no panic") {
                Ok(id) => acknowledged.push(id),
                // The connection broke, as it has to: nothing was promised.
                Err(status) => {
                    let broke = matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown);
                    assert!(broke, "{status:?}");
                }
            }
        }
        process = Process::start(directory.path());
        let mut people = process.people();
        for id in &acknowledged {
            assert_eq!(&people.get(id).await.id, id);
        }
    }
    assert!(!acknowledged.is_empty(), "the process died too early for the test to mean anything");
}

/// `kiln-coordinator` as a process of its own.
struct Process {
    child: Child,
    endpoint: String,
    directory: std::path::PathBuf,
}

impl Process {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiln-coordinator"))
            .args([
                "--grpc-listen",
                "127.0.0.1:0",
                "--http-listen",
                "127.0.0.1:0",
                "--log-format",
                "json",
                "--data-dir",
            ])
            .arg(directory)
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = std::io::BufReader::new(child.stderr.take().expect("piped")).lines();
        let ready = lines.by_ref().map_while(Result::ok).find(|line| line.contains("coordinator ready"));
        let ready = ready.expect("gets ready");
        let endpoint = ready.split("\"endpoint\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let endpoint = endpoint.expect("says its endpoint").to_owned();
        // Nobody reads the log any more, and nobody is to wait for that.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, endpoint, directory: directory.to_owned() }
    }

    fn people(&self) -> People {
        let (ca, token) = (self.directory.join("ca/ca.pem"), self.directory.join("admin.token"));
        People::connect(&self.endpoint, &ca, &token)
    }

    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
