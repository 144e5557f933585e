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
    kiln.run(&["workers", "token", "ls"]).await.expect(0, &["3fa9", "all its uses are taken"]);
    kiln.run(&["workers", "token", "rm", "3fa9"]).await.expect(0, &["revoked"]);
    kiln.run(&["images", "r.example/app"]).await.expect(0, &["1, latest", "sha256:aaaaaaaaaaaa"]);
    let made = kiln.run(&["token", "create", "ci", "--ttl", "30d"]).await.expect(0, &["submitter"]);
    assert_eq!(made.out, "s3cret\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_trail_is_shown_over_pages_and_exported_line_by_line() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    let audit = ["audit", "--since", "7d", "--actor", "ann", "--action", "worker", "--outcome", "done"];
    let shown = kiln.run(&audit).await;
    let shown = shown.expect(0, &["token `ann`", "192.0.2.7", "worker.cordon", "worker 0198f3c4-5d6e", "and 3 more"]);
    assert_eq!(shown.out.lines().count(), 3);
    let limited = kiln.run(&["audit", "-n", "1", "-o", "json"]).await.expect(0, &["AUDIT_OUTCOME_DONE"]);
    assert_eq!(json(&limited.out)["next_page_token"], "2");
    let exported = kiln.run(&["audit", "-o", "jsonl"]).await.expect(0, &[]);
    let lines: Vec<_> = exported.out.lines().map(json).collect();
    assert_eq!((lines.len(), lines[1]["actor"]["name"].as_str()), (2, Some("ann")));
    Kiln::of(&fake, VIEWER).run(&["audit"]).await.expect(4, &[]);
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
