//! What the driver promises, with a store that can fail and a farm of no real workers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use kiln_common::{AttemptId, BuildId, BuildSpec, Digest, Grade, ImageReference, Timestamp, WorkerId, limits};
use kiln_proto::v1;
use kiln_scheduler::{
    BuildState, Event, Scheduler, WorkerRecord,
    effect::PublishJob,
    record::{EngineFacts, MachineFacts, WorkerFacts},
};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Driver, Handle, Ledger, Order, Outbox, Parts, PublishOutcome, Publisher, Removed, SessionId, StopCause, Submission,
    SubmitError,
};
use crate::{
    audit::{Trail, Who},
    credentials::{BuildSecrets, RegistryCredential},
    seal::Sealer,
    secrets::SecretStore,
    store::{Change, Entry, MemoryStore, Revision, Store, StoreError, Txn, keys, records},
};

/// Works until it is told to fail; while it is held, each commit waits to be let through.
struct Breakable {
    inner: MemoryStore,
    broken: AtomicBool,
    held: AtomicBool,
    gate: Semaphore,
    commits: AtomicUsize,
}

impl Default for Breakable {
    fn default() -> Self {
        Self {
            inner: MemoryStore::default(),
            broken: AtomicBool::default(),
            held: AtomicBool::default(),
            gate: Semaphore::new(0),
            commits: AtomicUsize::default(),
        }
    }
}

#[async_trait]
impl Store for Breakable {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }

    async fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.inner.range(prefix, after, limit).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        if self.held.load(Ordering::SeqCst) {
            self.gate.acquire().await.expect("never closed").forget();
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(StoreError::Failed { place: "test".into(), problem: "no space left on device".into() });
        }
        self.inner.commit(txn).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }

    fn watch(&self, prefix: &str, from: Revision) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        self.inner.watch(prefix, from)
    }
}

#[derive(Default)]
struct Sent(Mutex<Vec<(SessionId, Order)>>);

impl Outbox for Sent {
    fn send(&self, session: SessionId, order: Order) {
        self.0.lock().expect("sound").push((session, order));
    }
}

struct Never;

#[async_trait]
impl Publisher for Never {
    async fn tags(
        &self,
        _: &[ImageReference],
        _: Vec<RegistryCredential>,
    ) -> Result<BTreeMap<ImageReference, Option<Digest>>, String> {
        Ok(BTreeMap::new())
    }

    async fn remove(
        &self,
        _: &ImageReference,
        _: BTreeSet<Digest>,
        _: Vec<RegistryCredential>,
        _: bool,
    ) -> Result<Removed, String> {
        Err("nothing is removed here".to_owned())
    }

    async fn publish(&self, _: PublishJob, _: Vec<RegistryCredential>, _: CancellationToken) -> PublishOutcome {
        std::future::pending().await
    }
}

