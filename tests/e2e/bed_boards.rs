//! What a board goes through: its card fills up, its engine dies and comes back, its operator stops, resizes or removes
//! it.

use std::{
    fs,
    time::{Duration, Instant},
};

use harness::{
    Bed, Farm, OwnEngine, Worker,
    bed::EngineKind,
    process::{self, runs},
    registry,
};
use serde_json::Value;

const MIB: u64 = 1024 * 1024;

/// A farm whose own worker has no label that a build here asks for.
fn farm() -> Farm {
    Farm::start(&Bed.engine(EngineKind::Docker28).expect("docker 28"))
}

fn unique() -> String {
    kiln_common::AttemptId::generate().to_string().replace('-', "")
}

fn tag() -> String {
    format!("{}/boards/{}:x", Bed.registry(), unique())
}

fn context(dockerfile: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    fs::write(folder.path().join("Dockerfile"), dockerfile).expect("Dockerfile");
    folder
}

/// Submits to the worker with this label and does not wait; the build's id.
fn submit(farm: &Farm, tag: &str, require: &str, dockerfile: &str) -> String {
    let context = context(dockerfile);
    let path = context.path().display().to_string();
    let flags = ["build", "-t", tag, "--platform", "linux/amd64", "--require", require, "-q", "--detach", &path];
    farm.run(&flags).trim().to_owned()
}

fn build(farm: &Farm, id: &str) -> Value {
    serde_json::from_str(&farm.run(&["builds", "show", id, "-o", "json"])).expect("JSON")
}

