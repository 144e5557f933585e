//! What must survive: `kill -9` in the middle of a build loses nothing, and a cancel really stops the engine.

use std::{fs, io::BufRead as _, process::Stdio, time::Duration};

use harness::{Bed, Farm, bed::EngineKind, process, registry};
use serde_json::Value;

fn slow_context(seconds: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let stamp = folder.path().file_name().expect("a name").to_string_lossy().into_owned();
    let text = format!("FROM busybox\nRUN echo step-has-begun {stamp} && sleep {seconds}\n");
    fs::write(folder.path().join("Dockerfile"), text).expect("Dockerfile");
    folder
}

/// Submits without waiting and returns the build's id.
fn submit(farm: &Farm, tag: &str, context: &tempfile::TempDir) -> String {
    let path = context.path().display().to_string();
    farm.run(&["build", "-t", tag, "--platform", "linux/amd64", "--detach", "--progress", "quiet", &path])
        .trim()
        .to_owned()
}

/// Returns once the build's own output says that its RUN step is under way.
fn wait_for_step(farm: &Farm, id: &str) {
    let mut logs = farm
        .kiln()
        .args(["builds", "logs", "-f", id])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("kiln runs");
    let lines = std::io::BufReader::new(logs.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let seen = lines.into_iter().any(|line| line.ends_with("step-has-begun") || line.contains(" step-has-begun "));
    let _ = logs.kill();
    let _ = logs.wait();
    assert!(seen, "the step never began\n{}", farm.log());
}

fn state(farm: &Farm, id: &str) -> Value {
    serde_json::from_str(&farm.run(&["builds", "show", id, "-o", "json"])).expect("JSON")
}

#[test]
fn an_acknowledged_build_survives_kill_9_and_finishes() {
    let farm = Farm::start(&Bed.engine(EngineKind::Docker28).expect("docker 28"));
    let tag = format!("{}/e2e/crash:1", Bed.registry());
    let context = slow_context(3);
    let id = submit(&farm, &tag, &context);
    wait_for_step(&farm, &id);
    let farm = farm.crash_and_restart();
    farm.run(&["builds", "watch", &id]);
    assert!(registry::exists(&tag), "the tag is published after the restart");
}

#[test]
fn a_cancelled_build_stops_on_the_engine_and_publishes_nothing() {
    let farm = Farm::start(&Bed.engine(EngineKind::Docker28).expect("docker 28"));
    let tag = format!("{}/e2e/cancelled:1", Bed.registry());
    let context = slow_context(60_001);
    let id = submit(&farm, &tag, &context);
    wait_for_step(&farm, &id);
    farm.run(&["builds", "cancel", &id]);
    let record = state(&farm, &id).to_string().to_lowercase();
    assert!(record.contains("cancelled"), "{record}");
    assert!(!registry::exists(&tag));
    process::until(Duration::from_secs(5), "the RUN step ends on the engine", || !process::runs("sleep 60001"));
}
