//! `kiln build` from submit to exit.

use std::{process::Stdio, time::Duration};

use kiln_common::Reason;
use kiln_proto::{
    status::Refused,
    v1::{self, BuildState, LogLine, LogsResponse, ProgressEntry, Vertex, progress_entry::Event},
};

use crate::{
    fake::{BUILD_ID, Fake, TOKEN, VIEWER, build, not_leader},
    kiln::{Kiln, ended},
};

const DOCKERFILE: &str = "FROM registry.example/base\nRUN make\n";

fn entry(event: Event) -> ProgressEntry {
    let time = Some(prost_types::Timestamp { seconds: 1_700_000_002, nanos: 0 });
    ProgressEntry { time, event: Some(event) }
}

fn vertex(done: bool, error: &str) -> ProgressEntry {
    let at = |seconds: i64| Some(prost_types::Timestamp { seconds: 1_700_000_000 + seconds, nanos: 0 });
    entry(Event::Vertex(Vertex {
        digest: "v".into(),
        name: "[2/2] RUN make".into(),
        started_at: at(1),
        completed_at: if done { at(3) } else { None },
        error: error.into(),
        ..Vertex::default()
    }))
}

fn line(text: &str) -> ProgressEntry {
    entry(Event::Line(LogLine { vertex: "v".into(), stream: 1, text: text.as_bytes().to_vec(), partial: false }))
}

