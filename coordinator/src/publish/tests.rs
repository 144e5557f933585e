//! Publishing against a registry that misbehaves on demand.

use std::{sync::Arc, time::Duration};

use axum::http::Method;
use kiln_common::{
    BuildId, BuildSpec, Digest, Grade, Platform,
    context::{ChunkId, ContextDigest},
    limits,
    spec::{Annotation, AnnotationScope, Dockerfile, ImageDescriptor, PlatformRequest},
};
use kiln_scheduler::effect::Leg;
use zeroize::Zeroizing;

use super::{
    fake::{Fake, Fault},
    manifest::{DOCKER_MANIFEST, Index, OCI_INDEX, OCI_MANIFEST},
    *,
};

const FOUR: [&str; 4] = ["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6"];

pub(super) fn spec(platforms: &[&str], tags: &[String]) -> BuildSpec {
    let request = |text: &&str| PlatformRequest { platform: text.parse().expect("platform"), required: true };
    BuildSpec {
        platforms: platforms.iter().map(request).collect(),
        tags: tags.iter().map(|tag| tag.parse().expect("tag")).collect(),
        project: "app".into(),
        ..BuildSpec::bare(Dockerfile { tree: ContextDigest(ChunkId::of(b"tree")), filename: "Dockerfile".into() })
    }
}

/// Pushes an image as a worker would: a layer, its configuration and its manifest, into each repository.
pub(super) fn push_leg(fake: &Fake, repositories: &[&str], platform: &str, media_type: &str) -> Leg {
    push_leg_with(fake, repositories, platform, media_type, archive(&[("etc/platform", platform.as_bytes())]))
}

pub(super) fn push_leg_with(
    fake: &Fake,
    repositories: &[&str],
    platform: &str,
    media_type: &str,
    layer: Vec<u8>,
) -> Leg {
    let platform: Platform = platform.parse().expect("platform");
    let variant = platform.variant().map(|v| format!(r#","variant":"{v}""#)).unwrap_or_default();
    let config =
        format!(r#"{{"os":"{}","architecture":"{}"{variant},"rootfs":{{}}}}"#, platform.os(), platform.architecture());
    let (size, layer_size) = (config.len(), layer.len());
    let (config, layer) = (fake.put_blob(config), fake.put_blob(layer));
    let (config_type, layer_type) = match media_type {
        OCI_MANIFEST => ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"),
        _ => ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"{config_type}","digest":"{config}","size":{size}}},"layers":[{{"mediaType":"{layer_type}","digest":"{layer}","size":{layer_size}}}]}}"#
    );
    let bytes = manifest.len() as u64;
    let mut digest = None;
    for repository in repositories {
        digest = Some(fake.put_manifest(repository, media_type, manifest.clone()));
    }
    let image = ImageDescriptor {
        media_type: media_type.into(),
        digest: digest.expect("a repository"),
        size: bytes,
        bases: Vec::new(),
    };
    Leg { platform, image: image.into(), grade: Grade::Native }
}

/// A layer with these files.
pub(super) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, path, *content).expect("appended");
    }
    builder.into_inner().expect("an archive")
}

pub(super) fn job(spec: BuildSpec, legs: Vec<Leg>) -> PublishJob {
    PublishJob { build: BuildId::generate(), publish: 1, spec: Arc::new(spec), legs, earlier: None }
}

pub(super) async fn run(job: PublishJob) -> PublishOutcome {
    run_as(job, Vec::new()).await
}

async fn run_as(job: PublishJob, credentials: Vec<RegistryCredential>) -> PublishOutcome {
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    publisher.publish(job, credentials, CancellationToken::new()).await
}

pub(super) fn succeeded(outcome: PublishOutcome) -> Published {
    match outcome {
        PublishOutcome::Succeeded(published) => published,
        PublishOutcome::Failed { message, .. } | PublishOutcome::LegsMissing { message, .. } => panic!("{message}"),
    }
}

pub(super) fn failed(outcome: PublishOutcome) -> (Option<Published>, String) {
    match outcome {
        PublishOutcome::Failed { published, message } => (published, message),
        other @ (PublishOutcome::Succeeded(_) | PublishOutcome::LegsMissing { .. }) => panic!("{other:?}"),
    }
}

fn index(fake: &Fake, repository: &str, reference: &str) -> Index {
    let (media_type, bytes) = fake.manifest(repository, reference).expect("there");
    assert_eq!(media_type, OCI_INDEX);
    serde_json::from_slice(&bytes).expect("an index")
}

