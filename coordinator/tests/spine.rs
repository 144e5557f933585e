//! The main job through the coordinator alone: submit, assign, log, report, publish, watch.

mod support;

use std::{collections::HashMap, sync::atomic::Ordering};

use kiln_proto::v1::{self, coordinator_message::Message as Down};
use support::{Farm, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_from_submit_to_succeeded_and_its_secrets_reach_its_worker_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let farm = Farm::start(directory.path()).await;
    let mut people = farm.people();
    let mut worker = farm.worker("board").await;
    let mut session = worker.session(&["linux/amd64", "linux/arm64"], &[]).await;
    session.welcome().await;

    let secrets = HashMap::from([("npm".to_owned(), b"hunter2".to_vec())]);
    let submit = v1::SubmitRequest { secrets, request_id: "once".into(), ..request(&["linux/amd64", "linux/arm64"]) };
    let build = people.submit(submit.clone()).await.expect("accepted");
    assert_eq!(people.submit(submit).await.expect("the same").id, build.id);

    let both = [session.assignment().await, session.assignment().await];
    for assignment in both {
        assert_eq!(assignment.build_id, build.id);
        assert_eq!(assignment.secrets["npm"], b"hunter2");
        worker.log_a_line(&assignment.attempt_id).await;
        session.succeed(&assignment.attempt_id).await;
    }
    let done = people.finished(&build.id).await;
    assert_eq!(done.state(), v1::BuildState::Succeeded, "{}", done.message);
    assert_eq!(done.published_tags, ["r.example/team/app:1"]);
    assert_eq!(farm.publisher.published.load(Ordering::SeqCst), 1);
    assert_eq!(people.logged_lines(&build.id).await, 2);
    let kept = std::fs::read(directory.path().join("kiln.redb")).expect("the store");
    assert!(!kept.windows(7).any(|window| window == b"hunter2"), "no secret in the clear");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_the_worker_and_ends_the_build() {
    let directory = tempfile::tempdir().expect("a directory");
    let farm = Farm::start(directory.path()).await;
    let mut people = farm.people();
    let mut session = farm.worker("board").await.session(&["linux/amd64"], &[]).await;
    session.welcome().await;
    let build = people.submit(request(&["linux/amd64"])).await.expect("accepted");
    let attempt = session.assignment().await.attempt_id;
    let cancel = v1::CancelBuildRequest { id: build.id.clone(), reason: "changed my mind".into() };
    people.builds.cancel(cancel).await.expect("cancelled");
    let next = session.next().await;
    let Down::Cancel(cancel) = next else { panic!("{next:?} instead of a cancel") };
    assert_eq!(cancel.attempt_id, attempt);
    session.report(&attempt, v1::attempt_report::Outcome::Cancelled(v1::AttemptCancelled {})).await;
    assert_eq!(people.finished(&build.id).await.state(), v1::BuildState::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_is_refused_with_the_platforms_that_the_farm_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let farm = Farm::start(directory.path()).await;
    let mut session = farm.worker("board").await.session(&["linux/arm64"], &[]).await;
    session.welcome().await;
    let status = farm.people().submit(request(&["windows/amd64"])).await.expect_err("refused");
    assert!(status.message().contains("windows/amd64") && status.message().contains("linux/arm64"), "{status:?}");
    let facts = kiln_proto::status::StatusFacts::from(&status);
    assert!(facts.is(kiln_common::Reason::NoWorkerForPlatform));
}
