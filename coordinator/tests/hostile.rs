//! Workers and strangers who do what they may not, while a good build runs: each is refused with a reason in the audit
//! trail, and the good build ends as if nothing had been.

mod support;

use kiln_common::{limits, runtime::JoinToken};
use kiln_proto::v1::{self, attempt_report::Outcome, worker_message::Message as Up};
use support::{Farm, People, Session, Worker, hello, message, never_pushed, request, soon, succeeded};
use tokio_stream::StreamExt as _;

/// Who was refused what, and from where.
struct Told {
    kind: String,
    actor: String,
    object: String,
    source: String,
}

/// A farm in which an honest worker builds.
struct Bench {
    farm: Farm,
    people: People,
    honest: Session,
    build: String,
    attempt: String,
    directory: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let farm = Farm::start(directory.path()).await;
        let mut people = farm.people();
        let mut honest = farm.worker("honest").await.session(&["linux/amd64"], &[]).await;
        honest.welcome().await;
        let build = people.submit(request(&["linux/amd64"])).await.expect("accepted").id;
        let attempt = honest.assignment().await.attempt_id;
        Self { farm, people, honest, build, attempt, directory }
    }

    /// A worker that holds nothing, with its session.
    async fn rogue(&self) -> (Worker, Session) {
        let mut worker = self.farm.worker("rogue").await;
        let mut session = worker.session(&["linux/s390x"], &[]).await;
        session.welcome().await;
        (worker, session)
    }

    /// A rogue claims this of its attempt; an honest worker then builds the leg at its second one. Returns the rogue and the
    /// attempt that it had.
    async fn built_elsewhere_after(&mut self, claim: v1::AttemptSucceeded) -> (String, String) {
        let mut rogue = self.farm.worker("rogue").await;
        let mut session = rogue.session(&["linux/riscv64"], &[]).await;
        session.welcome().await;
        let build = self.people.submit(request(&["linux/riscv64"])).await.expect("accepted").id;
        let attempt = session.assignment().await.attempt_id;
        let mut honest = self.farm.worker("second").await.session(&["linux/riscv64"], &[]).await;
        honest.welcome().await;
        session.claim(&attempt, Outcome::Succeeded(claim)).await;
        let again = honest.assignment().await.attempt_id;
        honest.succeed(&again).await;
        let done = self.people.finished(&build).await;
        assert_eq!((done.state(), done.tasks[0].attempts), (v1::BuildState::Succeeded, 2));
        // This publish and the good build's.
        self.farm.publisher.published.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        (rogue.id, attempt)
    }

    /// The refusal under this action whose detail says all of `words`.
    async fn refused(&mut self, action: &str, words: &[&str]) -> Told {
        let refusals = self.people.refusals(action).await;
        let found = refusals.iter().find(|entry| words.iter().all(|word| entry.detail.contains(word)));
        let found = found.unwrap_or_else(|| panic!("no {action} with {words:?} among {refusals:#?}"));
        let (actor, object) = (found.actor.clone().expect("an actor"), found.object.clone().expect("an object"));
        Told { kind: actor.kind, actor: actor.id, object: object.id, source: found.source.clone() }
    }

    /// Whatever went on, the good build ends well at its first attempt.
    async fn finish(&mut self) {
        self.honest.succeed(&self.attempt).await;
        let done = self.people.finished(&self.build).await;
        assert_eq!((done.state(), done.tasks[0].attempts), (v1::BuildState::Succeeded, 1), "{}", done.message);
        let published = self.farm.publisher.published.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(published, 1);
    }
}

