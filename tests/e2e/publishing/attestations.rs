//! Attestations of the legs survive the merge, and say who built them.

use std::process::Command;

use harness::{Bed, bed::EngineKind, farm::text, registry};
use serde_json::Value;

use crate::setting::{Context, docker28, repository};

/// What `docker buildx imagetools inspect` reads.
fn provenance(reference: &str) -> Value {
    let buildx = std::env::var("KILN_BED_BUILDX").expect("KILN_BED_BUILDX");
    let engine = Bed.engine(EngineKind::Docker28).expect("docker 28");
    let output = Command::new(buildx)
        .args(["imagetools", "inspect", reference, "--format", "{{json .Provenance}}"])
        .env("DOCKER_HOST", engine)
        .output()
        .expect("buildx runs");
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn provenance_of_every_leg_is_read_by_buildx_and_names_worker_grade_and_attempt() {
    let farm = docker28();
    let tag = format!("{}:1", repository("provenance"));
    let context = Context::new("FROM busybox\nCOPY Dockerfile /\n");
    let platforms = ["--platform", "linux/amd64,linux/arm64", "--provenance", "mode=max", "--progress", "plain"];
    farm.run(&[&["build", "-t", &tag][..], &platforms, &[&context.path()]].concat());
    let index = registry::inspect_raw(&tag);
    assert_eq!(registry::platforms(&index), ["linux/amd64", "linux/arm64", "unknown/unknown", "unknown/unknown"]);
    let read = provenance(&tag);
    for (platform, grade) in [("linux/amd64", "native"), ("linux/arm64", "emulated")] {
        let builder = read[platform]["SLSA"]["builder"]["id"].as_str().unwrap_or_else(|| panic!("{read}"));
        assert!(builder.starts_with("kiln:build/") && builder.contains("/attempt/"), "{builder}");
        assert!(builder.contains("?worker=") && builder.ends_with(&format!("&grade={grade}")), "{builder}");
    }
}

#[test]
fn without_provenance_the_index_has_the_images_alone() {
    let farm = docker28();
    let tag = format!("{}:1", repository("no-provenance"));
    let context = Context::new("FROM busybox\nCOPY Dockerfile /\n");
    let platforms = ["--platform", "linux/amd64,linux/arm64", "--provenance=false", "--progress", "plain"];
    farm.run(&[&["build", "-t", &tag][..], &platforms, &[&context.path()]].concat());
    assert_eq!(registry::platforms(&registry::inspect_raw(&tag)), ["linux/amd64", "linux/arm64"]);
}
