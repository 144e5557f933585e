//! Builds that ask for the same at the same time: over the real wire, one worker builds each leg once for all of them.

mod support;

use std::{collections::HashMap, sync::atomic::Ordering};

use kiln_proto::v1::{self, attempt_report::Outcome};
use support::{Farm, People, Session, Worker, digest, request};

const AMD64: &str = "linux/amd64";

/// A farm of one worker with four slots: what is not built beside another leg is not for want of room.
struct Bench {
    farm: Farm,
    people: People,
    worker: Worker,
    session: Session,
    _directory: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let farm = Farm::start(directory.path()).await;
        let mut worker = farm.worker("board").await;
        let mut session = worker.session(&[AMD64], &[]).await;
        session.welcome().await;
        Self { people: farm.people(), farm, worker, session, _directory: directory }
    }

    /// A build that differs from the others in its tag alone.
    async fn submit(&mut self, tag: &str) -> String {
        self.people.submit(tagged(tag)).await.expect("accepted").id
    }

    /// Shows that the worker was given nothing that it has not read: a build of its own kind is the next that comes.
    async fn was_given_no_more(&mut self) {
        let mut own = tagged("own");
        let spec = own.spec.as_mut().expect("a spec");
        spec.build_args.insert("KIND".to_owned(), "its own".to_owned());
        let build = self.people.submit(own).await.expect("accepted").id;
        let assignment = self.session.assignment().await;
        assert_eq!(assignment.build_id, build, "no leg that is shared is assigned");
        self.session.succeed(&assignment.attempt_id).await;
        assert_eq!(self.people.finished(&build).await.state(), v1::BuildState::Succeeded);
    }

    fn published(&self) -> usize {
        self.farm.publisher.published.load(Ordering::SeqCst)
    }
}

fn tagged(tag: &str) -> v1::SubmitRequest {
    let mut request = request(&[AMD64]);
    let spec = request.spec.as_mut().expect("a spec");
    spec.tags = vec![format!("r.example/team/app:{tag}")];
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn identical_legs_in_flight_are_built_once_and_each_build_publishes_its_own_tags() {
    let mut bench = Bench::start().await;
    let first = bench.submit("1").await;
    let attempt = bench.session.assignment().await.attempt_id;
    bench.session.report(&attempt, Outcome::Started(v1::AttemptStarted {})).await;
    let (second, third) = (bench.submit("2").await, bench.submit("3").await);
    bench.was_given_no_more().await;
    for build in [&second, &third] {
        let task = &bench.people.get(build).await.tasks[0];
        assert_eq!((&task.attempt_id, &task.shared_with), (&attempt, &first));
        assert_eq!((task.state(), task.worker_name.as_str()), (v1::TaskState::Running, "board"));
    }

    bench.worker.log_a_line(&attempt).await;
    bench.session.claim(&attempt, support::succeeded()).await;
    for (build, tag) in [(&first, "1"), (&second, "2"), (&third, "3")] {
        let done = bench.people.finished(build).await;
        assert_eq!(done.state(), v1::BuildState::Succeeded, "{}", done.message);
        assert_eq!(done.published_tags, [format!("r.example/team/app:{tag}")]);
        let task = &done.tasks[0];
        assert_eq!((&task.attempt_id, task.digest.as_str()), (&attempt, digest().to_string().as_str()));
        assert_eq!(bench.people.logged_lines(build).await, 1, "the log of the attempt is every build's");
    }
    assert_eq!(bench.published(), 4, "the three and the one that shows that no more came");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_goes_on_for_who_shares_it_when_the_build_that_began_it_is_cancelled() {
    let mut bench = Bench::start().await;
    let first = bench.submit("1").await;
    let attempt = bench.session.assignment().await.attempt_id;
    let second = bench.submit("2").await;
    let cancel = v1::CancelBuildRequest { id: first.clone(), reason: "changed my mind".into() };
    bench.people.builds.cancel(cancel).await.expect("cancelled");
    assert_eq!(bench.people.finished(&first).await.state(), v1::BuildState::Cancelled);
    // A cancel would come before this.
    bench.was_given_no_more().await;

    bench.session.succeed(&attempt).await;
    let done = bench.people.finished(&second).await;
    assert_eq!((done.state(), &done.tasks[0].attempt_id), (v1::BuildState::Succeeded, &attempt));
    assert_eq!(bench.people.get(&first).await.state(), v1::BuildState::Cancelled);
    assert_eq!(bench.published(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_users_own_ends_every_build_that_shares_the_leg() {
    let mut bench = Bench::start().await;
    let builds = [bench.submit("1").await, bench.submit("2").await];
    let attempt = bench.session.assignment().await.attempt_id;
    let kind = v1::FailureKind::Build.into();
    let failed = v1::AttemptFailed { kind, message: "RUN false exited with 1".into(), log_entries: 0 };
    bench.session.claim(&attempt, Outcome::Failed(failed)).await;
    for build in &builds {
        let done = bench.people.finished(build).await;
        assert_eq!(done.state(), v1::BuildState::Failed);
        assert!(done.message.contains("RUN false exited with 1"), "{}", done.message);
    }
    bench.was_given_no_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_with_a_secret_shares_with_nobody() {
    let mut bench = Bench::start().await;
    bench.submit("1").await;
    let open = bench.session.assignment().await;
    for tag in ["2", "3"] {
        let secrets = HashMap::from([("npm".to_owned(), b"hunter2".to_vec())]);
        let submit = v1::SubmitRequest { secrets, ..tagged(tag) };
        let build = bench.people.submit(submit).await.expect("accepted").id;
        let assignment = bench.session.assignment().await;
        assert_eq!(assignment.build_id, build);
        assert_ne!(assignment.attempt_id, open.attempt_id);
    }
}
