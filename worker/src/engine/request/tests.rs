use kiln_common::{
    EmulationPolicy, FeatureSet,
    context::{ChunkId, ContextDigest},
    limits,
    spec::{Compression, Dockerfile, NamedContext, PlatformRequest, parse_annotation},
};

use super::*;

fn spec() -> BuildSpec {
    let platform = "linux/arm/v7".parse().unwrap();
    serde_json::from_value(serde_json::json!({
        "context": null,
        "dockerfile": Dockerfile { tree: ContextDigest(ChunkId::of(b"tree")), filename: "app.Dockerfile".into() },
        "platforms": [PlatformRequest { platform, required: true }],
        "tags": ["r.example/app:1", "r.example/app:2", "127.0.0.1:5000/app:1"],
        "timeout": limits::BUILD_TIMEOUT_DEFAULT,
        "emulation": EmulationPolicy::Auto,
        "project": "p",
    }))
    .unwrap()
}

fn facts(kind: EngineKind, several_exporters: bool) -> EngineFacts {
    EngineFacts {
        kind,
        version: "1.2.3".into(),
        features: FeatureSet::new(),
        platforms: Vec::new(),
        host_gateway: Some("172.17.0.1".into()),
        several_exporters,
        machine: None,
    }
}

fn request_with(spec: &BuildSpec, insecure: &[&str], several: bool) -> Result<SolveRequest, BuildError> {
    let platform = "linux/arm/v7".parse().unwrap();
    let facts = facts(EngineKind::Buildkitd, several);
    let insecure_registries = insecure.iter().map(ToString::to_string).collect();
    let order = Order {
        spec,
        platform: &platform,
        facts: &facts,
        insecure_registries: &insecure_registries,
        builder_id: "kiln:x",
    };
    solve_request(&order, &Target::Registries)
}

#[test]
fn every_repository_is_pushed_to_by_digest_and_nothing_is_kept() {
    let request = request_with(&spec(), &[], true).unwrap();
    let [exporter] = request.exporters.as_slice() else { panic!("{:?}", request.exporters) };
    assert_eq!(exporter.attrs["name"], "r.example/app,127.0.0.1:5000/app");
    for key in ["push", "push-by-digest", "oci-mediatypes"] {
        assert_eq!(exporter.attrs[key], "true", "{key}");
    }
    assert_eq!(exporter.attrs["store"], "false");
    assert_eq!((request.exporter_deprecated.as_str(), &request.exporter_attrs_deprecated), ("image", &exporter.attrs));
}

#[test]
fn registries_without_tls_get_an_exporter_of_their_own_where_the_engine_can() {
    let request = request_with(&spec(), &["r.example"], true).unwrap();
    let [secure, insecure] = request.exporters.as_slice() else { panic!("{:?}", request.exporters) };
    assert!(!secure.attrs.contains_key("registry.insecure"));
    assert_eq!(
        (insecure.attrs["name"].as_str(), insecure.attrs["registry.insecure"].as_str()),
        ("r.example/app", "true")
    );
    assert!(matches!(request_with(&spec(), &["r.example"], false), Err(BuildError::Build(_))));
}

#[test]
fn layers_are_compressed_and_dated_as_asked() {
    let asked = BuildSpec { compression: Compression::Estargz, rewrite_timestamp: true, ..spec() };
    let attrs = &request_with(&asked, &[], true).unwrap().exporters[0].attrs;
    assert_eq!((attrs["compression"].as_str(), attrs["rewrite-timestamp"].as_str()), ("estargz", "true"));
    let plain = &request_with(&spec(), &[], true).unwrap().exporters[0].attrs;
    assert!(!plain.contains_key("compression") && !plain.contains_key("rewrite-timestamp"));
}

#[test]
fn a_classic_store_gets_names_and_no_push() {
    let (spec, platform, facts) = (spec(), "linux/amd64".parse().unwrap(), facts(EngineKind::DockerdClassic, false));
    let order = Order {
        spec: &spec,
        platform: &platform,
        facts: &facts,
        insecure_registries: &BTreeSet::new(),
        builder_id: "",
    };
    let names = ["127.0.0.1:1/a:x".to_owned(), "127.0.0.1:1/b:x".to_owned()];
    let request = solve_request(&order, &Target::Store { names: &names }).unwrap();
    assert_eq!(request.exporter_deprecated, "moby");
    assert_eq!(request.exporter_attrs_deprecated["name"], "127.0.0.1:1/a:x,127.0.0.1:1/b:x");
}

