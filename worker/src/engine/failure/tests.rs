use base64::{Engine as _, prelude::BASE64_STANDARD};
use bollard_buildkit_proto::google::{protobuf::Any, rpc};
use prost::Message;

use super::*;

fn unknown(message: &str) -> Status {
    Status::new(Code::Unknown, message)
}

/// As BuildKit sends it: typed details, in JSON, around the message.
fn at_line(message: &str, line: u32) -> Status {
    let dockerfile = BASE64_STANDARD.encode("FROM busybox\n\nRUN make \\\n    all\n");
    let source = format!(
        r#"{{"info":{{"filename":"Dockerfile","data":"{dockerfile}"}},"ranges":[{{"start":{{"line":{line}}},"end":{{"line":{}}}}}]}}"#,
        line + 1
    );
    let detail = |kind: &str, json: &str| Any {
        type_url: format!("github.com/moby/buildkit/errdefs.{kind}+json"),
        value: json.as_bytes().to_vec(),
    };
    let details = vec![detail("Vertex", r#"{"digest":"sha256:00"}"#), detail("Source", &source)];
    let status = rpc::Status { code: 2, message: message.to_owned(), details };
    Status::with_details(Code::Unknown, message, status.encode_to_vec().into())
}

fn is_users(status: &Status) -> bool {
    matches!(of_solve(status, None), BuildError::Build(_))
}

#[test]
fn the_failures_of_users_of_registries_and_of_the_farm_are_told_apart() {
    for message in [
        "failed to solve: process \"/bin/sh -c curl x || exit 3\" did not complete successfully: exit code: 3",
        "executor failed running [/bin/sh -c echo no space left on device; false]: exit code: 1",
        "dockerfile parse error on line 2: unknown instruction: RUNN",
        "failed to compute cache key: \"/nowhere\" not found: not found",
        "docker.io/library/busybox:nope: not found",
        "pull access denied, repository does not exist or may require authorization",
        "failed to authorize: failed to fetch oauth token: unexpected status: 401 Unauthorized",
        "unexpected status from HEAD request to https://r.example/v2/app/blobs/x: 403 Forbidden",
        "target stage \"x\" could not be found",
        "no match for platform in manifest sha256:00: not found",
    ] {
        assert!(is_users(&unknown(message)), "{message}");
    }
    for message in [
        "failed to do request: Head \"https://r.example/v2/a/manifests/x\": dial tcp 10.0.0.1:443: connect: connection refused",
        "failed to push r.example/a: dial tcp: lookup r.example: no such host",
        "unexpected status from PUT request to http://r/v2/x: 429 Too Many Requests",
        "failed to push r.example/a: something that nobody has seen yet",
    ] {
        let error = of_solve(&unknown(message), None);
        assert!(matches!(&error, BuildError::Registry(told) if told.contains("that it runs")), "{message}: {error:?}");
    }
    for message in [
        "write /var/lib/docker/x: no space left on device",
        "failed to push r.example/a: write /var/lib/containerd/x: no space left on device",
        "dial unix /run/buildkit/buildkitd.sock: connect: connection refused",
        "net/http: TLS handshake timeout",
        "no active session for x: context deadline exceeded",
        "something that nobody has seen yet",
    ] {
        let error = of_solve(&unknown(message), None);
        assert!(matches!(error, BuildError::Infrastructure(_)), "{message}: {error:?}");
    }
    assert!(!is_users(&Status::unavailable("not found")), "the code goes before the words");
}

#[test]
fn the_message_names_the_line_and_its_command() {
    let error = of_solve(&at_line("failed to solve: exit code: 2", 3), Some("[2/2] RUN make all"));
    assert_eq!(error.to_string(), "Dockerfile:3: RUN make all: exit code: 2");
    assert!(is_users(&at_line("something unheard of", 3)), "what points at a line is about that line");
}

#[test]
fn without_a_line_the_step_is_named() {
    let error = of_solve(&unknown("executor failed running [make]: exit code: 2"), Some("[2/2] RUN make"));
    assert_eq!(error.to_string(), "[2/2] RUN make: executor failed running [make]: exit code: 2");
}
