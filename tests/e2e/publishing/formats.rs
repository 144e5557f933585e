//! Media types, compressions, annotations and digests that come out as asked.

use harness::{bed::EngineKind, registry};
use serde_json::Value;

use crate::setting::{Context, docker28, farm, repository, says};

const DOCKERFILE: &str = "FROM busybox\nRUN echo content > /file && mkdir -p /folder && echo more > /folder/more\n";

#[test]
fn the_same_input_gives_the_same_index_digest() {
    let farm = docker28();
    let repository = repository("reproducible");
    let mut digests = Vec::new();
    for round in ["1", "2"] {
        // Another folder with other times, and every step anew.
        let context = Context::new(&format!("{DOCKERFILE}COPY input /input\n")).with("input", b"input");
        let tag = format!("{repository}:{round}");
        let file = context.folder().join("digest").display().to_string();
        let output = farm
            .kiln()
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .args(["build", "-t", &tag, "--platform", "linux/amd64,linux/arm64", "--no-cache", "--rewrite-timestamp"])
            .args(["--progress", "plain", "--iidfile", &file, &context.path()])
            .output()
            .expect("kiln runs");
        assert!(output.status.success(), "{}", harness::farm::text(&output));
        digests.push(std::fs::read_to_string(file).expect("a digest"));
        // Times in layers have seconds.
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    assert_eq!(digests[0], digests[1]);
    let config = registry::config(&format!("{repository}@{}", child(&format!("{repository}:1"), 0)));
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
}

fn child(index: &str, at: usize) -> String {
    registry::inspect_raw(index)["manifests"][at]["digest"].as_str().expect("a digest").to_owned()
}

#[test]
fn layers_are_compressed_as_asked() {
    let farm = docker28();
    let context = Context::new(DOCKERFILE);
    let build = |kind: &str| {
        let tag = format!("{}:1", repository(kind));
        let flags = ["--platform", "linux/amd64", "--compression", kind, "--no-cache", "--progress", "plain"];
        farm.run(&[&["build", "-t", &tag][..], &flags, &[&context.path()]].concat());
        let layers = registry::inspect_raw(&tag)["layers"].as_array().expect("layers").clone();
        layers.last().expect("a layer")["mediaType"].as_str().expect("a type").to_owned()
    };
    assert_eq!(build("zstd"), "application/vnd.oci.image.layer.v1.tar+zstd");
    assert_eq!(build("gzip"), "application/vnd.oci.image.layer.v1.tar+gzip");
}

#[test]
fn estargz_goes_to_an_engine_that_writes_it_and_is_refused_where_there_is_none() {
    let context = Context::new(DOCKERFILE);
    let path = context.path();
    let tag = format!("{}:1", repository("estargz"));
    let build =
        ["build", "-t", &tag, "--platform", "linux/amd64", "--compression", "estargz", "--progress", "plain", &path];
    // The bed's Docker 28 is compiled with Go 1.27, whose gzip its estargz writer does not survive.
    let refused = docker28().fail(2, &build);
    says(&refused, &["--compression estargz", "lacks estargz"]);
    let Some(farm) = farm(EngineKind::Buildkit) else { return };
    farm.run(&build);
    let layers = registry::inspect_raw(&tag)["layers"].as_array().expect("layers").clone();
    let annotations = layers.last().expect("a layer")["annotations"].clone();
    assert!(annotations["containerd.io/snapshot/stargz/toc.digest"].is_string(), "{annotations}");
}

#[test]
fn docker_s_media_types_are_used_throughout_when_asked_for() {
    let farm = docker28();
    let tag = format!("{}:1", repository("docker-types"));
    let flags = ["--platform", "linux/amd64,linux/arm64", "--media-types", "docker", "--progress", "plain"];
    let context = Context::new("FROM busybox\nCOPY Dockerfile /\n");
    farm.run(&[&["build", "-t", &tag][..], &flags, &[&context.path()]].concat());
    let index = registry::inspect_raw(&tag);
    assert_eq!(index["mediaType"], "application/vnd.docker.distribution.manifest.list.v2+json");
    let reference = format!("{}@{}", tag.rsplit_once(':').expect("a tag").0, child(&tag, 1));
    let manifest = registry::inspect_raw(&reference).to_string();
    assert!(!manifest.contains("vnd.oci"), "{manifest}");
}

#[test]
fn annotations_go_where_their_prefix_says() {
    let farm = docker28();
    let repository = repository("annotated");
    let tag = format!("{repository}:1");
    let context = Context::new("FROM busybox\nCOPY Dockerfile /\n");
    let annotations = ["a=plain", "index:b=index", "manifest[linux/arm64]:c=one", "manifest-descriptor:d=descriptor"];
    let flags = annotations.iter().flat_map(|text| ["--annotation", text]).collect::<Vec<_>>();
    let path = context.path();
    let build = ["build", "-t", &tag, "--platform", "linux/amd64,linux/arm64", "--progress", "plain", &path];
    farm.run(&[&build[..], &flags].concat());
    let index = registry::inspect_raw(&tag);
    assert_eq!(index["annotations"], serde_json::json!({ "b": "index" }));
    assert_eq!(index["manifests"][0]["annotations"]["d"], "descriptor");
    let manifest = |at| registry::inspect_raw(&format!("{repository}@{}", child(&tag, at)))["annotations"].clone();
    assert_eq!((&manifest(0)["a"], &manifest(0)["c"]), (&"plain".into(), &Value::Null));
    assert_eq!((&manifest(1)["a"], &manifest(1)["c"]), (&"plain".into(), &"one".into()));
}

#[test]
fn platforms_keep_caches_of_their_own() {
    let farm = docker28();
    let repository = repository("cached");
    let context = Context::new(DOCKERFILE);
    let cache = format!("type=registry,ref={repository}:cache,mode=max");
    let tag = format!("{repository}:1");
    let flags = ["--platform", "linux/amd64,linux/arm64", "--cache-to", &cache, "--progress", "plain"];
    farm.run(&[&["build", "-t", &tag][..], &flags, &[&context.path()]].concat());
    assert_eq!(registry::tags(&repository), ["1", "cache-linux-amd64", "cache-linux-arm64"]);
}
