//! What is published is signed so that the real cosign, of both generations that Debian has, verifies it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use harness::{Bed, Farm, bed::EngineKind, farm::text, registry};
use serde_json::Value;

use crate::setting::{Context, repository, says};

/// A key pair as an operator makes one.
struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    fn generate() -> Self {
        let keys = Self { folder: tempfile::tempdir().expect("a folder") };
        let generate = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"];
        openssl(&generate, &keys.private());
        fs::set_permissions(keys.private(), fs::Permissions::from_mode(0o600)).expect("a mode");
        let private = keys.private().display().to_string();
        openssl(&["pkey", "-in", &private, "-pubout", "-out"], &keys.public());
        keys
    }

    fn private(&self) -> PathBuf {
        self.folder.path().join("signing.pem")
    }

    fn public(&self) -> PathBuf {
        self.folder.path().join("signing.pub")
    }

    fn farm(&self) -> Farm {
        let engine = Bed.engine(EngineKind::Docker28).expect("docker 28");
        Farm::start_with(&engine, &["--signing-key", &self.private().display().to_string()])
    }

    /// `cosign verify --key` with that program and these flags.
    fn verify(&self, cosign: &str, flags: &[&str], reference: &str) -> Output {
        let mut command = Command::new(std::env::var(cosign).unwrap_or_else(|_| panic!("{cosign} is not set")));
        command.args(["verify", "--insecure-ignore-tlog=true", "--key"]).arg(self.public()).args(flags).arg(reference);
        if !flags.is_empty() {
            command.env("COSIGN_EXPERIMENTAL", "1");
        }
        // Its caches and logins are not the machine's.
        command.env("HOME", self.folder.path()).output().expect("cosign runs")
    }
}

fn openssl(arguments: &[&str], out: &Path) {
    let output = Command::new("openssl").args(arguments).arg(out).output().expect("openssl runs");
    assert!(output.status.success(), "{}", text(&output));
}

fn build(farm: &Farm, tags: &[&str], more: &[&str]) {
    let context = Context::new("FROM busybox\nCOPY Dockerfile /\n");
    let path = context.path();
    let tags: Vec<&str> = tags.iter().flat_map(|tag| ["-t", tag]).collect();
    let flags = ["--platform", "linux/amd64,linux/arm64", "--progress", "plain", &path];
    farm.run(&[&["build"], &tags[..], more, &flags].concat());
}

/// The digests of an index's entries.
fn children(reference: &str) -> Vec<String> {
    let index = registry::inspect_raw(reference);
    let digest = |entry: &Value| entry["digest"].as_str().expect("a digest").to_owned();
    index["manifests"].as_array().expect("an index").iter().map(digest).collect()
}

#[test]
fn cosign_verifies_the_index_and_every_child_in_every_repository() {
    let keys = Keys::generate();
    let farm = keys.farm();
    let (one, two) = (repository("signed"), repository("signed-too"));
    build(&farm, &[&format!("{one}:1"), &format!("{two}:1")], &["--provenance", "mode=max"]);
    let digests = children(&format!("{one}:1"));
    assert_eq!(digests.len(), 4, "two images with an attestation each");
    for repository in [&one, &two] {
        let index = format!("{repository}:1");
        let all = digests.iter().map(|digest| format!("{repository}@{digest}")).chain([index]);
        for reference in all {
            // By cosign's own tag, and as a referrer.
            for flags in [&[][..], &["--experimental-oci11"]] {
                for cosign in ["KILN_BED_COSIGN", "KILN_BED_COSIGN3"] {
                    let output = keys.verify(cosign, flags, &reference);
                    assert!(output.status.success(), "{cosign} {flags:?} {reference}: {}", text(&output));
                    says(&text(&output), &[repository, "docker-manifest-digest"]);
                }
            }
        }
    }
    let other = Keys::generate();
    let output = other.verify("KILN_BED_COSIGN", &[], &format!("{one}:1"));
    assert!(!output.status.success(), "another key verifies nothing");
}

#[test]
fn a_version_that_is_removed_takes_its_signatures_with_it() {
    let keys = Keys::generate();
    let farm = keys.farm();
    let repository = repository("signed-and-gone");
    let tag = format!("{repository}:1");
    build(&farm, &[&tag], &[]);
    assert_eq!(registry::tags(&repository).len(), 1 + 3 * 2, "of an index and two images: a signature and a list each");
    farm.run(&["images", "rm", &tag]);
    assert_eq!(registry::tags(&repository), [""; 0]);
}

#[test]
fn oras_discovers_the_signature_as_a_referrer() {
    let keys = Keys::generate();
    let farm = keys.farm();
    let tag = format!("{}:1", repository("discovered"));
    build(&farm, &[&tag], &[]);
    let oras = std::env::var("KILN_BED_ORAS").expect("KILN_BED_ORAS");
    let discover = ["discover", "--plain-http", "--format", "json", &tag];
    let output = Command::new(oras).args(discover).env("HOME", keys.folder.path()).output().expect("oras runs");
    assert!(output.status.success(), "{}", text(&output));
    says(&text(&output), &["application/vnd.dev.cosign.artifact.sig.v1+json"]);
}

#[test]
fn a_build_without_a_signature_is_published_unsigned_and_a_farm_without_a_key_says_so() {
    let keys = Keys::generate();
    let mut farm = keys.farm();
    let tag = format!("{}:1", repository("unsigned"));
    build(&farm, &[&tag], &["--sign=false"]);
    assert!(!keys.verify("KILN_BED_COSIGN", &[], &tag).status.success());
    farm.stop();
    let keyless = crate::setting::docker28();
    let context = Context::new("FROM busybox\n");
    let path = context.path();
    let refused = keyless.fail(2, &["build", "-t", &tag, "--platform", "linux/amd64", "--sign", &path]);
    says(&refused, &["--sign", "no signing key", "--signing-key"]);
}

#[test]
fn a_key_that_others_may_read_is_refused_when_the_configuration_is_checked() {
    let keys = Keys::generate();
    let check = |mode: u32| {
        fs::set_permissions(keys.private(), fs::Permissions::from_mode(mode)).expect("a mode");
        let mut command = Command::new(harness::binary("kiln-coordinator"));
        command.args(["--config-check", "--signing-key"]).arg(keys.private()).output().expect("it runs")
    };
    assert!(check(0o600).status.success());
    let refused = check(0o644);
    assert!(!refused.status.success());
    says(&text(&refused), &["signing.pem", "chmod 600"]);
}