struct Bench {
    store: Arc<Breakable>,
    sent: Arc<Sent>,
    handle: Handle,
    ledger: Arc<Ledger>,
    secrets: SecretStore,
    run: JoinHandle<Result<(), StopCause>>,
    worker: WorkerId,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// A driver with one worker for linux/amd64.
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Breakable::default());
        let sent = Arc::new(Sent::default());
        let sealer = Sealer::open_key(&directory.path().join("seal.key")).expect("a key");
        let secrets = SecretStore::new(Arc::clone(&store) as _, Arc::new(sealer));
        let (handle, queue) = Driver::queue(Arc::clone(&store) as _, secrets.clone());
        let (trail, _) = Trail::open(Arc::clone(&store) as _).await.expect("an empty store");
        let ledger = Arc::new(Ledger::default());
        let parts = Parts {
            scheduler: Scheduler::new(kiln_scheduler::Config::default(), 1),
            store: Arc::clone(&store) as _,
            secrets: secrets.clone(),
            outbox: Arc::clone(&sent) as _,
            publisher: Arc::new(Never),
            ledger: Arc::clone(&ledger),
            trail,
        };
        let driver = Driver::restore(parts, handle.clone(), queue).await.expect("an empty store");
        let run = tokio::spawn(driver.run(CancellationToken::new()));
        let worker = WorkerId::generate();
        let bench = Self { store, sent, handle, ledger, secrets, run, worker, _directory: directory };
        bench.handle.send(Event::WorkerEnrolled { worker: record(worker) }).await.expect("enrolled");
        let connected = Event::WorkerConnected { worker, facts: Box::new(facts()), attempts: Vec::new() };
        bench.handle.hear(bench.session(1), connected).await.expect("connected");
        bench.handle.query(|_, _| ()).await.expect("committed");
        bench
    }

    fn session(&self, number: u64) -> SessionId {
        SessionId { worker: self.worker, number }
    }

    async fn submit(&self) -> Result<BuildId, SubmitError> {
        let secrets = BuildSecrets::from_wire([("id".to_owned(), b"hunter2".to_vec())], Vec::new()).expect("sound");
        let submission = Submission { secrets, ..submission() };
        self.handle.submit(submission).await.map(|submitted| submitted.accepted.build)
    }

    /// Of builds that all ask for the same.
    async fn submit_as(&self, password: &str) -> BuildId {
        let credential =
            v1::RegistryCredential { host: "r.example".into(), password: password.into(), ..Default::default() };
        let secrets = BuildSecrets::from_wire([], vec![credential]).expect("sound");
        let submission = Submission { secrets, ..submission() };
        self.handle.submit(submission).await.expect("accepted").accepted.build
    }

    fn assigned(&self) -> Vec<(BuildId, AttemptId)> {
        let sent = self.sent.0.lock().expect("sound");
        let assigned = sent.iter().filter_map(|(_, order)| match order {
            Order::Assign(dispatch) => Some((dispatch.build, dispatch.attempt)),
            Order::Adopted { .. }
            | Order::Settings { .. }
            | Order::Cancel { .. }
            | Order::Acknowledge { .. }
            | Order::Close { .. } => None,
        });
        assigned.collect()
    }

    /// Submits beside the test, and returns once the driver has taken it up as far as it will.
    async fn begin_submit(&self) -> JoinHandle<Result<BuildId, SubmitError>> {
        let handle = self.handle.clone();
        let submission = submission();
        // Unlike all others, or it would follow one of them.
        let spec = BuildSpec { target: Some(submission.build.to_string()), ..spec() };
        let submission = Submission { spec, ..submission };
        let submitting =
            tokio::spawn(async move { handle.submit(submission).await.map(|submitted| submitted.accepted.build) });
        settle().await;
        submitting
    }

    fn orders(&self) -> usize {
        self.sent.0.lock().expect("sound").len()
    }
}

/// Lets every other task of the test's one thread run until it waits.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn record(id: WorkerId) -> WorkerRecord {
    WorkerRecord {
        id,
        name: "board".into(),
        joined_at: Timestamp::now(),
        facts: None,
        labels: Default::default(),
        slots: None,
        cordon: None,
        quarantine: None,
    }
}

fn facts() -> WorkerFacts {
    WorkerFacts {
        platforms: [("linux/amd64".parse().expect("valid"), Grade::Native)].into(),
        slots: 64,
        labels: Default::default(),
        features: Default::default(),
        engine: EngineFacts::default(),
        machine: MachineFacts::default(),
    }
}

fn spec() -> BuildSpec {
    let text = format!(
        r#"{{"context":null,"dockerfile":{{"tree":"{}","filename":"Dockerfile"}},
            "platforms":[{{"platform":"linux/amd64","required":true}}],"tags":["r.example/app:1"],
            "timeout":{{"secs":3600,"nanos":0}},"project":"r.example/app"}}"#,
        "0".repeat(64)
    );
    serde_json::from_str(&text).expect("a spec")
}

fn submission() -> Submission {
    Submission {
        build: BuildId::generate(),
        request_id: None,
        spec: spec(),
        secrets: BuildSecrets::default(),
        who: Who::farm(),
    }
}

#[tokio::test]
async fn nothing_is_acknowledged_or_sent_once_a_commit_fails_and_the_loop_ends() {
    let bench = Bench::new().await;
    let before = bench.orders();
    bench.store.broken.store(true, Ordering::SeqCst);
    assert!(matches!(bench.submit().await, Err(SubmitError::Stopped)));
    assert_eq!(bench.orders(), before, "no effect of the turn was acted on");
    assert!(matches!(bench.run.await.expect("no panic"), Err(StopCause::Commit(_))));
}

#[tokio::test]
async fn what_comes_in_during_a_commit_shares_the_next_one_and_is_told_after_it() {
    let bench = Bench::new().await;
    let (orders, commits) = (bench.orders(), bench.store.commits.load(Ordering::SeqCst));
    bench.store.held.store(true, Ordering::SeqCst);
    let first = bench.begin_submit().await;
    let mut others = Vec::new();
    for _ in 0..10 {
        others.push(bench.begin_submit().await);
    }
    assert_eq!(bench.handle.queue.capacity(), limits::DRIVER_QUEUE, "all are taken up");
    assert_eq!(bench.store.commits.load(Ordering::SeqCst), commits + 1, "one at a time");
    assert!(!first.is_finished() && bench.orders() == orders, "nothing is told before it is durable");

    bench.store.gate.add_permits(1);
    first.await.expect("no panic").expect("accepted");
    settle().await;
    assert!(others.iter().all(|other| !other.is_finished()));
    assert_eq!(bench.orders(), orders + 1, "the first one's assignment");

    bench.store.gate.add_permits(1);
    for other in others {
        other.await.expect("no panic").expect("accepted");
    }
    assert_eq!(bench.store.commits.load(Ordering::SeqCst), commits + 2);
    assert_eq!(bench.orders(), orders + 11);
}

