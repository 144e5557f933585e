//! A program of another architecture in an image moves no tag.

use harness::registry;

use crate::setting::{Context, docker28, repository, says};

#[test]
fn an_amd64_program_in_an_arm64_image_is_named_and_can_be_allowed() {
    let farm = docker28();
    // This test's own program: a real one of a real toolchain.
    let program = std::fs::read(std::env::current_exe().expect("own path")).expect("own program");
    let program = &program[..program.len().min(200_000)];
    let context = Context::new("FROM busybox\nRUN true\nCOPY tool /opt/bin/tool\n").with("tool", program);
    let tag = format!("{}:1", repository("foreign"));
    let path = context.path();
    let build = ["build", "-t", &tag, "--platform", "linux/arm64", "--progress", "plain", &path];
    let message = farm.fail(1, &build);
    says(&message, &["linux/arm64", "`/opt/bin/tool` is a program for linux/amd64", "layer sha256:", "--verify-allow"]);
    assert!(!registry::exists(&tag));

    farm.run(&[&build[..], &["--verify-allow", "opt/bin/*"]].concat());
    assert!(registry::exists(&tag));
    let unseen = format!("{}:1", repository("unseen"));
    farm.run(&["build", "-t", &unseen, "--platform", "linux/arm64", "--verify", "off", "--progress", "plain", &path]);
    assert!(registry::exists(&unseen));
}

#[test]
fn arm_v7_code_in_an_arm_v6_image_is_an_error() {
    let farm = docker28();
    let dockerfile =
        "FROM --platform=linux/arm/v7 busybox AS newer\nFROM busybox\nCOPY --from=newer /bin/busybox /opt/newer\n";
    let context = Context::new(dockerfile);
    let tag = format!("{}:1", repository("v7-in-v6"));
    let message =
        farm.fail(1, &["build", "-t", &tag, "--platform", "linux/arm/v6", "--progress", "plain", &context.path()]);
    says(&message, &["linux/arm/v6", "`/opt/newer` is arm v7 code", "layer sha256:"]);
    assert!(!registry::exists(&tag));
    farm.run(&["build", "-t", &tag, "--platform", "linux/arm/v7", "--progress", "plain", &context.path()]);
}