#[tokio::test]
async fn several_legs_become_one_index_and_the_tags_of_all_repositories_move_last() {
    let fake = Fake::start().await;
    let tags = ["a:1", "a:latest", "team/b:1"].map(|tag| format!("{}/{tag}", fake.host));
    let legs: Vec<Leg> = FOUR.iter().map(|text| push_leg(&fake, &["a", "team/b"], text, OCI_MANIFEST)).collect();
    let annotated = BuildSpec {
        annotations: vec![
            Annotation { scope: AnnotationScope::Index, key: "k".into(), value: "v".into() },
            Annotation {
                scope: AnnotationScope::ManifestDescriptor(Some("linux/arm64".parse().expect("platform"))),
                key: "d".into(),
                value: "e".into(),
            },
        ],
        ..spec(&FOUR, &tags)
    };
    // The order in which legs finish changes nothing.
    let reversed = legs.iter().rev().cloned().collect();
    let published = succeeded(run(job(annotated.clone(), reversed)).await);
    assert_eq!(published.tags, tags);
    assert_eq!(published.platform_sizes.len(), 4);
    let index = index(&fake, "a", "1");
    let platforms: Vec<_> = index.manifests.iter().map(|one| one.platform.clone().expect("a platform")).collect();
    let wanted: Vec<_> = legs.iter().map(|leg| manifest::WirePlatform::from(&leg.platform)).collect();
    assert_eq!(platforms, wanted);
    assert_eq!(index.annotations["k"], "v");
    assert_eq!(index.manifests[1].annotations["d"], "e");
    for (repository, tag) in [("a", "latest"), ("team/b", "1")] {
        assert_eq!(fake.manifest(repository, tag), fake.manifest("a", "1"));
    }
    let log = fake.log();
    let is_tag_move = |line: &&String| line.starts_with("PUT") && !line.contains("sha256:");
    let first_move = log.iter().position(|line| is_tag_move(&line)).expect("a tag moves");
    assert!(log[first_move..].iter().all(|line| !line.starts_with("PUT") || is_tag_move(&line)), "{log:?}");
    assert_eq!(succeeded(run(job(annotated, legs)).await).digest, published.digest);
}

#[tokio::test]
async fn one_platform_keeps_its_manifest_and_digest() {
    let fake = Fake::start().await;
    let leg = push_leg(&fake, &["a"], "linux/arm64", OCI_MANIFEST);
    let published =
        succeeded(run(job(spec(&["linux/arm64"], &[format!("{}/a:1", fake.host)]), vec![leg.clone()])).await);
    assert_eq!((published.digest, published.media_type), (leg.image.digest.clone(), OCI_MANIFEST.to_owned()));
    assert_eq!(fake.manifest("a", "1"), fake.manifest("a", &leg.image.digest.to_string()));
}

#[tokio::test]
async fn a_leg_of_another_platform_moves_no_tag() {
    let fake = Fake::start().await;
    let mut leg = push_leg(&fake, &["a"], "linux/arm/v7", OCI_MANIFEST);
    leg.platform = "linux/arm/v6".parse().expect("platform");
    let (published, message) =
        failed(run(job(spec(&["linux/arm/v6"], &[format!("{}/a:1", fake.host)]), vec![leg])).await);
    assert!(published.is_none() && fake.manifest("a", "1").is_none());
    assert!(message.starts_with("linux/arm/v6: the image is for linux/arm/v7"), "{message}");
}

#[tokio::test]
async fn families_of_media_types_are_never_mixed() {
    let fake = Fake::start().await;
    let legs = vec![
        push_leg(&fake, &["a"], "linux/amd64", OCI_MANIFEST),
        push_leg(&fake, &["a"], "linux/arm64", DOCKER_MANIFEST),
    ];
    let two = ["linux/amd64", "linux/arm64"];
    let (_, message) = failed(run(job(spec(&two, &[format!("{}/a:1", fake.host)]), legs)).await);
    assert!(
        message.starts_with("linux/arm64: `application/vnd.docker.") && message.contains("--media-types"),
        "{message}"
    );
}