#[test]
fn options_become_the_frontend_s_attributes() {
    let asked = BuildSpec {
        target: Some("build".into()),
        build_args: [("VERSION".to_owned(), "1=2,3".to_owned())].into(),
        labels: [("a.b".to_owned(), "c".to_owned())].into(),
        no_cache_stages: vec!["one".into(), "two".into()],
        pull: true,
        network: NetworkMode::Host,
        add_hosts: vec!["db:10.0.0.1".parse().unwrap(), "gw:host-gateway".parse().unwrap()],
        shm_size: Some(67_108_864),
        ulimits: vec!["nofile=10:20".parse().unwrap(), "core=0".parse().unwrap()],
        provenance: Some("mode=max".into()),
        named_contexts: [
            ("base".to_owned(), NamedContext::Reference("docker-image://alpine:3".into())),
            ("src".to_owned(), NamedContext::Tree(ContextDigest(ChunkId::of(b"src")))),
        ]
        .into(),
        ..spec()
    };
    let request = request_with(&asked, &[], true).unwrap();
    for (key, value) in [
        ("filename", "app.Dockerfile"),
        ("platform", "linux/arm/v7"),
        ("target", "build"),
        ("build-arg:VERSION", "1=2,3"),
        ("label:a.b", "c"),
        ("no-cache", "one,two"),
        ("image-resolve-mode", "pull"),
        ("force-network-mode", "host"),
        ("add-hosts", "db=10.0.0.1,gw=172.17.0.1"),
        ("shm-size", "67108864"),
        ("ulimit", "nofile=10:20,core=0:0"),
        ("attest:provenance", "mode=max,builder-id=kiln:x"),
        ("context:base", "docker-image://alpine:3"),
        ("context:src", "local:named-src"),
    ] {
        assert_eq!(request.frontend_attrs.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(request.entitlements, ["network.host"]);
    let plain = request_with(&spec(), &[], true).unwrap();
    assert!(plain.entitlements.is_empty());
    assert_eq!(plain.frontend_attrs.len(), 3, "{:?}", plain.frontend_attrs);
}

#[test]
fn platforms_never_overwrite_each_other_s_cache_and_read_both() {
    let asked = BuildSpec {
        cache_from: vec!["type=registry,ref=r.example/app:cache".parse().unwrap()],
        cache_to: vec![
            "type=registry,ref=r.example/app:cache,mode=max".parse().unwrap(),
            "type=inline".parse().unwrap(),
        ],
        ..spec()
    };
    let cache = request_with(&asked, &["r.example"], true).unwrap().cache.unwrap();
    assert_eq!(cache.exports[0].attrs["ref"], "r.example/app:cache-linux-arm-v7");
    assert_eq!(cache.exports[0].attrs["mode"], "max");
    assert_eq!(cache.exports[0].attrs["registry.insecure"], "true");
    assert_eq!(cache.exports[1].r#type, "inline");
    let read: Vec<_> = cache.imports.iter().map(|entry| entry.attrs["ref"].as_str()).collect();
    assert_eq!(read, ["r.example/app:cache-linux-arm-v7", "r.example/app:cache"]);
}

#[test]
fn a_long_cache_tag_keeps_its_platform_and_a_digest_is_no_place_to_write() {
    let tag = "t".repeat(limits::TAG_BYTES);
    let to = |reference: &str| BuildSpec {
        cache_to: vec![format!("type=registry,ref={reference}").parse().unwrap()],
        ..spec()
    };
    let cache = request_with(&to(&format!("r.example/app:{tag}")), &[], true).unwrap().cache.unwrap();
    assert!(cache.exports[0].attrs["ref"].ends_with("t-linux-arm-v7"));
    assert!(cache.exports[0].attrs["ref"].parse::<kiln_common::ImageReference>().is_ok());
    let digest = format!("r.example/app@sha256:{}", "0".repeat(64));
    assert!(matches!(request_with(&to(&digest), &[], true), Err(BuildError::Build(_))));
}

#[test]
fn annotations_of_this_platform_s_manifest_go_to_the_exporter() {
    let texts = ["a=1", "manifest[linux/arm/v7]:b=2", "manifest[linux/amd64]:c=3", "index:d=4"];
    let annotations = texts.iter().flat_map(|text| parse_annotation(text).unwrap()).collect();
    let request = request_with(&BuildSpec { annotations, ..spec() }, &[], true).unwrap();
    let mut found: Vec<_> =
        request.exporters[0].attrs.iter().filter(|(key, _)| key.starts_with("annotation")).collect();
    found.sort();
    let expected = [("annotation-manifest.a", "1"), ("annotation-manifest.b", "2")];
    assert_eq!(found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect::<Vec<_>>(), expected);
}
