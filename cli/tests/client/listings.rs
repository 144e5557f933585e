//! Tables for people, JSON and YAML for programs.

use kiln_proto::v1::{self, BuildState};

use crate::{
    fake::{BUILD_ID, Fake, TOKEN, VIEWER, build},
    kiln::Kiln,
};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_are_listed_over_pages_and_shown_by_prefix() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, VIEWER);
    fake.state().builds = vec![build(BuildState::Succeeded); 1200];
    fake.become_(build(BuildState::Succeeded));
    let table = kiln.run(&["builds", "ls"]).await.expect(0, &["ID", "IMAGE", "succeeded", "r.example/app:1", "2/2"]);
    assert_eq!(table.out.lines().count(), 21);
    assert!(!table.out.contains(BUILD_ID), "ids are short in tables:\n{}", table.out);
    let all = kiln.run(&["builds", "ls", "-n", "1100", "-o", "json"]).await.expect(0, &[BUILD_ID]);
    assert_eq!(json(&all.out)["builds"].as_array().unwrap().len(), 1100);
    let shown = kiln.run(&["builds", "show", &BUILD_ID[..13], "-o", "json"]).await.expect(0, &[]);
    assert_eq!(json(&shown.out)["tasks"][1]["grade"], "GRADE_EMULATED");
    kiln.run(&["builds", "show", BUILD_ID]).await.expect(0, &[BUILD_ID, "linux/arm64", "emulated", "no native worker"]);
    kiln.run(&["builds", "show", BUILD_ID, "-o", "yaml"]).await.expect(0, &["state: BUILD_STATE_SUCCEEDED"]);
    kiln.run(&["builds", "show", "ffffffff"]).await.expect(2, &["no build `ffffffff`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_images_and_tokens_are_listed() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    kiln.run(&["workers", "ls"]).await.expect(0, &["kiln workers token create"]);
    fake.state().workers = vec![v1::Worker {
        name: "pi-4".into(),
        state: v1::WorkerState::Cordoned.into(),
        state_reason: "new fan".into(),
        slots: 4,
        platforms: vec![v1::WorkerPlatform { platform: "linux/arm/v7".into(), grade: v1::Grade::Compat.into() }],
        ..v1::Worker::default()
    }];
    kiln.run(&["workers"]).await.expect(0, &["pi-4", "cordoned", "0/4", "linux/arm/v7 (compat)"]);
    kiln.run(&["workers", "show", "pi-4"]).await.expect(0, &["cordoned: new fan"]);
    kiln.run(&["workers", "show", "pi-5"]).await.expect(2, &["no worker `pi-5`"]);
    kiln.run(&["workers", "token", "create"])
        .await
        .expect(0, &["kiln-worker --coordinator farm.example:7070", "join-token"]);
    kiln.run(&["images", "r.example/app"]).await.expect(0, &["1, latest", "sha256:aaaaaaaaaaaa"]);
    let made = kiln.run(&["token", "create", "ci", "--ttl", "30d"]).await.expect(0, &["submitter"]);
    assert_eq!(made.out, "s3cret\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_farm_does_not_offer_yet_is_said() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    for command in ["retry", "backfill", "explain"] {
        kiln.run(&["builds", command, BUILD_ID]).await.expect(2, &["does not offer this yet"]);
    }
    kiln.run(&["workers", "cordon", "pi-4"]).await.expect(2, &["does not offer this yet"]);
}