/// Returns the build once it is as it should be.
fn until(farm: &Farm, id: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let build = build(farm, id);
        if is_so(&build) {
            return build;
        }
        assert!(Instant::now() < deadline, "not so: {what}\n{build:#}\n{}", farm.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A step that holds 40 MiB of cache which no other build shares.
fn fat_dockerfile() -> String {
    format!(
        "FROM busybox AS fat\nRUN echo {} && dd if=/dev/urandom of=/fat bs=1M count=40 && sha256sum /fat >/sum\n\
         FROM scratch\nCOPY --from=fat /sum /sum\n",
        unique()
    )
}

/// All shapes with `KILN_TEST_LONG`, one otherwise: they differ in what the calls do, which the worker's own tests see.
fn shapes() -> &'static [&'static str] {
    const ALL: [&str; 4] = ["docker28", "docker20", "docker28-classic", "buildkit"];
    if std::env::var_os("KILN_TEST_LONG").is_some() { &ALL } else { &ALL[..1] }
}

#[test]
fn a_small_card_is_pruned_before_it_is_full_and_builds_go_on() {
    for shape in shapes() {
        let engine = OwnEngine::start(shape, Some("400M"));
        let farm = farm();
        let data = format!("--engine-data-dir={}", engine.data().display());
        let worker = Worker::join(&farm, "card", &engine.address, &[&data, "--disk-low=40%", "--disk-target=60%"]);
        // Twice as much as the card holds.
        for _ in 0..20 {
            let id = submit(&farm, &tag(), "name=card", &fat_dockerfile());
            let build = until(&farm, &id, "the build ends", |build| {
                build["finished_at"].is_object() || build["finished_at"].is_string()
            });
            assert_eq!(build["state"], "BUILD_STATE_SUCCEEDED", "{shape}: {build:#}\n{}", worker.log());
        }
        let shown = worker.shown(&farm);
        let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default();
        assert!(number(&shown["stats"]["pruned_bytes"]) > 100 * MIB, "{shape}: {shown:#}\n{}", worker.log());
        assert!(worker.log().contains("pruned the engine's build cache"), "{shape}: {}", worker.log());
        assert!(number(&shown["machine"]["disk_min_bytes"]) > 0, "{shape}: {shown:#}");
    }
}

#[test]
fn a_card_that_cannot_be_pruned_takes_no_build_until_there_is_room() {
    let engine = OwnEngine::start("docker28", Some("400M"));
    let farm = farm();
    let worker = Worker::join(&farm, "card", &engine.address, &["--disk-min=100m"]);
    let filler = engine.data().join("filler");
    fs::write(&filler, vec![1; usize::try_from(300 * MIB).expect("fits")]).expect("written");
    worker.until(&farm, "low disk is said", |shown| {
        shown["state_reason"].as_str().is_some_and(|reason| reason.contains("low disk"))
    });
    let id = submit(&farm, &tag(), "name=card", "FROM busybox\nRUN true\n");
    let waiting = build(&farm, &id);
    assert_eq!(waiting["tasks"][0]["state"], "TASK_STATE_WAITING", "{waiting:#}");
    assert!(farm.run(&["builds", "explain", &id]).contains("low disk"));
    fs::remove_file(filler).expect("removed");
    until(&farm, &id, "it is built once there is room", |build| build["state"] == "BUILD_STATE_SUCCEEDED");
}

#[test]
fn a_step_that_fills_the_card_is_tried_again_and_not_blamed_on_its_author() {
    let engine = OwnEngine::start("docker28", Some("200M"));
    let farm = farm();
    let _worker = Worker::join(&farm, "card", &engine.address, &[]);
    let id = submit(&farm, &tag(), "name=card", "FROM busybox\nRUN dd if=/dev/zero of=/fat bs=1M count=300\n");
    let build = until(&farm, &id, "it waits for another try", |build| {
        build["tasks"][0]["state"] == "TASK_STATE_BACKOFF" || build["tasks"][0]["state"] == "TASK_STATE_FAILED"
    });
    assert_eq!(build["tasks"][0]["state"], "TASK_STATE_BACKOFF", "{build:#}");
    let reason = build["tasks"][0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("the worker's disk was full"), "{build:#}");
    farm.run(&["builds", "cancel", &id]);
}

#[test]
fn an_engine_that_dies_mid_build_costs_a_retry_and_the_worker_no_restart() {
    for shape in ["docker28", "buildkit"] {
        if shape == "buildkit" && Bed.engine(EngineKind::Buildkit).is_none() {
            continue;
        }
        let engine = OwnEngine::start(shape, None);
        let farm = farm();
        let worker = Worker::join(&farm, "board", &engine.address, &[]);
        let tag = tag();
        // Long enough to be killed in, short enough for another try; the process beside it is one to look for.
        let sleep = format!("sleep {}", 40_000 + std::process::id() % 10_000);
        let dockerfile = format!("FROM busybox\nRUN echo {}; ({sleep} &); sleep 6\n", unique());
        let id = submit(&farm, &tag, "name=board", &dockerfile);
        until(&farm, &id, "the step runs", |_| runs(&sleep));
        engine.kill();
        let gone = worker.until(&farm, "no platform while the engine is away", |shown| {
            shown["platforms"].as_array().is_none_or(Vec::is_empty)
        });
        assert_eq!(gone["state"], "WORKER_STATE_READY", "the worker itself stays: {gone:#}");
        let waiting = until(&farm, &id, "the task waits for another try", |build| {
            build["tasks"][0]["state"] == "TASK_STATE_WAITING" || build["tasks"][0]["state"] == "TASK_STATE_BACKOFF"
        });
        assert!(!waiting["tasks"][0]["reason"].as_str().unwrap_or_default().is_empty(), "{waiting:#}");
        engine.again();
        worker.until(&farm, "platforms again", |shown| {
            shown["platforms"].as_array().is_some_and(|platforms| !platforms.is_empty())
        });
        let built = until(&farm, &id, "the build ends", |build| build["state"] == "BUILD_STATE_SUCCEEDED");
        assert!(built["tasks"][0]["attempts"].as_u64() > Some(1), "{built:#}");
        assert!(registry::exists(&tag), "{shape}");
    }
}

#[test]
fn the_first_sigterm_drains_and_the_second_stops() {
    let farm = farm();
    let engine = Bed.engine(EngineKind::Docker28).expect("docker 28");
    let mut worker = Worker::join(&farm, "board", &engine, &[]);
    let dockerfile = format!("FROM busybox\nRUN echo {} && sleep 4\n", unique());
    let id = submit(&farm, &tag(), "name=board", &dockerfile);
    until(&farm, &id, "the build runs", |build| build["tasks"][0]["state"] == "TASK_STATE_RUNNING");
    worker.signal("TERM");
    assert!(worker.wait().success(), "{}", worker.log());
    assert!(worker.log().contains("draining"), "{}", worker.log());
    until(&farm, &id, "what ran was finished first", |build| build["state"] == "BUILD_STATE_SUCCEEDED");

    worker.restart();
    worker.until(&farm, "back without a new token", |shown| shown["state"] == "WORKER_STATE_READY");
    let sleep = format!("sleep {}", 50_000 + std::process::id() % 10_000);
    let dockerfile = format!("FROM busybox\nRUN echo {} && {sleep}\n", unique());
    let id = submit(&farm, &tag(), "name=board", &dockerfile);
    until(&farm, &id, "the step runs", |_| runs(&sleep));
    worker.signal("TERM");
    worker.until(&farm, "it drains", |shown| shown["state"] == "WORKER_STATE_DRAINING");
    worker.signal("TERM");
    let told = Instant::now();
    worker.wait();
    assert!(told.elapsed() < Duration::from_secs(6), "{:?}", told.elapsed());
    process::until(Duration::from_secs(5), "no container is left", || !runs(&sleep));
    until(&farm, &id, "it is the farm's failure and tried again", |build| {
        build["tasks"][0]["state"] == "TASK_STATE_BACKOFF" || build["tasks"][0]["state"] == "TASK_STATE_WAITING"
    });
    farm.run(&["builds", "cancel", &id]);
}

#[test]
fn slots_change_without_a_restart() {
    let farm = farm();
    let engine = Bed.engine(EngineKind::Docker28).expect("docker 28");
    let worker = Worker::join(&farm, "board", &engine, &["--slots=1"]);
    let submit_one =
        || submit(&farm, &tag(), "name=board", &format!("FROM busybox\nRUN echo {} && sleep 3\n", unique()));
    let ids = [submit_one(), submit_one()];
    worker.until(&farm, "one at a time", |shown| shown["slots_used"] == 1);
    let running = |build: &Value| build["tasks"][0]["state"] == "TASK_STATE_RUNNING";
    assert!(ids.iter().filter(|id| running(&build(&farm, id))).count() <= 1);
    farm.run(&["workers", "label", "board", "--slots", "2"]);
    worker.until(&farm, "both at once", |shown| shown["slots"] == 2 && shown["slots_used"] == 2);
    for id in &ids {
        until(&farm, id, "built", |build| build["state"] == "BUILD_STATE_SUCCEEDED");
    }
    assert!(!worker.log().contains("slots of this worker are taken"), "{}", worker.log());
}

#[test]
fn a_removed_worker_ends_at_once_and_is_let_in_with_a_new_token_alone() {
    let farm = farm();
    let engine = Bed.engine(EngineKind::Docker28).expect("docker 28");
    let mut worker = Worker::join(&farm, "board", &engine, &[]);
    let mode = fs::metadata(worker.data().join("identity.json")).expect("identity");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    farm.run(&["workers", "rm", "board"]);
    let told = Instant::now();
    let ended = worker.wait();
    assert_eq!(ended.code(), Some(4), "{}", worker.log());
    assert!(told.elapsed() < Duration::from_secs(30), "{:?}", told.elapsed());
    assert!(worker.log().contains("kiln workers token create"), "{}", worker.log());
    worker.restart();
    assert_eq!(worker.wait().code(), Some(4), "its certificate is worth nothing: {}", worker.log());
}
