//! Versions of a repository: listed, compared, and removed without what others need.

use harness::{Farm, registry};
use serde_json::Value;

use crate::setting::{Context, docker28, repository, says};

fn build(farm: &Farm, tags: &[&str], dockerfile: &str) {
    let context = Context::new(dockerfile);
    let mut arguments = vec!["build", "--platform", "linux/amd64,linux/arm64", "--progress", "plain"];
    arguments.extend(tags.iter().flat_map(|tag| ["-t", tag]));
    let path = context.path();
    arguments.push(&path);
    farm.run(&arguments);
}

fn children(reference: &str) -> Vec<String> {
    let index = registry::inspect_raw(reference);
    let children = index["manifests"].as_array().expect("an index").iter();
    children.map(|child| child["digest"].as_str().expect("a digest").to_owned()).collect()
}

#[test]
fn versions_are_compared_and_one_is_removed_with_what_nobody_else_needs() {
    let farm = docker28();
    let repository = repository("versions");
    let (one, two, latest) = (format!("{repository}:1"), format!("{repository}:2"), format!("{repository}:latest"));
    // The second version has the first one's amd64 image and another arm64 image.
    let stages = |arm: &str| {
        format!(
            "FROM busybox AS base-amd64\nFROM busybox AS base-arm64\nLABEL version={arm}\nFROM base-${{TARGETARCH}}\n"
        )
    };
    build(&farm, &[&one, &latest], &stages("1"));
    build(&farm, &[&two, &latest], &stages("2"));
    let (old, new) = (children(&one), children(&two));
    assert!(old[0] == new[0] && old[1] != new[1], "{old:?} {new:?}");

    let listing: Value = serde_json::from_str(&farm.run(&["images", &repository, "-o", "json"])).expect("JSON");
    assert_eq!(listing["versions"].as_array().expect("versions").len(), 2);
    let table = farm.run(&["images", &repository]);
    assert_eq!(table.matches("latest").count(), 1, "a tag is shown where it is now:\n{table}");
    let diff = farm.run(&["images", "diff", &one, ":2"]);
    says(&diff, &["linux/amd64", "the same", "linux/arm64"]);

    let trial = farm.run(&["images", "rm", &one, "--dry-run"]);
    says(&trial, &["untagged", "deleted", "kept", "refers to it"]);
    assert!(registry::exists(&one));
    farm.run(&["images", "rm", &one]);
    assert!(!registry::exists(&one));
    assert!(!registry::exists(&format!("{repository}@{}", old[1])), "nobody else needs it");
    assert_eq!(children(&two), new);
    assert!(new.iter().all(|child| registry::exists(&format!("{repository}@{child}"))));
    let left = farm.run(&["images", &repository, "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&left).expect("JSON")["versions"].as_array().expect("versions").len(), 1);
    says(&farm.fail(2, &["images", "rm", &one]), &["does not exist"]);
}

#[test]
fn a_child_that_any_index_refers_to_survives_the_removal_of_its_version() {
    let farm = docker28();
    let repository = repository("kept");
    let (one, moved) = (format!("{repository}:1"), format!("{repository}:moved"));
    let stages = |arm: &str, amd: &str| {
        format!(
            "FROM busybox AS base-amd64\nLABEL version={amd}\nFROM busybox AS base-arm64\nLABEL version={arm}\nFROM base-${{TARGETARCH}}\n"
        )
    };
    build(&farm, &[&one], &stages("1", "1"));
    let (amd64, arm64) = (children(&one)[0].clone(), children(&one)[1].clone());
    // Somebody else's index has the one child; a version of the farm that lost its tag has the other.
    let oras = std::env::var("KILN_BED_ORAS").expect("KILN_BED_ORAS");
    let create = ["manifest", "index", "create", "--plain-http", &format!("{repository}:theirs"), &amd64];
    let output = std::process::Command::new(oras).args(create).output().expect("oras runs");
    assert!(output.status.success(), "{}", harness::farm::text(&output));
    build(&farm, &[&moved], &stages("1", "2"));
    let untagged = registry::inspect_raw(&moved);
    assert_eq!(untagged["manifests"][1]["digest"], arm64.as_str());
    build(&farm, &[&moved], &stages("2", "2"));
    let said = farm.run(&["images", "rm", &one]);
    says(&said, &["kept", &amd64[.."sha256:".len() + 12], &arm64[.."sha256:".len() + 12], "refers to it"]);
    for child in [&amd64, &arm64] {
        assert!(registry::exists(&format!("{repository}@{child}")), "{child}");
    }
    assert!(!registry::exists(&one));
}