#[tokio::test]
async fn what_was_taken_up_during_a_commit_that_fails_never_reaches_the_store() {
    let bench = Bench::new().await;
    let (orders, commits) = (bench.orders(), bench.store.commits.load(Ordering::SeqCst));
    bench.store.held.store(true, Ordering::SeqCst);
    let (first, second) = (bench.begin_submit().await, bench.begin_submit().await);
    bench.store.broken.store(true, Ordering::SeqCst);
    bench.store.gate.add_permits(1);
    for submitting in [first, second] {
        assert!(matches!(submitting.await.expect("no panic"), Err(SubmitError::Stopped)));
    }
    assert!(matches!(bench.run.await.expect("no panic"), Err(StopCause::Commit(_))));
    assert_eq!(bench.store.commits.load(Ordering::SeqCst), commits + 1);
    assert_eq!(bench.sent.0.lock().expect("sound").len(), orders);
}

#[tokio::test]
async fn a_question_is_answered_once_what_it_saw_is_durable() {
    let bench = Bench::new().await;
    bench.store.held.store(true, Ordering::SeqCst);
    let submitting = bench.begin_submit().await;
    let handle = bench.handle.clone();
    let asking = tokio::spawn(async move { handle.query(|scheduler, _| scheduler.builds().count()).await });
    settle().await;
    assert!(!asking.is_finished());
    bench.store.gate.add_permits(1);
    let build = submitting.await.expect("no panic").expect("accepted");
    assert_eq!(asking.await.expect("no panic").expect("answered"), 1, "{build}");
}

#[tokio::test]
async fn secrets_are_stored_sealed_with_the_build_and_gone_with_its_end() {
    let bench = Bench::new().await;
    let build = bench.submit().await.expect("accepted");
    let kept = bench.store.get(&keys::secrets(build)).await.expect("reads").expect("kept");
    assert!(!kept.value.windows(7).any(|window| window == b"hunter2"));
    bench.handle.send(Event::Cancel { build, reason: "test".into() }).await.expect("cancelled");
    assert_eq!(bench.store.get(&keys::secrets(build)).await.expect("reads"), None);
    assert_eq!(bench.store.get(&keys::open(build)).await.expect("reads"), None);
}

#[tokio::test]
async fn a_build_whose_secrets_are_forgotten_is_not_run_again_without_them() {
    let bench = Bench::new().await;
    let with_secrets = BuildSpec { secret_ids: vec!["id".into()], ..spec() };
    let submission = Submission { spec: with_secrets, ..submission() };
    let build = submission.build;
    bench.handle.submit(submission).await.expect("accepted");
    bench.handle.send(Event::Cancel { build, reason: "test".into() }).await.expect("cancelled");
    let error = bench.handle.retry(Who::farm(), build, &BuildSecrets::default()).await.expect_err("refused");
    assert!(error.to_string().contains("secrets are forgotten; only a new submit"), "{error}");
}

#[tokio::test]
async fn an_inherited_attempt_is_its_heir_s_for_the_worker_and_in_the_store() {
    let bench = Bench::new().await;
    let (first, heir) = (bench.submit_as("hunter2").await, bench.submit_as("hunter2").await);
    let [(build, attempt)] = bench.assigned()[..] else { panic!("{:?}", bench.assigned()) };
    assert_eq!(build, first);
    bench.handle.send(Event::Cancel { build: first, reason: "test".into() }).await.expect("cancelled");
    assert_eq!(bench.ledger.get(attempt).map(|live| live.build), Some(heir));
    let stored = records::attempt(&*bench.store, attempt).await.expect("reads").expect("kept");
    assert_eq!((stored.build, stored.worker), (heir, bench.worker));
    assert!(bench.store.get(&keys::secrets(first)).await.expect("reads").is_none());
    assert!(bench.store.get(&keys::secrets(heir)).await.expect("reads").is_some(), "the attempt has credentials yet");
}

