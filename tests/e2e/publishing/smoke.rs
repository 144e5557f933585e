//! The finished image is run on every platform before a tag moves.

use harness::{Farm, bed::EngineKind, registry};

use crate::setting::{Context, docker28, farm, repository, says};

fn hello() -> String {
    harness::repository().join("examples/hello").display().to_string()
}

#[test]
fn every_leg_of_hello_greets_before_the_tag_moves() {
    let farm = docker28();
    let tag = format!("{}:1", repository("greets"));
    let platforms = "linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6";
    let smoke = ["--smoke", "/usr/local/bin/hello", "--expect", "Hello, {goarch}!"];
    let build = ["build", "-t", &tag, "--platform", platforms, "--progress", "plain"];
    farm.run(&[&build[..], &smoke, &[&hello()]].concat());
    assert_eq!(registry::platforms(&registry::inspect_raw(&tag)).len(), 4);
}

#[test]
fn a_wrong_greeting_moves_no_tag_on_docker_28() {
    refuses_a_wrong_greeting(&docker28());
}

#[test]
fn a_wrong_greeting_moves_no_tag_on_docker_20() {
    refuses_a_wrong_greeting(&farm(EngineKind::Docker20).expect("docker 20"));
}

#[test]
fn a_wrong_greeting_moves_no_tag_on_buildkitd() {
    if let Some(farm) = farm(EngineKind::Buildkit) {
        refuses_a_wrong_greeting(&farm);
    }
}

fn refuses_a_wrong_greeting(farm: &Farm) {
    let context = Context::new("FROM busybox\nENV WORD=marker\nUSER 1234\nWORKDIR /tmp\n");
    let path = context.path();
    let tag = format!("{}:1", repository("smoke"));
    let build = |command: &'static str, expected: &'static str| {
        [
            "build",
            "-t",
            &tag,
            "--platform",
            "linux/amd64",
            "--progress",
            "plain",
            "--smoke",
            command,
            "--expect",
            expected,
            &path,
        ]
        .map(str::to_owned)
    };
    let fails = |command, expected| {
        let arguments = build(command, expected);
        farm.fail(1, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let told = fails("sh -c 'echo $WORD from $(id -u) in $(pwd)'", "something else");
    says(&told, &["printed `marker from 1234 in /tmp`", "not `something else`", "[linux/amd64 smoke]"]);
    says(&fails("sh -c 'exit 7'", "x"), &["the smoke run `sh -c exit 7` failed", "exit code: 7"]);
    says(&fails("/no/such/program", "x"), &["/no/such/program"]);
    assert!(!registry::exists(&tag));
    // Its own loopback is all the network there is.
    let arguments = build("sh -c 'echo interfaces: $(grep -c : /proc/net/dev)'", "interfaces: 1");
    farm.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(registry::exists(&tag));
}
