//! The main job on every engine of the bed: `kiln build` of `examples/hello` for four platforms gives one index, and
//! each child runs and greets.

use std::process::Command;

use harness::{Bed, Farm, bed::EngineKind, registry, repository};

const PLATFORMS: &str = "linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6";

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn docker_20_publishes_hello_for_four_platforms() {
    publishes_hello(EngineKind::Docker20, "e2e/hello-docker20");
}

#[test]
fn docker_28_publishes_hello_for_four_platforms() {
    publishes_hello(EngineKind::Docker28, "e2e/hello-docker28");
}

#[test]
fn buildkitd_publishes_hello_for_four_platforms() {
    if Bed.engine(EngineKind::Buildkit).is_none() {
        // The bed says at its start which engines this machine cannot have.
        return;
    }
    publishes_hello(EngineKind::Buildkit, "e2e/hello-buildkit");
}

fn publishes_hello(kind: EngineKind, name: &str) {
    let farm = Farm::start(&Bed.engine(kind).expect("an engine of the bed"));
    let repository = format!("{}/{name}", Bed.registry());
    let (latest, version) = (format!("{repository}:latest"), format!("{repository}:1.0"));
    let hello = harness::repository().join("examples/hello").display().to_string();
    let metadata = farm.directory().join("metadata.json");
    let metadata_path = metadata.display().to_string();
    farm.run(&[
        "build",
        "-t",
        &latest,
        "-t",
        &version,
        "--platform",
        PLATFORMS,
        "--metadata-file",
        &metadata_path,
        "--progress",
        "plain",
        &hello,
    ]);

    let index = registry::inspect_raw(&latest);
    assert_eq!(index["mediaType"], OCI_INDEX);
    assert_eq!(registry::platforms(&index), PLATFORMS.split(',').collect::<Vec<_>>());
    assert_eq!(index, registry::inspect_raw(&version), "both tags name the same index");
    assert_eq!(registry::tags(&repository), ["1.0", "latest"], "no tag but the requested ones");

    let metadata: serde_json::Value =
        serde_json::from_slice(&std::fs::read(metadata).expect("metadata file")).expect("JSON");
    let digest = metadata["containerimage.digest"].as_str().expect("a digest");
    assert_eq!(index, registry::inspect_raw(&format!("{repository}@{digest}")));

    for entry in index["manifests"].as_array().expect("manifests") {
        assert_eq!(entry["mediaType"], OCI_MANIFEST, "media types are not mixed");
        let child = format!("{repository}@{}", entry["digest"].as_str().expect("digest"));
        let config = registry::config(&child);
        for key in ["os", "architecture", "variant"] {
            assert_eq!(config[key], entry["platform"][key], "{key} of {child}");
        }
        let architecture = entry["platform"]["architecture"].as_str().expect("architecture");
        assert_eq!(run(&child, &platform_of(entry)), format!("Hello, {architecture}!\n"));
    }
}

fn platform_of(entry: &serde_json::Value) -> String {
    let index = serde_json::json!({ "manifests": [entry] });
    registry::platforms(&index).remove(0)
}

/// Pulls and runs a child on the bed's newer Docker.
fn run(reference: &str, platform: &str) -> String {
    let engine = Bed.engine(EngineKind::Docker28).expect("docker 28");
    let output = Command::new(Bed.docker_cli())
        .args(["-H", &engine, "run", "--rm", "--init", "--network", "none", "--pull", "always", "-q"])
        .args(["--platform", platform, reference])
        .output()
        .expect("docker runs");
    assert!(output.status.success(), "docker run {reference}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn one_platform_gives_a_plain_manifest_under_tags_in_two_repositories() {
    let farm = Farm::start(&Bed.engine(EngineKind::Docker28).expect("docker 28"));
    let first = format!("{}/e2e/plain-a:1", Bed.registry());
    let second = format!("{}/e2e/plain-b:2", Bed.registry());
    let hello = repository().join("examples/hello").display().to_string();
    farm.run(&["build", "-t", &first, "-t", &second, "--platform", "linux/amd64", "--progress", "quiet", &hello]);
    assert_eq!(registry::inspect_raw(&first)["mediaType"], OCI_MANIFEST);
    assert_eq!(registry::inspect_raw(&first), registry::inspect_raw(&second));
}

/// An engine asks for so many files at once that HTTP/2 took it for a flood and closed the session.
#[test]
fn a_context_of_many_small_files_arrives_whole() {
    let farm = Farm::start(&Bed.engine(EngineKind::Docker28).expect("docker 28"));
    let context = tempfile::tempdir().expect("temporary folder");
    for index in 0..25_000 {
        let folder = context.path().join(format!("d{}", index / 500));
        if index % 500 == 0 {
            std::fs::create_dir(&folder).expect("folder");
        }
        std::fs::write(folder.join(index.to_string()), index.to_string()).expect("file");
    }
    let dockerfile = "FROM busybox\nRUN --mount=type=bind,target=/in test $(find /in/d* -type f | wc -l) = 25000\n";
    std::fs::write(context.path().join("Dockerfile"), dockerfile).expect("Dockerfile");
    let tag = format!("{}/e2e/many-files:1", Bed.registry());
    let path = context.path().display().to_string();
    farm.run(&["build", "-t", &tag, "--platform", "linux/amd64", "--progress", "quiet", &path]);
    assert!(registry::exists(&tag));
}
