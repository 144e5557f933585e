//! How a worker joins a farm, and which farms and tokens it refuses or is refused by.

mod support;

use std::{os::unix::fs::PermissionsExt, time::Duration};

use kiln_common::runtime::{JoinToken, Shutdown};
use kiln_worker::{Worker, enroll};
use support::{PATIENCE, config, coordinator::Coordinator, engine::ScriptedEngine, worker};

#[tokio::test]
async fn the_first_start_joins_and_the_next_needs_no_token() {
    let coordinator = Coordinator::start().await;
    let worker = worker(&coordinator, &ScriptedEngine::new(), 1).await;
    let file = worker.data_dir.path().join("identity.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    worker.shutdown.drain();
    worker.running.await.unwrap().expect("a clean end");
    let again = enroll::identity(worker.data_dir.path(), None, &[], "w").await.expect("stored");
    assert_eq!(again.name, "test-worker");
    assert_eq!(coordinator.seen().enrolled, 1);
}

#[tokio::test]
async fn a_wrong_token_is_refused_with_the_remedy() {
    let coordinator = Coordinator::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = JoinToken { secret: [8; 32], ..coordinator.token() };
    let error = enroll::join(folder.path(), &token, &[], "w").await.expect_err("refused").to_string();
    assert!(error.contains("the token is unknown") && error.contains("kiln workers token create"), "{error}");
    assert!(enroll::Identity::load(folder.path()).unwrap().is_none());
}

#[tokio::test]
async fn a_token_is_never_shown_to_a_farm_with_another_ca() {
    let (ours, foreign) = (Coordinator::start().await, Coordinator::start().await);
    let folder = tempfile::tempdir().unwrap();
    let token = JoinToken { coordinators: vec![foreign.address()], ..ours.token() };
    let joining = enroll::join(folder.path(), &token, &[], "w");
    assert!(tokio::time::timeout(Duration::from_secs(1), joining).await.is_err(), "it keeps looking for its own farm");
    assert_eq!(foreign.seen().enrolled, 0);
}

#[tokio::test]
async fn a_session_with_another_ca_never_opens() {
    let (ours, foreign) = (Coordinator::start().await, Coordinator::start().await);
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&ours, folder.path(), 1);
    let identity = enroll::identity(folder.path(), config.join_token.as_ref(), &[], "w").await.unwrap();
    config.coordinators = vec![foreign.address(), ours.address()];
    let worker = Worker::new(config, identity, ScriptedEngine::new()).await.unwrap();
    let running = tokio::spawn(worker.run(Shutdown::new()));
    ours.until("the session with its own farm", |seen| seen.heartbeats > 0).await;
    assert!(foreign.seen().hellos.is_empty());
    running.abort();
}

#[tokio::test]
async fn a_removed_worker_says_so_and_gives_up() {
    let coordinator = Coordinator::start().await;
    coordinator.seen().refuses_sessions = true;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&coordinator, folder.path(), 1);
    let identity = enroll::identity(folder.path(), config.join_token.as_ref(), &[], "w").await.unwrap();
    let worker = Worker::new(config, identity, ScriptedEngine::new()).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, worker.run(Shutdown::new())).await.expect("it gives up");
    let error = ended.expect_err("an error").to_string();
    assert!(error.contains("this worker was removed") && error.contains("--join-token-file"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_renewed_without_dropping_the_session() {
    let coordinator = Coordinator::start().await;
    coordinator.seen().renew_after = Duration::from_millis(300);
    let worker = worker(&coordinator, &ScriptedEngine::new(), 1).await;
    let before = enroll::Identity::load(worker.data_dir.path()).unwrap().expect("stored");
    coordinator.until("two renewals", |seen| seen.enrolled >= 3).await;
    let after = enroll::Identity::load(worker.data_dir.path()).unwrap().expect("stored");
    assert_eq!(before.worker_id, after.worker_id);
    assert_eq!(coordinator.seen().hellos.len(), 1);
}
