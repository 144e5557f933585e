//! Signing against a registry that misbehaves on demand.

use axum::http::Method;
use kiln_common::{BuildSpec, runtime::files};
use kiln_scheduler::effect::PublishJob;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{key::tests::pem, *};
use crate::{
    credentials::RegistryCredential,
    driver::publisher::{PublishOutcome, Publisher},
    publish::{
        RegistryPublisher,
        fake::{Fake, Fault},
        tests::{failed, job, push_leg, spec, succeeded},
    },
};

fn key() -> SigningKey {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("key.pem");
    files::write_private(&path, pem().as_bytes()).expect("written");
    SigningKey::read(&path).expect("a key")
}

fn publisher() -> RegistryPublisher {
    RegistryPublisher::new([], None).expect("publisher").signing_with(Some(key()))
}

async fn publish(publisher: &RegistryPublisher, job: PublishJob) -> PublishOutcome {
    publisher.publish(job, Vec::new(), CancellationToken::new()).await
}

fn two_legs(fake: &Fake, sign: Option<bool>) -> PublishJob {
    let platforms = ["linux/amd64", "linux/arm64"];
    let legs = platforms.iter().map(|platform| push_leg(fake, &["a", "b"], platform, OCI_MANIFEST)).collect();
    let tags = ["a:1", "b:1"].map(|tag| format!("{}/{tag}", fake.host));
    job(BuildSpec { sign, ..spec(&platforms, &tags) }, legs)
}

fn manifest(fake: &Fake, repository: &str, reference: &str) -> Option<Value> {
    fake.manifest(repository, reference).map(|(_, bytes)| serde_json::from_slice(&bytes).expect("JSON"))
}

#[tokio::test]
async fn the_index_and_its_children_are_signed_in_every_repository_before_a_tag_moves() {
    let fake = Fake::start().await;
    let job = two_legs(&fake, None);
    let published = succeeded(publish(&publisher(), job.clone()).await);
    let signed = job.legs.iter().map(|leg| &leg.image.digest).chain([&published.digest]);
    for (digest, repository) in signed.flat_map(|digest| ["a", "b"].map(|repository| (digest, repository))) {
        let signatures = manifest(&fake, repository, &signature::tag(digest)).expect("signed");
        assert_eq!(signatures["subject"]["digest"], digest.to_string());
        let name = format!("{}/{repository}", fake.host).parse().expect("a repository");
        let payload = signature::payload(&name, digest);
        assert_eq!(signatures["layers"][0]["digest"], sha256(&payload).to_string());
        // This registry knows no referrers: they are listed under a tag.
        let listed = manifest(&fake, repository, &digest.to_string().replace(':', "-")).expect("listed");
        assert_eq!(listed["manifests"][0]["artifactType"], signature::ARTIFACT_TYPE);
    }
    let log = fake.log();
    let first = |part: &str| log.iter().position(|line| line.starts_with("PUT") && line.contains(part)).expect(part);
    let last = |part: &str| log.iter().rposition(|line| line.starts_with("PUT") && line.contains(part)).expect(part);
    assert!(last(".sig") < first("/a/manifests/1").min(first("/b/manifests/1")));
    assert!(last(&signature::tag(&job.legs[1].image.digest)) < first(&signature::tag(&published.digest)));
}

#[tokio::test]
async fn several_registries_get_the_same_version_and_its_signatures_each_with_its_own_login() {
    let (open, closed) = (Fake::start().await, Fake::start().await);
    closed.require_login("kiln", "hunter2");
    let leg = push_leg(&open, &["a"], "linux/arm64", OCI_MANIFEST);
    assert_eq!(push_leg(&closed, &["team/b"], "linux/arm64", OCI_MANIFEST), leg);
    let tags = [format!("{}/a:1", open.host), format!("{}/team/b:1", closed.host)];
    let credential = RegistryCredential {
        host: closed.host.clone(),
        username: "kiln".into(),
        password: Zeroizing::new("hunter2".into()),
        identity_token: Zeroizing::default(),
    };
    let this = job(spec(&["linux/arm64"], &tags), vec![leg]);
    let outcome = publisher().publish(this, vec![credential], CancellationToken::new()).await;
    let published = succeeded(outcome);
    assert_eq!(published.tags, tags);
    for (fake, repository) in [(&open, "a"), (&closed, "team/b")] {
        assert!(fake.manifest(repository, "1").is_some());
        assert!(fake.manifest(repository, &signature::tag(&published.digest)).is_some());
    }
}

#[tokio::test]
async fn a_registry_that_takes_no_signature_keeps_every_tag_where_it_is() {
    let fake = Fake::start().await;
    let job = two_legs(&fake, Some(true));
    fake.fail(Method::PUT, ".sig", usize::MAX, Fault::Status(403, r#"{"errors":[{"code":"DENIED"}]}"#));
    let (published, message) = failed(publish(&publisher(), job).await);
    assert!(published.is_none() && message.contains("cannot sign") && message.contains("does not allow"), "{message}");
    assert!(manifest(&fake, "a", "1").is_none() && manifest(&fake, "b", "1").is_none());
}

#[tokio::test]
async fn signatures_of_others_stay_and_one_s_own_is_not_made_twice() {
    let fake = Fake::start().await;
    let (job, one, other) = (two_legs(&fake, None), publisher(), publisher());
    let tag = signature::tag(&succeeded(publish(&one, job.clone()).await).digest);
    let first = manifest(&fake, "a", &tag).expect("signed");
    succeeded(publish(&one, job.clone()).await);
    assert_eq!(manifest(&fake, "a", &tag).expect("signed"), first);
    succeeded(publish(&other, job.clone()).await);
    let both = manifest(&fake, "a", &tag).expect("signed");
    assert_eq!(both["layers"][0], first["layers"][0]);
    assert_eq!(both["layers"].as_array().expect("layers").len(), 2);
    succeeded(publish(&one, job).await);
    assert_eq!(manifest(&fake, "a", &tag).expect("signed"), both);
}

#[tokio::test]
async fn a_build_may_go_unsigned_but_not_when_it_asks_for_a_signature_that_the_farm_cannot_give() {
    let fake = Fake::start().await;
    let unsigned = two_legs(&fake, Some(false));
    let published = succeeded(publish(&publisher(), unsigned).await);
    assert!(manifest(&fake, "a", &signature::tag(&published.digest)).is_none());
    let keyless = RegistryPublisher::new([], None).expect("publisher");
    let (_, message) = failed(publish(&keyless, two_legs(&fake, Some(true))).await);
    assert!(message.contains("no signing key"), "{message}");
    succeeded(publish(&keyless, two_legs(&fake, None)).await);
}