/// One entry a message, as of the first leg's attempt.
fn log(entries: Vec<ProgressEntry>) -> Vec<LogsResponse> {
    let message = |(at, entry)| LogsResponse {
        platform: "linux/amd64".into(),
        attempt_id: "a-linux/amd64".into(),
        first_sequence: at as u64,
        entries: vec![entry],
    };
    entries.into_iter().enumerate().map(message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_sends_what_the_flags_say_and_tells_how_it_went() {
    let fake = Fake::start().await;
    let mut kiln = Kiln::of(&fake, TOKEN);
    let context = kiln.context(DOCKERFILE);
    kiln.set("SECRET", "hush");
    std::fs::create_dir_all(kiln.path().join(".docker")).unwrap();
    let auths = r#"{"auths": {"registry.example": {"auth": "dTpw"}, "r.example": {"auth": "dTpw"}, "x.example": {"auth": "dTpw"}}}"#;
    std::fs::write(kiln.path().join(".docker/config.json"), auths).unwrap();
    fake.state().log = log(vec![vertex(false, ""), line("compiling"), vertex(true, "")]);
    fake.become_(build(BuildState::Succeeded));
    let ended = kiln
        .run(&[
            "build",
            "-t",
            "r.example/app:1",
            "--platform",
            "linux/amd64,linux/arm64",
            "--build-arg",
            "A=1",
            "--secret",
            "id=s,env=SECRET",
            "--metadata-file",
            "m.json",
            "--iidfile",
            "iid",
            "--emulation",
            "wait=30s",
            &context,
        ])
        .await
        .expect(0, &["#1 [linux/amd64 2/2] RUN make", "#1 1.000 compiling", "#1 DONE 2.0s", "2 platforms in 4.0s"]);
    assert!(ended.out.is_empty(), "progress belongs on standard error: {}", ended.out);
    let request = fake.state().submitted[0].clone();
    let spec = request.spec.unwrap();
    assert_eq!(
        spec.platforms.iter().map(|one| one.platform.as_str()).collect::<Vec<_>>(),
        ["linux/amd64", "linux/arm64"]
    );
    assert_eq!((spec.build_args["A"].as_str(), spec.emulation.as_str()), ("1", "wait=30s"));
    assert_eq!(request.secrets["s"], b"hush"[..]);
    assert!(spec.provenance.is_none() && !request.request_id.is_empty());
    let hosts: Vec<_> = request.credentials.iter().map(|one| one.host.as_str()).collect();
    assert_eq!(hosts, ["r.example", "registry.example"]);
    let digest = format!("sha256:{}", "a".repeat(64));
    assert_eq!(std::fs::read_to_string(kiln.path().join("iid")).unwrap(), digest);
    let metadata = std::fs::read_to_string(kiln.path().join("m.json")).unwrap();
    assert!(
        metadata.contains(&digest) && metadata.contains("containerimage.descriptor") && metadata.contains(BUILD_ID)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_on_when_nobody_reads_its_progress_any_more() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    let context = kiln.context(DOCKERFILE);
    fake.state().log = log(vec![vertex(false, ""), line("compiling"), vertex(true, "")]);
    fake.become_(build(BuildState::Succeeded));
    let mut command = kiln.command(&["build", "-t", "r.example/app:1", "--progress=plain", &context]);
    let code = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        drop(child.stderr.take());
        child.wait().unwrap().code()
    });
    assert_eq!(code.await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_prints_the_digest_alone_and_detach_the_id() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    let context = kiln.context(DOCKERFILE);
    let detached =
        kiln.run(&["build", "-t", "r.example/app:1", "--detach", "--progress=quiet", &context]).await.expect(0, &[]);
    assert_eq!(detached.out, format!("{BUILD_ID}\n"));
    fake.become_(build(BuildState::Succeeded));
    let quiet = kiln.run(&["build", "-q", "-t", "r.example/app:1", &context]).await.expect(0, &[]);
    assert_eq!((quiet.out, quiet.err), (format!("sha256:{}\n", "a".repeat(64)), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_is_exit_1_and_shows_the_leg_the_step_and_the_line() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    let context = kiln.context(DOCKERFILE);
    fake.state().log = log(vec![vertex(false, ""), line("no rule to make target"), vertex(true, "exit code: 2")]);
    let mut failed = build(BuildState::Failed);
    failed.message = "linux/amd64: exit code: 2".into();
    failed.tasks[0].state = v1::TaskState::Failed.into();
    failed.tasks[0].message = "exit code: 2".into();
    fake.become_(failed);
    kiln.run(&["build", "-t", "r.example/app:1", &context]).await.expect(
        1,
        &[
            "✗ linux/amd64 failed on tower (native)",
            "[linux/amd64 2/2] RUN make",
            "no rule to make target",
            "Dockerfile:2",
            ">>> RUN make",
            "WARNING: linux/arm64: EMULATED on tower: no native worker is registered",
            "linux/amd64: exit code: 2",
        ],
    );
    kiln.run(&["builds", "watch", BUILD_ID]).await.expect(1, &["✗ linux/amd64 failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_at_submit_have_their_exit_codes() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    let context = kiln.context(DOCKERFILE);
    let message = "no worker runs windows/amd64; the farm has linux/amd64";
    fake.state().refusals = vec![Refused::new(Reason::NoWorkerForPlatform, message)];
    kiln.run(&["build", "-t", "r.example/app:1", "--platform", "windows/amd64", &context])
        .await
        .expect(2, &["no worker runs windows/amd64; the farm has linux/amd64", "kiln workers"]);
    Kiln::of(&fake, VIEWER).run(&["build", "-t", "r.example/app:1", &context]).await.expect(4, &["viewer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_chunk_and_an_absent_farm_are_made_up_for() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    let context = kiln.context(DOCKERFILE);
    fake.become_(build(BuildState::Succeeded));
    fake.state().refusals = vec![
        Refused::new(Reason::ContextIncomplete, "chunks are missing"),
        Refused::new(Reason::Unavailable, "restarting"),
        not_leader(&fake.endpoint),
    ];
    kiln.run(&["build", "-t", "r.example/app:1", &context]).await.expect(0, &["2 platforms"]);
    assert_eq!(fake.state().submitted.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_log_stream_is_opened_again_without_losing_or_doubling_a_line() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    let context = kiln.context(DOCKERFILE);
    let texts = ["one", "two", "three", "four"];
    let mut entries = vec![vertex(false, "")];
    entries.extend(texts.iter().map(|text| line(&format!("line {text}"))));
    entries.push(vertex(true, ""));
    fake.state().log = log(entries);
    fake.state().break_log_after = Some(3);
    fake.become_(build(BuildState::Succeeded));
    let ended = kiln.run(&["build", "-t", "r.example/app:1", &context]).await.expect(0, &[]);
    for text in texts {
        assert_eq!(ended.err.matches(&format!("line {text}\n")).count(), 1, "{}", ended.err);
    }
    fake.state().break_log_after = Some(3);
    let logs = kiln.run(&["builds", "logs", BUILD_ID]).await.expect(0, &["[linux/amd64 2/2] RUN make | line one"]);
    for text in texts {
        assert_eq!(logs.out.matches(&format!("line {text}\n")).count(), 1, "{}", logs.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rawjson_is_one_solve_status_a_line() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    let context = kiln.context(DOCKERFILE);
    fake.state().log = log(vec![vertex(false, ""), line("hi"), vertex(true, "")]);
    fake.become_(build(BuildState::Succeeded));
    let ended = kiln.run(&["build", "-t", "r.example/app:1", "--progress", "rawjson", &context]).await.expect(0, &[]);
    let statuses: Vec<serde_json::Value> = ended.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(statuses.iter().any(|status| status["vertexes"][0]["name"] == "[linux/amd64 2/2] RUN make"));
    assert!(statuses.iter().any(|status| status["logs"][0]["data"] == "aGkK"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_without_a_terminal_cancels_on_the_farm_and_is_exit_130() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    let context = kiln.context(DOCKERFILE);
    fake.become_(build(BuildState::Running));
    let mut command = kiln.command(&["build", "-t", "r.example/app:1", &context]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    // The submit is the event to wait for: from then on there is something to cancel.
    while fake.state().submitted.is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it submitted");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    ended(output).expect(130, &["cancelling the build", "is cancelled"]);
    assert_eq!(fake.state().cancelled[0].id, BUILD_ID);
}
