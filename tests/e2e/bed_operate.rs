//! What an operator does with workers, and a user with a build that is no longer wanted, through the command line on real
//! engines: cordon, drain, label, slots, remove, shut down, cancel.

use std::time::{Duration, Instant};

use harness::{Bed, Cluster, bed::EngineKind, calls::Calls, process};
use kiln_proto::{
    convert::timestamp_from_wire,
    v1::{Build, BuildState, TaskState, WorkerState},
};

/// Two workers, `a` and `b`, each with its name as the label `host`.
struct Farm {
    cluster: Cluster,
    calls: Calls,
    stamp: String,
}

impl Farm {
    async fn start(name: &str) -> Self {
        let docker = Bed.engine(EngineKind::Docker28).expect("docker 28");
        let mut cluster = Cluster::start(None);
        for host in ["a", "b"] {
            cluster.join(host, &docker, &["--slots", "4", "--label", &format!("host={host}")]);
        }
        let calls = cluster.calls();
        for host in ["a", "b"] {
            calls.worker_until(host, "ready", |worker| worker.state() == WorkerState::Ready).await;
        }
        Self { cluster, calls, stamp: format!("{name}-{:08x}", std::process::id()) }
    }

    fn kiln(&self, arguments: &[&str]) -> String {
        self.cluster.run(arguments)
    }

    /// A build for amd64 whose step says `begun-STAMP-NAME` and then runs the command.
    fn submit(&self, name: &str, command: &str, more: &[&str]) -> String {
        let stamp = &self.stamp;
        let dockerfile = format!("FROM busybox\nRUN echo begun-{stamp}-{name} && {command}\n");
        let tag = format!("{}/e2e/operate-{stamp}:{name}", Bed.registry());
        let more: Vec<&str> = ["--platform", "linux/amd64"].into_iter().chain(more.iter().copied()).collect();
        self.cluster.submit(&dockerfile, &tag, &more)
    }

    async fn begun(&self, id: &str, name: &str) {
        self.calls.output_until(id, [format!("begun-{}-{name}", self.stamp)]).await;
    }

    async fn succeeded(&self, id: &str) -> Build {
        let build = self.calls.build_until(id, "final", |build| build.finished_at.is_some()).await;
        assert_eq!(build.state(), BuildState::Succeeded, "{build:#?}");
        build
    }

