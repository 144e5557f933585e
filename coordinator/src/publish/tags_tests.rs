//! When tags may move, against a registry that misbehaves on demand.

use axum::http::Method;
use kiln_common::{BuildSpec, Digest, ImageReference};
use kiln_scheduler::effect::Leg;

use super::{
    fake::{Fake, Fault},
    manifest::OCI_MANIFEST,
    tests::{failed, job, push_leg, run, spec, succeeded},
    *,
};

const IMMUTABLE: &str = r#"{"errors":[{"code":"TAG_INVALID","message":"The image tag '1' already exists in the 'a' repository and cannot be overwritten because the tag is immutable."}]}"#;

fn leg(fake: &Fake, platform: &str) -> Leg {
    push_leg(fake, &["a", "b"], platform, OCI_MANIFEST)
}

/// Puts something else under a tag, as someone else would.
fn occupy(fake: &Fake, repository: &str, tag: &str) -> Digest {
    fake.put_tag(repository, tag, OCI_MANIFEST, "{\"someone\":\"else\"}")
}

fn one_spec(fake: &Fake, tags: &[&str]) -> BuildSpec {
    let tags: Vec<String> = tags.iter().map(|tag| format!("{}/{tag}", fake.host)).collect();
    spec(&["linux/amd64"], &tags)
}

fn moves(fake: &Fake) -> Vec<String> {
    fake.log().into_iter().filter(|line| line.starts_with("PUT") && !line.contains("sha256:")).collect()
}

#[tokio::test]
async fn a_tag_that_named_something_else_when_the_build_began_is_left_alone() {
    let fake = Fake::start().await;
    let leg = leg(&fake, "linux/amd64");
    let theirs = occupy(&fake, "a", "1");
    let tag: ImageReference = format!("{}/a:1", fake.host).parse().expect("a tag");
    for expected in [None, Some(leg.image.digest.clone())] {
        let expected_tags = [(tag.clone(), expected)].into();
        let this = BuildSpec { if_unchanged: true, expected_tags, ..one_spec(&fake, &["a:1", "b:1"]) };
        let (published, message) = failed(run(job(this, vec![leg.clone()])).await);
        assert!(published.is_none() && message.contains("no tag was moved"), "{message}");
        assert!(
            message.contains(&format!("`{tag}` names {theirs}, not what it named when the build began")),
            "{message}"
        );
        assert!(moves(&fake).is_empty());
    }
    let expected_tags = [(tag.clone(), Some(theirs))].into();
    succeeded(run(job(BuildSpec { expected_tags, ..one_spec(&fake, &["a:1"]) }, vec![leg])).await);
}

#[tokio::test]
async fn a_later_publish_of_a_build_moves_its_tags_only_from_where_it_left_them() {
    let fake = Fake::start().await;
    let two = ["linux/amd64", "linux/arm64"];
    let tags = [format!("{}/a:1", fake.host)];
    let legs: Vec<Leg> = two.iter().map(|platform| leg(&fake, platform)).collect();
    let first = succeeded(run(job(spec(&two, &tags), legs[..1].to_vec())).await);
    let backfill = PublishJob { publish: 2, earlier: Some(first.clone()), ..job(spec(&two, &tags), legs.clone()) };
    let second = succeeded(run(backfill.clone()).await);
    assert_ne!(first.digest, second.digest);
    // A publish whose outcome was lost with a crash is found done.
    assert_eq!(succeeded(run(backfill.clone()).await).digest, second.digest);
    occupy(&fake, "a", "1");
    let before = moves(&fake);
    let (_, message) = failed(run(backfill).await);
    assert!(message.contains(&format!("not what this build left there ({})", first.digest)), "{message}");
    assert_eq!(moves(&fake), before);
}

#[tokio::test]
async fn a_registry_with_immutable_tags_is_recognised_before_other_tags_move() {
    let fake = Fake::start().await;
    let leg = leg(&fake, "linux/amd64");
    let theirs = occupy(&fake, "a", "1");
    fake.fail(Method::PUT, "/a/manifests/1", usize::MAX, Fault::Status(400, IMMUTABLE));
    let this = one_spec(&fake, &["a:latest", "a:1", "b:1"]);
    let (published, message) = failed(run(job(this, vec![leg])).await);
    assert!(published.is_none(), "{published:?}");
    let told = format!("tags of {}/a are immutable: this one exists and names {theirs}; choose a new tag", fake.host);
    assert!(message.contains(&told) && message.contains("not tried"), "{message}");
    assert_eq!(moves(&fake), ["PUT /v2/a/manifests/1"]);
}
