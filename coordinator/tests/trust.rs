//! Workers that lie, flood or come twice touch nobody else.

mod support;

use kiln_proto::v1::{self, worker_message::Message as Up};
use support::{Farm, message, request, succeeded};

#[tokio::test(flavor = "multi_thread")]
async fn a_report_on_another_worker_s_attempt_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let farm = Farm::start(directory.path()).await;
    let mut people = farm.people();
    let mut honest = farm.worker("honest").await.session(&["linux/amd64"], &[]).await;
    honest.welcome().await;
    let mut liar_worker = farm.worker("liar").await;
    let mut liar = liar_worker.session(&["linux/arm64"], &[]).await;
    liar.welcome().await;
    let build = people.submit(request(&["linux/amd64"])).await.expect("accepted");
    let attempt = honest.assignment().await.attempt_id;

    liar.report(&attempt, succeeded()).await;
    let fetch = v1::FetchContextRequest { attempt_id: attempt.clone(), ..Default::default() };
    let refused = liar_worker.calls.fetch_context(fetch).await.expect_err("not its attempt");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    let batch = v1::LogBatch { attempt_id: attempt.clone(), ..Default::default() };
    let mut acks = liar_worker.calls.logs(tokio_stream::iter([batch])).await.expect("a stream").into_inner();
    assert_eq!(acks.message().await.expect_err("not its log").code(), tonic::Code::PermissionDenied);
    assert!(!people.get(&build.id).await.tasks[0].state().as_str_name().contains("SUCCEEDED"));

    honest.succeed(&attempt).await;
    assert_eq!(people.finished(&build.id).await.state(), v1::BuildState::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_session_of_a_worker_replaces_the_first() {
    let directory = tempfile::tempdir().expect("a directory");
    let farm = Farm::start(directory.path()).await;
    let mut people = farm.people();
    let mut worker = farm.worker("board").await;
    let mut first = worker.session(&["linux/amd64"], &[]).await;
    first.welcome().await;
    let build = people.submit(request(&["linux/amd64"])).await.expect("accepted");
    let attempt = first.assignment().await.attempt_id;
    let mut second = worker.session(&["linux/amd64"], std::slice::from_ref(&attempt)).await;
    assert_eq!(second.welcome().await.adopted_attempt_ids, std::slice::from_ref(&attempt));
    assert!(first.end().await.message().contains("another session"));
    second.succeed(&attempt).await;
    assert_eq!(people.finished(&build.id).await.state(), v1::BuildState::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_floods_its_session_is_disconnected() {
    let directory = tempfile::tempdir().expect("a directory");
    let farm = Farm::start(directory.path()).await;
    let mut session = farm.worker("loud").await.session(&["linux/amd64"], &[]).await;
    session.welcome().await;
    for _ in 0..4 * kiln_common::limits::SESSION_MESSAGES_PER_SECOND {
        if session.say.send(message(Up::Heartbeat(v1::Heartbeat::default()))).await.is_err() {
            break;
        }
    }
    assert_eq!(session.end().await.code(), tonic::Code::ResourceExhausted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_worker_is_turned_away_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let farm = Farm::start(directory.path()).await;
    let mut people = farm.people();
    let mut worker = farm.worker("board").await;
    let mut session = worker.session(&["linux/amd64"], &[]).await;
    session.welcome().await;
    people.farm.remove_worker(v1::RemoveWorkerRequest { id: "board".into() }).await.expect("removed");
    assert!(session.end().await.message().contains("removed"));
    let fetch = v1::FetchContextRequest::default();
    let refused = worker.calls.fetch_context(fetch).await.expect_err("removed");
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}