#[tokio::test]
async fn attestations_survive_the_merge_when_asked_for_and_only_then() {
    let fake = Fake::start().await;
    let image = push_leg(&fake, &["a"], "linux/amd64", OCI_MANIFEST);
    let attestation = push_leg(&fake, &["a"], "linux/riscv64", OCI_MANIFEST).image;
    let own = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":{},"platform":{{"architecture":"amd64","os":"linux"}}}},{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":{},"annotations":{{"vnd.docker.reference.digest":"{}","vnd.docker.reference.type":"attestation-manifest"}},"platform":{{"architecture":"unknown","os":"unknown"}}}}]}}"#,
        image.image.digest, image.image.size, attestation.digest, attestation.size, image.image.digest
    );
    let size = own.len() as u64;
    let digest = fake.put_manifest("a", OCI_INDEX, own);
    let leg = Leg {
        image: ImageDescriptor { media_type: OCI_INDEX.into(), digest, size, bases: Vec::new() }.into(),
        ..image
    };
    let other = push_leg(&fake, &["a"], "linux/arm64", OCI_MANIFEST);
    let two = ["linux/amd64", "linux/arm64"];
    let plain = spec(&two, &[format!("{}/a:1", fake.host)]);
    let asked = BuildSpec { provenance: Some("mode=min".into()), ..spec(&two, &[format!("{}/a:2", fake.host)]) };
    succeeded(run(job(plain, vec![leg.clone(), other.clone()])).await);
    succeeded(run(job(asked, vec![leg, other])).await);
    assert_eq!(index(&fake, "a", "1").manifests.len(), 2);
    let with = index(&fake, "a", "2").manifests;
    assert_eq!(with.len(), 3);
    assert!(with[2].is_attestation() && with[2].digest == attestation.digest);
    assert_eq!(with[2].platform.as_ref().expect("a platform").os, "unknown");
}

#[tokio::test]
async fn passing_faults_are_retried_to_success() {
    let fake = Fake::start().await;
    let legs: Vec<Leg> = FOUR.iter().map(|text| push_leg(&fake, &["a"], text, OCI_MANIFEST)).collect();
    let first = legs[0].image.digest.to_string();
    fake.fail(Method::GET, &first, 1, Fault::Status(404, ""));
    fake.fail(Method::GET, &first, 1, Fault::Reset);
    fake.fail(Method::GET, &first, 1, Fault::Garbled);
    fake.fail(Method::GET, "/blobs/", 3, Fault::Status(503, "busy"));
    fake.fail(Method::PUT, "sha256", 1, Fault::RetryAfter(429, 1));
    fake.fail(Method::PUT, "/manifests/1", 2, Fault::Status(500, ""));
    fake.fail(Method::HEAD, "/manifests/1", 1, Fault::Status(404, ""));
    let began = std::time::Instant::now();
    succeeded(run(job(spec(&FOUR, &[format!("{}/a:1", fake.host)]), legs)).await);
    assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After is honoured");
    assert_eq!(index(&fake, "a", "1").manifests.len(), 4);
}

#[tokio::test]
async fn a_partial_failure_says_what_moved_and_a_retry_moves_only_the_rest() {
    let fake = Fake::start().await;
    let tags = ["a:1", "b:1", "a:2"].map(|tag| format!("{}/{tag}", fake.host));
    let leg = push_leg(&fake, &["a", "b"], "linux/amd64", OCI_MANIFEST);
    let denied = r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
    fake.fail(Method::PUT, "/b/manifests/1", 1, Fault::Status(403, denied));
    let first = job(spec(&["linux/amd64"], &tags), vec![leg]);
    let (published, message) = failed(run(first.clone()).await);
    assert_eq!(published.as_ref().expect("some moved").tags, [tags[0].clone(), tags[2].clone()]);
    assert!(message.contains("2 of 3 tags moved") && message.contains("DENIED"), "{message}");
    assert!(message.contains(&format!("docker login {}", fake.host)), "{message}");
    let before = fake.log().len();
    let again = PublishJob { publish: 2, earlier: published, ..first };
    assert_eq!(succeeded(run(again).await).tags, tags);
    let moved: Vec<String> =
        fake.log()[before..].iter().filter(|l| l.starts_with("PUT") && !l.contains("sha256")).cloned().collect();
    assert_eq!(moved, ["PUT /v2/b/manifests/1"]);
}