    /// Processes of this farm's build steps, in whatever container.
    fn steps(&self) -> Vec<u32> {
        process::that_say(&format!("begun-{}", self.stamp))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_stops_every_leg_within_a_second_and_leaves_no_container() {
    let farm = Farm::start("cancel").await;
    let platforms = ["linux/amd64", "linux/arm64", "linux/arm/v7"];
    let stamp = &farm.stamp;
    let dockerfile =
        format!("FROM busybox\nARG TARGETPLATFORM\nRUN echo begun-{stamp}-$TARGETPLATFORM && sleep 600 && true\n");
    let tag = format!("{}/e2e/operate-{stamp}:cancelled", Bed.registry());
    let all = platforms.join(",");
    let id = farm.cluster.submit(&dockerfile, &tag, &["--platform", &all, "--emulation", "now"]);
    farm.calls.output_until(&id, platforms.map(|platform| format!("begun-{stamp}-{platform}"))).await;
    assert!(farm.steps().len() >= 3, "all three run");
    let told = Instant::now();
    farm.kiln(&["builds", "cancel", &id]);
    while !farm.steps().is_empty() {
        assert!(told.elapsed() < Duration::from_secs(10), "a step still runs {:?} after the cancel", told.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = told.elapsed();
    eprintln!("three legs stopped {took:?} after the cancel");
    assert!(took < Duration::from_secs(1), "{took:?}");
    let build = farm.calls.build_until(&id, "final", |build| build.finished_at.is_some()).await;
    assert_eq!(build.state(), BuildState::Cancelled);
    assert!(!harness::registry::exists(&tag));
    // The slots are free again.
    let id = farm.submit("after", "true", &[]);
    farm.succeeded(&id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cordon_drain_labels_and_slots_do_what_they_say() {
    let farm = Farm::start("operate").await;
    let on_a = ["--require", "host=a"];

    farm.kiln(&["workers", "cordon", "a", "--reason", "new fan"]);
    let waiting = farm.submit("cordoned", "true", &on_a);
    let explained = farm.kiln(&["builds", "explain", &waiting]);
    assert!(explained.contains("new fan"), "{explained}");
    farm.kiln(&["workers", "uncordon", "a"]);
    assert_eq!(farm.succeeded(&waiting).await.tasks[0].worker_name, "a");

    let last = farm.submit("last", "sleep 3", &on_a);
    farm.begun(&last, "last").await;
    let told = farm.kiln(&["workers", "drain", "a", "--wait", "--reason", "moving house"]);
    assert!(told.contains("drained"), "{told}");
    assert_eq!(
        farm.calls.clone().builds.get(request(&last)).await.expect("known").into_inner().tasks[0].state(),
        TaskState::Succeeded
    );
    let waiting = farm.submit("drained", "true", &on_a);
    let explained = farm.kiln(&["builds", "explain", &waiting]);
    assert!(explained.contains("moving house"), "{explained}");
    farm.kiln(&["workers", "uncordon", "a"]);
    farm.succeeded(&waiting).await;

    farm.kiln(&["workers", "label", "b", "role=gpu", "--slots", "1"]);
    let on_gpu = ["--require", "role=gpu"];
    let both = [farm.submit("one", "sleep 1", &on_gpu), farm.submit("two", "sleep 1", &on_gpu)];
    let mut spans = Vec::new();
    for id in &both {
        let task = farm.succeeded(id).await.tasks.remove(0);
        assert_eq!(task.worker_name, "b");
        spans.push((task.started_at.expect("started"), task.finished_at.expect("finished")));
    }
    spans.sort_by_key(|(start, _)| timestamp_from_wire(start));
    assert!(timestamp_from_wire(&spans[1].0) >= timestamp_from_wire(&spans[0].1), "one slot, one task: {spans:?}");
    farm.kiln(&["workers", "label", "b", "role-"]);
    let refused = farm.cluster.try_submit("FROM busybox\n", "r.example/a:1", &["--require", "role=gpu"]);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && message.contains("role=gpu"), "{message}");

    let trail = farm.kiln(&["audit", "--action", "worker", "-o", "jsonl", "--outcome", "done"]);
    for action in ["worker.join", "worker.cordon", "worker.uncordon", "worker.drain", "worker.update"] {
        assert!(trail.contains(&format!("\"{action}\"")), "{action} in {trail}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_worker_stops_at_once_and_a_terminated_one_finishes_first() {
    let farm = Farm::start("leave").await;
    farm.kiln(&["workers", "cordon", "b"]);
    let moved = farm.submit("moved", "sleep 3", &[]);
    farm.begun(&moved, "moved").await;
    farm.kiln(&["workers", "uncordon", "b"]);
    farm.kiln(&["workers", "rm", "a"]);
    let build = farm.succeeded(&moved).await;
    assert_eq!((build.tasks[0].attempts, build.tasks[0].worker_name.as_str()), (2, "b"));
    let status = farm.cluster.worker(0, process::Process::wait);
    assert!(!status.success(), "it says that it was removed");
    assert!(farm.cluster.worker(0, process::Process::log).contains("removed from the farm"));
    assert!(!farm.kiln(&["workers", "ls"]).contains("host=a"));

    let last = farm.submit("last", "sleep 3", &[]);
    farm.begun(&last, "last").await;
    let status = farm.cluster.worker(1, process::Process::stop);
    assert!(status.success(), "{status}");
    let build = farm.succeeded(&last).await;
    assert_eq!(build.tasks[0].attempts, 1);
    assert!(farm.steps().is_empty());
}

fn request(id: &str) -> kiln_proto::v1::GetBuildRequest {
    kiln_proto::v1::GetBuildRequest { id: id.to_owned() }
}
