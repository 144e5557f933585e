//! Tags move only from where the build found them.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use harness::{Farm, registry};
use serde_json::Value;

use crate::setting::{Context, copy, docker28, repository, says};

/// Answers 404 until it is opened; a leg that wants its file fails until then.
struct Gate {
    address: String,
    is_open: Arc<AtomicBool>,
}

impl Gate {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address").to_string();
        let is_open = Arc::new(AtomicBool::new(false));
        let state = is_open.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = stream.read(&mut [0; 4096]);
                let status = if state.load(Ordering::SeqCst) { "200 OK" } else { "404 Not Found" };
                let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
            }
        });
        Self { address, is_open }
    }

    /// For arm64 alone the build needs the gate's file.
    fn context(&self) -> Context {
        Context::new(&format!(
            "FROM busybox AS base-amd64\nFROM busybox AS base-arm64\nADD http://{}/file /file\nFROM base-${{TARGETARCH}}\nCOPY Dockerfile /\n",
            self.address
        ))
    }
}

/// A build that lacks its optional arm64 leg, and its id.
fn incomplete(farm: &Farm, gate: &Gate, tag: &str) -> String {
    let context = gate.context();
    let platforms = ["--platform", "linux/amd64", "--optional-platform", "linux/arm64", "--progress", "plain"];
    farm.run(&[&["build", "-t", tag][..], &platforms, &[&context.path()]].concat());
    let listing: Value = serde_json::from_str(&farm.run(&["builds", "ls", "-o", "json"])).expect("JSON");
    let newest = &listing["builds"][0];
    assert!(newest["state"].as_str().expect("a state").to_lowercase().contains("incomplete"), "{newest}");
    newest["id"].as_str().expect("an id").to_owned()
}

#[test]
fn a_backfill_adds_the_missing_platform_to_the_same_tag() {
    let (farm, gate) = (docker28(), Gate::new());
    let tag = format!("{}:1", repository("backfill"));
    let build = incomplete(&farm, &gate, &tag);
    assert_eq!(registry::platforms(&registry::inspect_raw(&tag)), ["linux/amd64"]);
    gate.is_open.store(true, Ordering::SeqCst);
    farm.run(&["builds", "backfill", &build]);
    farm.run(&["builds", "watch", &build]);
    assert_eq!(registry::platforms(&registry::inspect_raw(&tag)), ["linux/amd64", "linux/arm64"]);
}

#[test]
fn a_backfill_leaves_a_tag_alone_that_someone_else_moved() {
    let (farm, gate) = (docker28(), Gate::new());
    let repository = repository("moved");
    let tag = format!("{repository}:1");
    let build = incomplete(&farm, &gate, &tag);
    let other = Context::new("FROM busybox\nRUN echo newer > /newer\n");
    let newer = format!("{repository}:newer");
    farm.run(&["build", "-t", &newer, "--platform", "linux/amd64", "--progress", "plain", &other.path()]);
    copy(&newer, &tag);
    gate.is_open.store(true, Ordering::SeqCst);
    farm.run(&["builds", "backfill", &build]);
    let message = farm.fail(1, &["builds", "watch", &build]);
    says(&message, &["not what this build left there", "someone else moved it"]);
    assert_eq!(registry::inspect_raw(&tag), registry::inspect_raw(&newer));
}

#[test]
fn if_unchanged_leaves_a_tag_alone_that_moved_while_the_build_ran() {
    let farm = docker28();
    let repository = repository("unchanged");
    let (tag, newer) = (format!("{repository}:1"), format!("{repository}:newer"));
    let first = Context::new("FROM busybox\nRUN echo first > /first\n");
    let second = Context::new("FROM busybox\nRUN echo second > /second\n");
    let build = |tag: &str, context: &Context, more: &[&str]| {
        let flags = ["build", "-t", tag, "--platform", "linux/amd64", "--progress", "plain"];
        [&flags[..], more, &[&context.path()]].concat().iter().map(|text| (*text).to_owned()).collect::<Vec<String>>()
    };
    let run = |arguments: Vec<String>| farm.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    run(build(&tag, &first, &[]));
    run(build(&newer, &second, &[]));
    run(build(&tag, &first, &["--if-unchanged"]));

    let slow = Context::new("FROM busybox\nRUN sleep 3 && echo third > /third\n");
    let id = run(build(&tag, &slow, &["--if-unchanged", "--detach", "--no-cache"]));
    copy(&newer, &tag);
    let message = farm.fail(1, &["builds", "watch", id.trim()]);
    says(&message, &["not what it named when the build began", "no tag was moved"]);
    assert_eq!(registry::inspect_raw(&tag), registry::inspect_raw(&newer));
}