#[tokio::test]
async fn a_token_is_fetched_once_for_all_calls_and_wrong_credentials_are_named() {
    let fake = Fake::start().await;
    fake.require_login("kiln", "hunter2");
    let legs: Vec<Leg> = FOUR.iter().map(|text| push_leg(&fake, &["a"], text, OCI_MANIFEST)).collect();
    let credential = |password: &str| RegistryCredential {
        host: fake.host.clone(),
        username: "kiln".into(),
        password: Zeroizing::new(password.into()),
        identity_token: Zeroizing::default(),
    };
    let this = job(spec(&FOUR, &[format!("{}/a:1", fake.host)]), legs);
    succeeded(run_as(this.clone(), vec![credential("hunter2")]).await);
    assert_eq!(fake.log().iter().filter(|line| line.contains("/token")).count(), 1);
    let (_, message) = failed(run_as(this.clone(), vec![credential("wrong")]).await);
    assert!(message.contains("may push to it") && !message.contains("wrong"), "{message}");
    let (_, message) = failed(run(this).await);
    assert!(message.contains("docker login"), "{message}");
}

#[tokio::test]
async fn an_identity_token_is_traded_for_an_access_token() {
    let fake = Fake::start().await;
    fake.require_login("<token>", "identity");
    let leg = push_leg(&fake, &["a"], "linux/amd64", OCI_MANIFEST);
    let credential = |token: &str| RegistryCredential {
        host: fake.host.clone(),
        username: "<token>".into(),
        password: Zeroizing::default(),
        identity_token: Zeroizing::new(token.into()),
    };
    let this = job(spec(&["linux/amd64"], &[format!("{}/a:1", fake.host)]), vec![leg]);
    let (_, message) = failed(run_as(this.clone(), vec![credential("revoked")]).await);
    assert!(message.contains("does not allow to log in") && !message.contains("revoked"), "{message}");
    succeeded(run_as(this, vec![credential("identity")]).await);
}

#[tokio::test]
async fn an_abandoned_publish_moves_nothing() {
    let fake = Fake::start().await;
    let leg = push_leg(&fake, &["a"], "linux/amd64", OCI_MANIFEST);
    let abandoned = CancellationToken::new();
    abandoned.cancel();
    let this = job(spec(&["linux/amd64"], &[format!("{}/a:1", fake.host)]), vec![leg]);
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    let (published, message) = failed(publisher.publish(this, Vec::new(), abandoned).await);
    assert!(published.is_none() && message.contains("abandoned") && fake.manifest("a", "1").is_none());
}

#[tokio::test]
async fn too_large_manifests_are_refused_without_being_held() {
    let fake = Fake::start().await;
    let large = vec![b' '; limits::MANIFEST_BYTES + 1];
    let digest: Digest = fake.put_manifest("a", OCI_MANIFEST, large);
    let image = ImageDescriptor { media_type: OCI_MANIFEST.into(), digest, size: 0, bases: Vec::new() };
    let leg = Leg { platform: "linux/amd64".parse().expect("platform"), image: image.into(), grade: Grade::Native };
    let (_, message) = failed(run(job(spec(&["linux/amd64"], &[format!("{}/a:1", fake.host)]), vec![leg])).await);
    assert!(message.contains("sends more than"), "{message}");
}

#[tokio::test]
async fn an_unreachable_registry_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let host = listener.local_addr().expect("address").to_string();
    drop(listener);
    let session = Registries::new([]).expect("client").session(Vec::new(), CancellationToken::new());
    let repository = format!("{host}/a").parse().expect("repository");
    let call = session.manifest(&repository, registry::Pointer::Tag("1"));
    let outcome = tokio::time::timeout(Duration::from_millis(300), call).await;
    assert!(outcome.is_err(), "still trying: a registry may be restarting");
}

#[tokio::test]
async fn an_untrusted_certificate_fails_at_once_and_says_so() {
    let folder = tempfile::tempdir().expect("folder");
    let pki = crate::pki::Pki::open(folder.path(), &[], kiln_common::limits::CERTIFICATE_LIFE, Timestamp::now())
        .expect("pki");
    let acceptor = tokio_rustls::TlsAcceptor::from(pki.server_config().expect("configuration"));
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("bound");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(acceptor.accept(stream).await);
        }
    });
    // Not a loopback address to the rules of registries, so https; on this machine nevertheless.
    let repository = format!("0.0.0.0:{port}/a").parse().expect("repository");
    let session = Registries::new([]).expect("client").session(Vec::new(), CancellationToken::new());
    let error = session.manifest(&repository, registry::Pointer::Tag("1")).await.expect_err("untrusted");
    assert!(error.message.contains("is not trusted (UnknownIssuer)"), "{error}");
}