fn plain() -> rcgen::CertificateParams {
    rcgen::CertificateParams::default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_that_is_expired_used_revoked_foreign_or_forged_lets_nobody_in() {
    let mut bench = Bench::start().await;
    let ttl = Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 });
    let make = v1::CreateJoinTokenRequest { ttl, ..Default::default() };
    let expired = bench.people.farm.create_join_token(make).await.expect("made").into_inner();
    let used = bench.people.join_token().await;
    Worker::join(&used, "first").await;
    let make = v1::CreateJoinTokenRequest { uses: 5, ..Default::default() };
    let revoked = bench.people.farm.create_join_token(make).await.expect("made").into_inner();
    let revoke = v1::RevokeJoinTokenRequest { id: revoked.id.clone() };
    bench.people.farm.revoke_join_token(revoke).await.expect("revoked");
    let own: JoinToken = used.parse().expect("a token");
    let forged = JoinToken { secret: [1; 32], ..own.clone() }.to_string();
    // One that trusts this farm for its fingerprint, but says that it is another's.
    let elsewhere = tempfile::tempdir().expect("a directory");
    let other = Farm::start(elsewhere.path()).await;
    let foreign: JoinToken = other.people().join_token().await.parse().expect("a token");
    let foreign = JoinToken { coordinators: own.coordinators.clone(), ..foreign };

    for (token, why) in [
        (expired.token.as_str(), "it has expired"),
        (used.as_str(), "all its uses are taken"),
        (revoked.token.as_str(), "it was revoked"),
        (forged.as_str(), "the farm does not know it"),
    ] {
        let refused = Worker::try_join(token, "late", plain()).await.err().expect("refused");
        assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused:?}");
        assert!(refused.message().contains(why), "{refused:?}");
        let told = bench.refused("worker.join", &[why]).await;
        assert_eq!((told.source.as_str(), told.kind.as_str()), ("127.0.0.1", "unknown"));
    }
    assert_eq!(bench.refused("worker.join", &["it was revoked"]).await.object, revoked.id);
    // An honest client refuses the wrong farm by itself; one that does not check is refused by the farm.
    let refused = Worker::try_join(&foreign.to_string(), "lost", plain()).await.err().expect("refused");
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    let unchecked = JoinToken { ca_fingerprint: own.ca_fingerprint, ..foreign.clone() }.to_string();
    let mut stranger = Worker::join(&bench.people.join_token().await, "stranger").await;
    for token in [foreign.to_string(), unchecked, "kiln-join-AAAA".to_owned()] {
        let csr = plain().serialize_request(&rcgen::KeyPair::generate().expect("a key")).expect("a request");
        let request = v1::EnrollRequest { join_token: token, csr_der: csr.der().to_vec(), name: "x".into() };
        let refused = stranger.calls.enroll(request).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused:?}");
    }
    bench.refused("worker.join", &["another farm's"]).await;
    bench.refused("worker.join", &["malformed"]).await;
    let workers = bench.people.farm.list_workers(v1::ListWorkersRequest {}).await.expect("listed").into_inner();
    assert_eq!(workers.workers.len(), 3, "only those with good tokens");
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_farm_opens_no_connection() {
    let mut bench = Bench::start().await;
    let elsewhere = tempfile::tempdir().expect("a directory");
    let other = Farm::start(elsewhere.path()).await;
    let own = bench.farm.worker("own").await;
    let foreign = other.worker("foreign").await;
    let mut foreign = foreign.with_trust_of(&own, &bench.farm.running.endpoint);
    let fetch = v1::FetchContextRequest { attempt_id: bench.attempt.clone(), ..Default::default() };
    soon("a refusal", foreign.calls.fetch_context(fetch)).await.expect_err("no connection");
    bench.refused("connection.open", &["client's certificate", "UnknownIssuer"]).await;
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_asks_for_another_s_name_gets_its_own_and_can_not_act_for_the_other() {
    let mut bench = Bench::start().await;
    let victim = bench.farm.worker("victim").await;
    let mut params = plain();
    params.distinguished_name.push(rcgen::DnType::CommonName, victim.id.as_str());
    params.subject_alt_names.push(rcgen::SanType::DnsName("localhost".try_into().expect("a name")));
    let token = bench.people.join_token().await;
    let mut thief = Worker::try_join(&token, "victim", params).await.expect("lets it in under its own id");
    assert!(thief.id != victim.id && thief.name != victim.name);

    // It announces the honest worker's attempt as its own.
    let attempts = std::slice::from_ref(&bench.attempt);
    let mut session = thief.session(&["linux/amd64"], attempts).await;
    assert!(session.welcome().await.adopted_attempt_ids.is_empty());
    let told = bench.refused("worker.report", &["announces", "another worker's"]).await;
    assert_eq!((told.actor, told.object), (thief.id, bench.attempt.clone()));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_on_an_attempt_that_is_not_the_worker_s_changes_nothing() {
    let mut bench = Bench::start().await;
    let (mut rogue, mut session) = bench.rogue().await;
    let never_made = kiln_common::AttemptId::generate().to_string();
    let failed = v1::AttemptFailed { kind: v1::FailureKind::Build.into(), message: "mine".into(), log_entries: 0 };
    session.claim(&bench.attempt, succeeded()).await;
    session.claim(&bench.attempt, Outcome::Failed(failed)).await;
    session.claim(&never_made, succeeded()).await;
    for (attempt, why) in [(bench.attempt.clone(), "another worker's"), (never_made, "never made")] {
        let told = bench.refused("worker.report", &[why]).await;
        assert_eq!((told.actor, told.object), (rogue.id.clone(), attempt));
    }

    let fetch = v1::FetchContextRequest { attempt_id: bench.attempt.clone(), ..Default::default() };
    let refused = rogue.calls.fetch_context(fetch).await.expect_err("not its attempt");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    bench.refused("worker.fetch", &["not this worker's"]).await;
    let frame = v1::AgentFrame { id: bench.attempt.clone(), ssh_id: "default".into(), ..Default::default() };
    let refused = rogue.calls.forward_agent(tokio_stream::iter([frame])).await.expect_err("not its attempt");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    let batch = v1::LogBatch { attempt_id: bench.attempt.clone(), ..Default::default() };
    assert_eq!(end_of_log(&mut rogue, vec![batch]).await.code(), tonic::Code::PermissionDenied);
    bench.refused("worker.log", &["not given to this worker"]).await;
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_whose_report_does_not_read_is_built_elsewhere() {
    let mut bench = Bench::start().await;
    let garbled = v1::AttemptSucceeded { digest: "sha256:../../etc".into(), size_bytes: 1, ..Default::default() };
    let (rogue, attempt) = bench.built_elsewhere_after(garbled).await;
    let told = bench.refused("worker.report", &["sha256:../../etc"]).await;
    assert_eq!((told.actor, told.object), (rogue, attempt));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_is_not_in_the_registry_is_built_elsewhere_and_its_worker_named() {
    let mut bench = Bench::start().await;
    let Outcome::Succeeded(good) = succeeded() else { panic!("not a success") };
    let invented = v1::AttemptSucceeded { digest: never_pushed().to_string(), ..good };
    let (rogue, attempt) = bench.built_elsewhere_after(invented).await;
    let told = bench.refused("worker.report", &["not in the registry", "does not exist"]).await;
    assert_eq!((told.actor, told.object), (rogue, attempt));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_begins_wrong_is_refused_with_the_reason() {
    let mut bench = Bench::start().await;
    let mut rogue = bench.farm.worker("rogue").await;
    let good = || hello(&["linux/s390x"], &[]);
    let too_many = (0..=limits::WORKER_PLATFORMS).map(|_| v1::WorkerPlatform::default()).collect();
    let absurd = v1::WorkerPlatform { platform: "linux/pdp11/../..".into(), grade: v1::Grade::Native.into() };
    for (first, why) in [
        (Up::Heartbeat(v1::Heartbeat::default()), "must be a Hello"),
        (Up::Hello(v1::Hello { protocol: 0, ..good() }), "update the worker"),
        (Up::Hello(v1::Hello { slots: 0, ..good() }), "0 slots"),
        (Up::Hello(v1::Hello { slots: 100_000, ..good() }), "100000 slots"),
        (Up::Hello(v1::Hello { platforms: too_many, ..good() }), "more than"),
        (Up::Hello(v1::Hello { platforms: vec![absurd], ..good() }), "linux/pdp11"),
        (Up::Hello(v1::Hello { attempt_ids: vec!["; drop table".into()], ..good() }), "; drop table"),
    ] {
        let ended = rogue.session_with(first).await.end().await;
        assert!(ended.message().contains(why), "{ended:?}");
        assert_eq!(bench.refused("worker.session", &[why]).await.actor, rogue.id);
    }
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_floods_or_sends_giants_is_cut_off() {
    let mut bench = Bench::start().await;
    let leaving = message(Up::Leaving(v1::Leaving { reason: "x".into() }));
    let beat = message(Up::Heartbeat(v1::Heartbeat::default()));
    let giant = message(Up::Leaving(v1::Leaving { reason: "x".repeat(limits::MESSAGE_BYTES) }));
    for (messages, why) in [
        (vec![leaving; 4 * limits::SESSION_MESSAGES_PER_SECOND as usize], "more messages"),
        (vec![beat; 4 * limits::HEARTBEATS_PER_SECOND as usize], "more heartbeats"),
        (vec![giant], "too large"),
    ] {
        let (rogue, mut session) = bench.rogue().await;
        for message in messages {
            if session.say.send(message).await.is_err() {
                break;
            }
        }
        let ended = session.end().await;
        assert!(ended.message().contains(why), "{ended:?}");
        assert_eq!(bench.refused("worker.session", &[why]).await.actor, rogue.id);
    }
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_floods_or_sends_giants_is_cut_off() {
    let mut bench = Bench::start().await;
    let mut rogue = bench.farm.worker("rogue").await;
    let mut session = rogue.session(&["linux/riscv64"], &[]).await;
    session.welcome().await;
    let build = bench.people.submit(request(&["linux/riscv64"])).await.expect("accepted").id;
    let attempt_id = session.assignment().await.attempt_id;
    let batch =
        |entries: Vec<v1::ProgressEntry>| v1::LogBatch { attempt_id: attempt_id.clone(), first_sequence: 0, entries };
    let line = |bytes: usize| {
        let line = v1::LogLine { text: vec![b'x'; bytes], ..Default::default() };
        v1::ProgressEntry { time: None, event: Some(v1::progress_entry::Event::Line(line)) }
    };
    let many = batch(vec![v1::ProgressEntry::default(); limits::LOG_BATCH_ENTRIES + 1]);
    assert!(end_of_log(&mut rogue, vec![many]).await.message().contains("at most"));
    bench.refused("worker.log", &["at most 512 entries"]).await;
    let long = batch(vec![line(2 * limits::LOG_BATCH_BYTES)]);
    assert!(end_of_log(&mut rogue, vec![long]).await.message().contains("at most"));
    let giant = batch(vec![line(limits::MESSAGE_BYTES)]);
    end_of_log(&mut rogue, vec![giant]).await;
    bench.refused("worker.log", &["too large"]).await;
    let flood = vec![batch(Vec::new()); 4 * limits::LOG_BATCHES_PER_SECOND as usize];
    let ended = end_of_log(&mut rogue, flood).await;
    assert_eq!(ended.code(), tonic::Code::ResourceExhausted, "{ended:?}");
    assert_eq!(bench.refused("worker.log", &["more messages"]).await.actor, rogue.id);

    // Its build is not touched by its logs.
    session.succeed(&attempt_id).await;
    assert_eq!(bench.people.finished(&build).await.state(), v1::BuildState::Succeeded);
    bench.farm.publisher.published.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_without_the_right_token_or_certificate_are_written_down() {
    let mut bench = Bench::start().await;
    let make = v1::CreateApiTokenRequest { name: "eyes".into(), role: v1::Role::Viewer.into(), ttl: None };
    let viewer = bench.people.farm.create_api_token(make).await.expect("made").into_inner();
    for (secret, kind, why) in
        [(viewer.secret.as_str(), "token", "needs admin"), ("kiln_guessed", "unknown", "unknown, expired or revoked")]
    {
        let file = bench.directory.path().join("token");
        std::fs::write(&file, secret).expect("written");
        let mut caller = People::connect(&bench.farm.running.endpoint, &bench.farm.running.ca_file, &file);
        caller.farm.list_audit(v1::ListAuditRequest::default()).await.expect_err("not allowed");
        let told = bench.refused("call.admit", &[why]).await;
        assert_eq!(told.object, "/kiln.v1.FarmService/ListAudit");
        assert_eq!((told.kind.as_str(), told.source.as_str()), (kind, "127.0.0.1"));
    }
    let mut removed = bench.farm.worker("removed").await;
    let remove = v1::RemoveWorkerRequest { id: "removed".into() };
    bench.people.farm.remove_worker(remove).await.expect("removed");
    removed.calls.fetch_context(v1::FetchContextRequest::default()).await.expect_err("removed");
    assert_eq!(bench.refused("call.admit", &["was removed"]).await.actor, removed.id);
    removed.renew().await.expect_err("removed");
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refusals_is_counted_and_leaves_the_trail_readable() {
    let mut bench = Bench::start().await;
    let file = bench.directory.path().join("token");
    std::fs::write(&file, "kiln_guessed").expect("written");
    let guesser = People::connect(&bench.farm.running.endpoint, &bench.farm.running.ca_file, &file);
    for _ in 0..500 {
        let request = v1::ListBuildsRequest::default();
        guesser.clone().builds.list(request).await.expect_err("not allowed");
    }
    let written = bench.people.refusals("call.admit").await.len();
    assert_eq!(written, limits::AUDIT_REFUSALS_PER_MINUTE as usize);
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_and_workers_did_is_in_the_trail_in_order() {
    let mut bench = Bench::start().await;
    let farm = &mut bench.people.farm;
    let id = || "honest".to_owned();
    farm.cordon(v1::CordonRequest { id: id(), cordoned: true, reason: "noisy".into() }).await.expect("cordoned");
    farm.cordon(v1::CordonRequest { id: id(), ..Default::default() }).await.expect("uncordoned");
    farm.drain(v1::DrainRequest { id: id(), reason: "new fan".into() }).await.expect("draining");
    let set_labels = [("rack".to_owned(), "b".to_owned())].into();
    let update = v1::UpdateWorkerRequest { id: id(), set_labels, remove_labels: vec!["old".into()], slots: 3 };
    farm.update_worker(update).await.expect("updated");
    let make = v1::CreateApiTokenRequest { name: "ci".into(), role: v1::Role::Submitter.into(), ttl: None };
    let token = farm.create_api_token(make).await.expect("made").into_inner().token.expect("a token");
    farm.revoke_api_token(v1::RevokeApiTokenRequest { id: token.id }).await.expect("revoked");
    farm.remove_worker(v1::RemoveWorkerRequest { id: "nobody".into() }).await.expect_err("no such worker");
    let mut extra = bench.farm.worker("extra").await;
    extra.renew().await.expect("renewed");
    let mut session = extra.session(&["linux/riscv64"], &[]).await;
    session.welcome().await;
    let cancelled = bench.people.submit(request(&["linux/riscv64"])).await.expect("accepted").id;
    let cancel = v1::CancelBuildRequest { id: cancelled.clone(), reason: "enough".into() };
    bench.people.builds.cancel(cancel).await.expect("cancelled");
    bench
        .people
        .builds
        .retry(v1::RetryBuildRequest { id: cancelled.clone(), ..Default::default() })
        .await
        .expect("again");
    bench.people.farm.remove_worker(v1::RemoveWorkerRequest { id: "extra".into() }).await.expect("removed");

    let mut trail = bench.people.audit().await;
    trail.reverse();
    let told: Vec<String> = trail
        .iter()
        .map(|entry| {
            let actor = entry.actor.clone().unwrap_or_default().kind;
            let outcome = if entry.outcome() == v1::AuditOutcome::Done { "" } else { "! " };
            format!("{outcome}{actor} {}: {}", entry.action, entry.detail)
        })
        .collect();
    let start = told.iter().position(|line| line.contains("worker.cordon")).expect("the first");
    let token_id = |line: &String| line.split("join token ").next().expect("one part").to_owned();
    assert_eq!(
        told[start..].iter().map(token_id).collect::<Vec<_>>(),
        [
            "token worker.cordon: noisy",
            "token worker.uncordon: ",
            "token worker.drain: new fan",
            "token worker.update: slots=3",
            "token worker.update: rack=b old-",
            "token token.create: submitter `ci`",
            "token token.revoke: submitter `ci`",
            "! token worker.remove: there is no worker `nobody`",
            "worker worker.join: joined as `extra` with the ",
            "worker worker.renew: ",
            "token build.submit: ",
            "token build.cancel: enough",
            "token build.retry: ",
            "token worker.remove: it was `extra`",
            "token join-token.create: ",
        ]
    );
    let objects = |action: &str| {
        let of = trail.iter().filter(|entry| entry.action == action).filter_map(|entry| entry.object.clone());
        of.map(|object| object.id).collect::<Vec<_>>()
    };
    assert_eq!(objects("build.submit"), [bench.build.clone(), cancelled.clone()]);
    assert_eq!(objects("build.cancel"), [cancelled]);
    let v1::coordinator_message::Message::Settings(settings) = bench.honest.next().await else { panic!("no settings") };
    assert_eq!(settings.slots, 3);
    bench.finish().await;
    let moved = bench.people.audit().await;
    let moved: Vec<_> = moved.iter().filter(|entry| entry.action == "tag.move").collect();
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].object.clone().expect("an object").id, "r.example/team/app:1");
}

/// The status with which the farm ends a log stream that sends these.
async fn end_of_log(worker: &mut Worker, batches: Vec<v1::LogBatch>) -> tonic::Status {
    let open = tokio_stream::iter(batches).chain(tokio_stream::pending());
    let mut acks = match soon("an answer", worker.calls.logs(open)).await {
        Ok(acks) => acks.into_inner(),
        Err(status) => return status,
    };
    loop {
        match soon("an acknowledgement", acks.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => return tonic::Status::ok("ended"),
            Err(status) => return status,
        }
    }
}
