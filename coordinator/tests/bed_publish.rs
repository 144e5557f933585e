//! Publishing to a real registry: the bed's, named by `KILN_BED_REGISTRY` (and `..._AUTH`, with user and password).
//! Without a bed the tests have nothing to talk to and pass.

mod registry;

use std::time::Instant;

use kiln_coordinator::{
    driver::{PublishOutcome, Publisher},
    publish::RegistryPublisher,
};
use registry::{FOUR, INDEX, MANIFEST, Registry, job, publish, sha256, spec, unique};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn four_legs_become_one_index_under_tags_of_two_repositories_and_no_other_tag_is_left() {
    let Some(registry) = Registry::open() else { return };
    let (one, two) = (unique("one"), unique("two"));
    let mut legs = Vec::new();
    for platform in FOUR {
        legs.push(registry.leg(&[&one, &two], platform).await);
    }
    let host = &registry.host;
    let tags = [format!("{host}/{one}:1.0"), format!("{host}/{one}:latest"), format!("{host}/{two}:1.0")];
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    let began = Instant::now();
    let published = publish(&publisher, &registry, job(spec(&FOUR, &tags), legs.clone())).await;
    println!("first publish, cold connections: {:?}", began.elapsed());
    assert_eq!((published.tags.as_slice(), published.media_type.as_str()), (&tags[..], INDEX));

    let (media_type, bytes) = registry.raw(&one, "1.0").await;
    assert_eq!((media_type.as_str(), sha256(&bytes)), (INDEX, published.digest.clone()));
    let index: serde_json::Value = serde_json::from_slice(&bytes).expect("json");
    let platforms: Vec<String> = index["manifests"]
        .as_array()
        .expect("manifests")
        .iter()
        .map(|one| {
            let part = |name: &str| one["platform"][name].as_str().map(|text| format!("/{text}")).unwrap_or_default();
            format!("{}{}{}", part("os"), part("architecture"), part("variant"))
        })
        .collect();
    assert_eq!(platforms, FOUR.map(|platform| format!("/{platform}")));
    assert_eq!(registry.raw(&two, "1.0").await.1, bytes);
    assert_eq!(registry.tags(&one).await, ["1.0", "latest"]);
    assert_eq!(registry.tags(&two).await, ["1.0"]);

    let mut times = Vec::new();
    for round in 0..20 {
        let tag = [format!("{host}/{one}:round-{round}")];
        let began = Instant::now();
        publish(&publisher, &registry, job(spec(&FOUR, &tag), legs.clone())).await;
        times.push(began.elapsed());
    }
    times.sort();
    println!("warm publish of four platforms, one tag: median {:?}, worst {:?}", times[10], times[19]);
}

#[tokio::test]
async fn one_leg_is_its_own_manifest_under_the_tag() {
    let Some(registry) = Registry::open() else { return };
    let name = unique("single");
    let leg = registry.leg(&[&name], "linux/arm/v6").await;
    let tags = [format!("{}/{name}:1", registry.host)];
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    let published = publish(&publisher, &registry, job(spec(&["linux/arm/v6"], &tags), vec![leg.clone()])).await;
    assert_eq!(published.digest, leg.image.digest);
    let (media_type, bytes) = registry.raw(&name, "1").await;
    assert_eq!((media_type.as_str(), sha256(&bytes)), (MANIFEST, leg.image.digest.clone()));
}

#[tokio::test]
async fn a_registry_with_a_login_takes_the_right_password_and_names_the_wrong_one() {
    let Some(registry) = Registry::with_login() else { return };
    let name = unique("login");
    let leg = registry.leg(&[&name], "linux/amd64").await;
    let tags = [format!("{}/{name}:1", registry.host)];
    let this = job(spec(&["linux/amd64"], &tags), vec![leg]);
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    match publisher.publish(this.clone(), Vec::new(), CancellationToken::new()).await {
        PublishOutcome::Failed { published: None, message } => assert!(message.contains("docker login"), "{message}"),
        other @ (PublishOutcome::Succeeded(_) | PublishOutcome::Failed { .. } | PublishOutcome::LegsMissing { .. }) => {
            panic!("{other:?}")
        }
    }
    publish(&publisher, &registry, this).await;
}

#[tokio::test]
async fn legs_that_are_missing_in_one_repository_are_named_and_no_tag_moves() {
    let Some(registry) = Registry::open() else { return };
    let (one, two) = (unique("here"), unique("missing"));
    let platforms = ["linux/amd64", "linux/arm64", "linux/riscv64"];
    let legs = vec![
        registry.leg(&[&one], platforms[0]).await,
        registry.leg(&[&one, &two], platforms[1]).await,
        registry.leg(&[&one], platforms[2]).await,
    ];
    let tags = [format!("{}/{one}:1", registry.host), format!("{}/{two}:1", registry.host)];
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    let outcome = publisher.publish(job(spec(&platforms, &tags), legs), Vec::new(), CancellationToken::new()).await;
    let PublishOutcome::LegsMissing { platforms: missing, message } = outcome else { panic!("{outcome:?}") };
    assert_eq!(missing, [platforms[0], platforms[2]].map(|text| text.parse().expect("a platform")));
    assert!(message.contains(&two) && message.contains("does not exist"), "{message}");
    assert!(registry.digest(&one, "1").await.is_none());
}
