//! Workers that lie, flood or come twice touch nobody else.

mod support;

use kiln_proto::v1::{self, worker_message::Message as Up};
use support::{Farm, hello, request};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_a_neighbouring_release_is_let_in_and_a_distant_one_is_told_what_to_update() {
    let ours = kiln_proto::SESSION_PROTOCOLS;
    let directory = tempfile::tempdir().expect("a directory");
    let farm = Farm::start(directory.path()).await;
    let mut worker = farm.worker("board").await;
    let speaks =
        |oldest, newest| v1::Hello { protocol: newest, protocol_oldest: oldest, ..hello(&["linux/amd64"], &[]) };
    let mut newer = worker.session_with(Up::Hello(speaks(ours.newest, ours.newest + 1))).await;
    assert_eq!(newer.welcome().await.protocol, ours.newest);
    let mut older = worker.session_with(Up::Hello(speaks(0, ours.oldest))).await;
    assert_eq!(older.welcome().await.protocol, ours.oldest);
    for (oldest, newest, remedy) in
        [(ours.newest + 1, ours.newest + 2, "update the coordinator"), (0, ours.oldest - 1, "update the worker")]
    {
        let refused = worker.session_with(Up::Hello(speaks(oldest, newest))).await.end().await;
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(remedy), "{refused}");
    }
}
