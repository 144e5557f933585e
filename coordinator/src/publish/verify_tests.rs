//! Layers before a tag moves, against a registry that misbehaves on demand.

use std::io::Write;

use axum::http::Method;
use kiln_common::{BuildSpec, Digest, limits, spec::Verify};
use kiln_scheduler::effect::Leg;

use super::{
    fake::{Fake, Fault},
    manifest::OCI_MANIFEST,
    tests::{archive, failed, job, push_leg_with, run, spec, succeeded},
    *,
};

/// An ELF header of this machine, and something behind it.
fn program(machine: u8, class: u8) -> Vec<u8> {
    let mut file = vec![0; 4096];
    file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1]);
    (file[16], file[18]) = (2, machine);
    file
}

fn amd64() -> Vec<u8> {
    program(62, 2)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("written");
    encoder.finish().expect("finished")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn arm64_leg(fake: &Fake, layer: Vec<u8>) -> Leg {
    push_leg_with(fake, &["a"], "linux/arm64", OCI_MANIFEST, layer)
}

fn arm64_spec(fake: &Fake) -> BuildSpec {
    spec(&["linux/arm64"], &[format!("{}/a:1", fake.host)])
}

#[tokio::test]
async fn a_program_of_another_architecture_moves_no_tag_and_is_named_with_its_layer() {
    let fake = Fake::start().await;
    let plain = archive(&[("etc/hosts", b"localhost"), ("./usr/bin/hello", &amd64())]);
    for layer in [gzip(&plain), zstd(&plain), plain] {
        let digest = registry::sha256(&layer);
        let leg = arm64_leg(&fake, layer);
        let (published, message) = failed(run(job(arm64_spec(&fake), vec![leg])).await);
        assert!(published.is_none() && fake.manifest("a", "1").is_none());
        let expected =
            format!("linux/arm64: `/usr/bin/hello` is a program for linux/amd64 (layer {digest}); compile it");
        assert!(message.contains(&expected), "{message}");
    }
}

#[tokio::test]
async fn programs_that_are_there_on_purpose_are_let_through() {
    let fake = Fake::start().await;
    let layer = archive(&[("opt/cross/bin/tool", &amd64()), ("app/prebuilds/linux-x64/addon.node", &amd64())]);
    let leg = arm64_leg(&fake, layer);
    failed(run(job(arm64_spec(&fake), vec![leg.clone()])).await);
    let allowed = BuildSpec { verify_allow: vec!["opt/cross".into()], ..arm64_spec(&fake) };
    succeeded(run(job(allowed, vec![leg.clone()])).await);
    let unseen = BuildSpec { verify: Verify::Off, ..arm64_spec(&fake) };
    succeeded(run(job(unseen, vec![leg])).await);
}

#[tokio::test]
async fn a_layer_is_read_once_for_all_builds_and_legs_that_share_it() {
    let fake = Fake::start().await;
    let shared = archive(&[("etc/motd", b"the same everywhere")]);
    let platforms = ["linux/arm64", "linux/amd64", "linux/arm/v7"];
    let legs: Vec<Leg> =
        platforms.iter().map(|platform| push_leg_with(&fake, &["a"], platform, OCI_MANIFEST, shared.clone())).collect();
    let blob = format!("GET /v2/a/blobs/{}", registry::sha256(&shared));
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    for _ in 0..2 {
        let this = job(spec(&platforms, &[format!("{}/a:1", fake.host)]), legs.clone());
        succeeded(publisher.publish(this, Vec::new(), CancellationToken::new()).await);
    }
    assert_eq!(fake.log().iter().filter(|line| **line == blob).count(), 1);
}

#[tokio::test]
async fn what_goes_wrong_on_the_way_is_not_taken_for_the_image_s_fault() {
    let fake = Fake::start().await;
    let layer = archive(&[("usr/bin/hello", &program(183, 2))]);
    let blob = format!("/blobs/{}", registry::sha256(&layer));
    let leg = arm64_leg(&fake, layer);
    for fault in [Fault::Reset, Fault::Garbled, Fault::Status(503, "busy")] {
        fake.fail(Method::GET, &blob, 1, fault);
    }
    succeeded(run(job(arm64_spec(&fake), vec![leg])).await);
}

#[tokio::test]
async fn what_came_with_a_base_image_is_not_the_build_s_own() {
    let fake = Fake::start().await;
    let layer = archive(&[("usr/lib/other/tool", &amd64())]);
    let base = push_leg_with(&fake, &["base"], "linux/arm64", OCI_MANIFEST, layer.clone());
    let named = |digest: &Digest| format!("{}/base@{digest}", fake.host).parse().expect("a reference");
    let mut leg = arm64_leg(&fake, layer);
    let (_, message) = failed(run(job(arm64_spec(&fake), vec![leg.clone()])).await);
    assert!(!message.contains("base image"), "{message}");
    std::sync::Arc::make_mut(&mut leg.image).bases = vec![named(&registry::sha256(b"not there"))];
    let (_, message) = failed(run(job(arm64_spec(&fake), vec![leg.clone()])).await);
    assert!(message.contains("is not known") && message.contains("cannot be read"), "{message}");
    std::sync::Arc::make_mut(&mut leg.image).bases = vec![named(&base.image.digest)];
    succeeded(run(job(arm64_spec(&fake), vec![leg])).await);
}

#[tokio::test]
async fn a_layer_that_is_no_archive_is_refused_with_a_way_around() {
    let fake = Fake::start().await;
    let leg = arm64_leg(&fake, b"not an archive, but longer than a header would be: ".repeat(20));
    let (_, message) = failed(run(job(arm64_spec(&fake), vec![leg])).await);
    assert!(message.contains("its archive is damaged") && message.contains("--verify off"), "{message}");
}

#[tokio::test]
async fn a_verification_that_takes_long_leaves_the_retry_budget_whole() {
    let fake = Fake::start().await;
    let layer = archive(&[("usr/bin/hello", &program(183, 2))]);
    let blob = format!("/blobs/{}", registry::sha256(&layer));
    let leg = arm64_leg(&fake, layer);
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    let session = publisher.registries.session(Vec::new(), CancellationToken::new());
    // As if the manifest had come after all but the whole budget: whatever is retried from it now fails.
    session.budget.spend(limits::PUBLISH_BUDGET);
    let busy = || Err::<(), _>(RegistryError::transient("busy"));
    let spent = session.retry(|| async { busy() }).await.expect_err("nothing is left");
    assert!(spent.message.contains("gave up after 12"), "{spent}");
    // The layer has a budget of its own, and its end gives the publish another one.
    fake.fail(Method::GET, &blob, 1, Fault::Status(503, "busy"));
    fake.fail(Method::PUT, "/manifests/", 1, Fault::Status(503, "busy"));
    publisher.run(&job(arm64_spec(&fake), vec![leg]), &session).await.expect("published");
}
