//! Attestations of the legs survive the merge, and say who built them.

use std::process::Command;

use harness::{Bed, bed::EngineKind, farm::text, registry};
use serde_json::Value;

use crate::setting::{Context, docker28, repository};

/// What `docker buildx imagetools inspect` reads: the provenance, or the SBOM.
fn attested(reference: &str, what: &str) -> Value {
    let buildx = std::env::var("KILN_BED_BUILDX").expect("KILN_BED_BUILDX");
    let engine = Bed.engine(EngineKind::Docker28).expect("docker 28");
    let output = Command::new(buildx)
        .args(["imagetools", "inspect", reference, "--format", &format!("{{{{json .{what}}}}}")])
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
    let read = attested(&tag, "Provenance");
    for (platform, grade) in [("linux/amd64", "native"), ("linux/arm64", "emulated")] {
        let builder = read[platform]["SLSA"]["builder"]["id"].as_str().unwrap_or_else(|| panic!("{read}"));
        assert!(builder.starts_with("kiln:build/") && builder.contains("/attempt/"), "{builder}");
        assert!(builder.contains("?worker=") && builder.ends_with(&format!("&grade={grade}")), "{builder}");
    }
}

/// A scanner as BuildKit runs them (BuildKit, docs/attestations/sbom-protocol.md). The usual one is on Docker Hub; this
/// stand-in lists one kind of file.
const SCANNER: &str = r#"set -e
name=$(basename "$BUILDKIT_SCAN_SOURCE")
files=$(cd "$BUILDKIT_SCAN_SOURCE" && find . -name '*.marker' | sed 's/.*/{"fileName":"&"}/' | tr '\n' ',' | sed 's/,$//')
cat > "$BUILDKIT_SCAN_DESTINATION/$name.spdx.json" <<END
{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document",
 "predicate":{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT","name":"$name","files":[$files]}}
END
"#;

#[test]
fn the_sbom_of_every_leg_is_kept_and_read_by_buildx() {
    let farm = docker28();
    let repository = repository("sbom");
    let (scanner, tag) = (format!("{repository}:scanner"), format!("{repository}:1"));
    let context = Context::new("FROM busybox\nCOPY scan /scan\nENTRYPOINT [\"/bin/sh\", \"/scan\"]\n");
    let context = context.with("scan", SCANNER.as_bytes());
    farm.run(&["build", "-t", &scanner, "--platform", "linux/amd64", "--progress", "plain", &context.path()]);
    let context = Context::new("FROM busybox\nARG TARGETARCH\nRUN touch /$TARGETARCH.marker\n");
    let (platforms, sbom) = (["--platform", "linux/amd64,linux/arm64"], format!("generator={scanner}"));
    let flags = ["--sbom", &sbom, "--progress", "plain", &context.path()];
    farm.run(&[&["build", "-t", &tag], &platforms[..], &flags].concat());
    let read = attested(&tag, "SBOM");
    for architecture in ["amd64", "arm64"] {
        let document = &read[format!("linux/{architecture}")]["SPDX"];
        assert_eq!(document["spdxVersion"], "SPDX-2.3", "{read}");
        assert_eq!(document["files"][0]["fileName"], format!("./{architecture}.marker"), "{read}");
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