#[tokio::test]
async fn an_attempt_that_is_passed_on_has_credentials_at_every_moment() {
    let bench = Bench::new().await;
    bench.store.held.store(true, Ordering::SeqCst);
    let other = bench.begin_submit().await;
    bench.store.gate.add_permits(2);
    other.await.expect("no panic").expect("accepted");
    let first = bench.submit_as("hunter2").await;
    let (_, attempt) = *bench.assigned().last().expect("assigned");

    // The commit of an earlier turn is on its way while the cancellation is taken up.
    let other = bench.begin_submit().await;
    let (heir, of_first) = tokio::join!(
        async {
            let submitting = bench.submit_as("hunter2");
            let cancelling = bench.handle.send(Event::Cancel { build: first, reason: "test".into() });
            let (heir, cancelled) = tokio::join!(submitting, cancelling);
            cancelled.expect("cancelled");
            heir
        },
        async {
            settle().await;
            let early = bench.secrets.open(first).await.expect("opens");
            bench.store.gate.add_permits(1);
            settle().await;
            let on_its_way = bench.secrets.open(first).await.expect("opens");
            bench.store.gate.add_permits(1);
            [early, on_its_way].map(|secrets| secrets.credentials.len())
        }
    );
    other.await.expect("no panic").expect("accepted");
    assert_eq!(of_first, [1, 1], "until the commit that deletes them");
    assert!(bench.secrets.open(first).await.expect("opens").is_empty());
    assert_eq!(bench.ledger.get(attempt).map(|live| live.build), Some(heir));
    assert!(!bench.secrets.open(heir).await.expect("opens").is_empty());
}

#[tokio::test]
async fn builds_with_other_registry_credentials_share_no_attempt() {
    let bench = Bench::new().await;
    let builds = [bench.submit_as("hunter2").await, bench.submit_as("hunter3").await];
    assert_eq!(bench.assigned().into_iter().map(|(build, _)| build).collect::<Vec<_>>(), builds);
    let record = records::build(&*bench.store, builds[0]).await.expect("reads").expect("kept").build;
    let shown = serde_json::to_string(&record).expect("json");
    assert!(record.credentials.is_some() && !shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn a_watcher_sees_the_build_as_it_is_and_its_end() {
    let bench = Bench::new().await;
    let build = bench.submit().await.expect("accepted");
    let mut watch = bench.handle.watch_build(build).await.expect("watched");
    assert_eq!(watch.next().await.expect("now").expect("holds").build.id, build);
    bench.handle.send(Event::Cancel { build, reason: "test".into() }).await.expect("cancelled");
    let mut last = None;
    while let Some(view) = watch.next().await {
        last = Some(view.expect("holds"));
    }
    assert!(matches!(last.expect("a change").build.state, BuildState::Cancelled { .. }));
}

#[tokio::test]
async fn a_watcher_that_lags_behind_is_dropped_and_told() {
    let bench = Bench::new().await;
    let mut slow = bench.handle.watch_workers().await.expect("watched");
    for _ in 0..=limits::WATCH_QUEUE {
        let event = Event::WorkerHeartbeat { worker: bench.worker, stats: Default::default() };
        bench.handle.send(event).await.expect("handled");
    }
    assert!(slow.next().await.expect("an answer").is_err());
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn the_same_request_id_gives_the_same_build_also_at_once() {
    let bench = Bench::new().await;
    let submit = || {
        let submission = Submission { request_id: Some("once".into()), ..submission() };
        bench.handle.submit(submission)
    };
    let (a, b) = tokio::join!(submit(), submit());
    let (a, b) = (a.expect("accepted"), b.expect("accepted"));
    assert_eq!(a.accepted.build, b.accepted.build);
    assert!(a.existed != b.existed);
    assert!(submit().await.expect("accepted").existed);
}

#[tokio::test]
async fn the_answer_to_a_session_that_was_replaced_reaches_no_other() {
    let bench = Bench::new().await;
    let connected = || Event::WorkerConnected { worker: bench.worker, facts: Box::new(facts()), attempts: Vec::new() };
    // Both are in the queue before either is handled, and the first one says something after the second one began.
    bench.handle.hear(bench.session(2), connected()).await.expect("queued");
    bench.handle.hear(bench.session(3), connected()).await.expect("queued");
    bench.handle.hear(bench.session(2), connected()).await.expect("queued");
    bench.handle.hear(bench.session(2), Event::WorkerDisconnected { worker: bench.worker }).await.expect("queued");
    let build = bench.submit().await.expect("accepted");
    let sent = bench.sent.0.lock().expect("sound").clone();
    let adopted = sent.iter().filter(|(_, order)| matches!(order, Order::Adopted { .. })).map(|(to, _)| to.number);
    assert_eq!(adopted.collect::<Vec<_>>(), [1, 2, 3], "each is answered once");
    let assigned: Vec<_> = sent.iter().filter(|(_, order)| matches!(order, Order::Assign(_))).collect();
    assert!(
        matches!(assigned[..], [(SessionId { number: 3, .. }, Order::Assign(dispatch))] if dispatch.build == build)
    );
}
