//! Each flag means what it means to docker buildx.

use clap::Parser;
use kiln_common::context::{ChunkId, ContextDigest};

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    flags: BuildFlags,
}

fn flags(line: &str) -> BuildFlags {
    Line::try_parse_from(["build"].into_iter().chain(line.split_whitespace())).expect(line).flags
}

fn environment(name: &str) -> Option<String> {
    (name == "FROM_ENV").then(|| "e".to_owned())
}

fn spec(line: &str) -> Result<BuildSpec, Failure> {
    let flags = flags(line);
    let trees = Trees {
        context: None,
        dockerfile: Dockerfile { tree: ContextDigest(ChunkId::of(b"")), filename: "Dockerfile".into() },
        named_contexts: BTreeMap::new(),
        source: ".".into(),
    };
    Options::read(&flags, &environment)?.spec(&flags, trees, Vec::new(), Vec::new())
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn platforms_split_at_commas_and_default_to_this_machine() {
    let platforms = |line: &str| {
        let requests = spec(line).unwrap().platforms;
        requests.into_iter().map(|one| (one.platform.to_string(), one.required)).collect::<Vec<_>>()
    };
    assert_eq!(
        platforms("-t r.example/a --platform linux/amd64,linux/arm64/v8 --platform linux/arm .")[1..],
        [("linux/arm64".to_owned(), true), ("linux/arm/v7".to_owned(), true)]
    );
    assert_eq!(
        platforms("-t r.example/a --platform linux/amd64,linux/amd64 --optional-platform linux/riscv64 ."),
        [("linux/amd64".to_owned(), true), ("linux/riscv64".to_owned(), false)]
    );
    let local = platforms("-t r.example/a .");
    assert_eq!(local, [(local_platform().unwrap().to_string(), true)]);
    assert_eq!(platforms("-t r.example/a --platform local ."), local);
}

#[test]
fn key_values_read_as_buildx_reads_them() {
    let spec = spec(
        "-t r.example/a --build-arg A=1 --build-arg B=x=y --build-arg FROM_ENV --build-arg UNSET --build-arg C= \
         --label one --label two=2 --require zone=home,disk=ssd .",
    )
    .unwrap();
    assert_eq!(spec.build_args, map(&[("A", "1"), ("B", "x=y"), ("C", ""), ("FROM_ENV", "e")]));
    assert_eq!(spec.labels, map(&[("one", ""), ("two", "2")]));
    assert_eq!(spec.required_labels, map(&[("disk", "ssd"), ("zone", "home")]));
}

#[test]
fn attestations_are_off_unless_asked_for() {
    for (line, provenance, sbom) in [
        ("", None, None),
        ("--provenance=false --sbom=false", None, None),
        ("--provenance=true --sbom true", Some("mode=min"), Some(SBOM_GENERATOR)),
        ("--provenance mode=max --sbom=generator=x/y", Some("mode=max"), Some("generator=x/y")),
        ("--attest type=provenance,mode=max --attest type=sbom", Some("mode=max"), Some(SBOM_GENERATOR)),
        ("--attest type=provenance,mode=max --provenance=false", None, None),
        ("--attest type=sbom,disabled=true", None, None),
    ] {
        let spec = spec(&format!("-t r.example/a {line} .")).unwrap();
        assert_eq!((spec.provenance.as_deref(), spec.sbom.as_deref()), (provenance, sbom), "{line}");
    }
}

#[test]
fn sizes_times_and_the_farm_s_own_flags_are_read() {
    let spec = spec(
        "-t r.example/a -t r.example/a:latest -t other.example/b:2 --shm-size 64m --timeout 1h30m --queue-timeout 5m --priority -3 \
         --emulation wait=30s --media-types docker --ulimit nofile=1024 --add-host db:10.0.0.1,gw:host-gateway \
         --no-cache-filter a,b --cache-from r.example/c --cache-to type=inline --annotation index:k=v --target t .",
    )
    .unwrap();
    assert_eq!(spec.tags.len(), 2);
    assert_eq!(spec.shm_size, Some(64 << 20));
    assert_eq!((spec.timeout, spec.queue_timeout), (Duration::from_secs(5400), Some(Duration::from_secs(300))));
    assert_eq!((spec.priority, spec.media_types, spec.add_hosts.len()), (-3, MediaTypes::Docker, 2));
    assert_eq!(spec.no_cache_stages, ["a", "b"]);
    assert_eq!(spec.project, "r.example/a");
    for (text, bytes) in [("1gb", 1 << 30), ("2KiB", 2048), ("7", 7)] {
        assert_eq!(shm_size(text).unwrap(), bytes, "{text}");
    }
}

#[test]
fn bad_values_name_the_flag_and_the_value() {
    for (line, named) in [
        (".", "tag"),
        ("-t UPPER/x .", "UPPER/x"),
        ("-t r.example/a@sha256:00 .", "digest"),
        ("-t r.example/a --platform linux .", "`linux`"),
        ("-t r.example/a --platform linux/amd64 --optional-platform linux/amd64 .", "both"),
        ("-t r.example/a --shm-size 1x .", "1x"),
        ("-t r.example/a --timeout soon .", "soon"),
        ("-t r.example/a --timeout 0s .", "0s"),
        ("-t r.example/a --queue-timeout later .", "later"),
        ("-t r.example/a --priority 11 .", "--priority"),
        ("-t r.example/a --emulation often .", "often"),
        ("-t r.example/a --require x .", "LABEL=VALUE"),
        ("-t r.example/a --network bridge .", "bridge"),
        ("-t r.example/a --cache-to type=local,dest=x .", "type=local"),
        ("-t r.example/a --attest type=x .", "--attest"),
        ("-t r.example/a --media-types both .", "both"),
        ("-t r.example/a --annotation x .", "--annotation"),
    ] {
        let failure = spec(line).expect_err(line);
        assert_eq!(failure.exit.code(), 2, "{line}");
        assert!(failure.to_string().contains(named), "{line}: {failure}");
    }
}

#[test]
fn flags_that_a_farm_cannot_honour_are_refused_with_the_reason() {
    for line in ["--load", "-o type=local,dest=.", "--output=x", "--push=false", "--builder b", "--squash", "--check"] {
        let failure = super::super::refuse::refuse_foreign(&flags(&format!("{line} ."))).expect_err(line);
        assert!(failure.to_string().contains("on a farm") && failure.remedy.is_some(), "{failure}");
    }
    for line in ["--push", "--push=true", "--load=false", ""] {
        assert!(super::super::refuse::refuse_foreign(&flags(&format!("{line} ."))).is_ok(), "{line}");
    }
}
