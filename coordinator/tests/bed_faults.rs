//! Publishes through a registry that fails at random, in front of the bed's real one. Each ends complete or says what it left;
//! none leaves a tag moved that it does not own up to, and a retry completes what was reported.
//!
//! `KILN_PUBLISHES` says how many (60 unless set; 1000 for the long run), `KILN_SEED` repeats a run.

mod registry;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Method, Response, StatusCode, Uri},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use kiln_common::Digest;
use kiln_coordinator::{
    driver::{PublishOutcome, Publisher},
    publish::RegistryPublisher,
};
use kiln_scheduler::{
    effect::{Leg, PublishJob},
    record::Published,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use registry::{FOUR, Registry, job, sha256, spec, unique};
use tokio_util::sync::CancellationToken;

const AT_ONCE: usize = 16;
/// Of a hundred requests these many go wrong.
const FAULTS_PERCENT: u32 = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    TooMany,
    TooManyWait,
    Broken,
    /// The request takes effect, its answer does not arrive.
    LostAnswer,
    HalfBody,
    OtherBody,
    NotYetThere,
    Trickle,
    /// Not only this time: a tag that this user may not write.
    Denied,
    /// Someone else moves the tag right after.
    MovedAway,
}

struct Proxy {
    upstream: Registry,
    random: Mutex<StdRng>,
    seen: Mutex<BTreeMap<Fault, usize>>,
    /// While it is set nothing goes wrong.
    is_calm: Mutex<bool>,
    children_written: AtomicUsize,
}

impl Proxy {
    async fn start(seed: u64) -> Option<(Arc<Self>, String)> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let host = listener.local_addr().expect("address").to_string();
        let proxy = Arc::new(Self {
            upstream: Registry::open()?,
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            seen: Mutex::default(),
            is_calm: Mutex::default(),
            children_written: AtomicUsize::new(0),
        });
        let router = Router::new().fallback(handle).with_state(Arc::clone(&proxy));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Some((proxy, host))
    }

    fn pick(&self, method: &Method, path: &str) -> Option<Fault> {
        let is_tag = !path.contains("sha256:");
        let mut random = self.random.lock().expect("sound");
        if *self.is_calm.lock().expect("sound") || random.random_ratio(100 - FAULTS_PERCENT, 100) {
            return None;
        }
        let fault = match (method, random.random_range(0..100)) {
            (_, 0..20) => Fault::TooMany,
            (_, 20..22) => Fault::TooManyWait,
            (_, 22..50) => Fault::Broken,
            (&Method::PUT, 50..75) => Fault::LostAnswer,
            (&Method::PUT, 75..78) if is_tag => Fault::Denied,
            (&Method::PUT, 78..80) if is_tag => Fault::MovedAway,
            (&Method::GET, 50..65) => Fault::HalfBody,
            (&Method::GET, 65..75) => Fault::OtherBody,
            (&Method::GET, 75..90) => Fault::Trickle,
            (&Method::GET | &Method::HEAD, _) if !is_tag => Fault::NotYetThere,
            _ => Fault::Broken,
        };
        *self.seen.lock().expect("sound").entry(fault).or_default() += 1;
        Some(fault)
    }

    async fn forward(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> (u16, HeaderMap, Bytes) {
        let url = format!("http://{}{uri}", self.upstream.host);
        let mut request = self.upstream.client.request(method.clone(), url).body(body);
        for name in ["accept", "content-type"] {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value.clone());
            }
        }
        let response = request.send().await.expect("the real registry");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        (status, headers, response.bytes().await.expect("its body"))
    }
}

async fn handle(
    State(proxy): State<Arc<Proxy>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let path = uri.path().to_owned();
    if matches!(method, Method::POST | Method::PATCH) || (method == Method::PUT && path.contains("/blobs/")) {
        proxy.children_written.fetch_add(1, Ordering::SeqCst);
    }
    let fault = proxy.pick(&method, &path);
    match fault {
        Some(Fault::TooMany) => return plain(429, &[]),
        Some(Fault::TooManyWait) => return plain(429, &[("retry-after", "1")]),
        Some(Fault::Broken) => return plain(500, &[]),
        Some(Fault::Denied) => return plain(403, &[]),
        Some(Fault::NotYetThere) => return plain(404, &[]),
        Some(Fault::LostAnswer | Fault::HalfBody | Fault::OtherBody | Fault::Trickle | Fault::MovedAway) | None => {}
    }
    let (status, answer_headers, answer) = proxy.forward(&method, &uri, &headers, body).await;
    let mut builder = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
    for name in ["content-type", "docker-content-digest", "location"] {
        if let Some(value) = answer_headers.get(name) {
            builder = builder.header(name, value.clone());
        }
    }
    let body = match fault {
        Some(Fault::LostAnswer) => return reset(Bytes::new(), 10),
        Some(Fault::HalfBody) if answer.len() > 1 => return reset(answer.slice(..answer.len() / 2), answer.len()),
        Some(Fault::OtherBody) => Body::from("{\"other\":\"content\"}"),
        Some(Fault::Trickle) => {
            let pieces: Vec<Bytes> = answer.chunks(answer.len() / 8 + 1).map(Bytes::copy_from_slice).collect();
            Body::from_stream(stream::iter(pieces).then(|piece| async move {
                tokio::time::sleep(Duration::from_millis(15)).await;
                Ok::<_, std::io::Error>(piece)
            }))
        }
        Some(Fault::MovedAway) => {
            let stranger = Bytes::from_static(
                br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
            );
            let mut headers = HeaderMap::new();
            headers.insert("content-type", "application/vnd.oci.image.index.v1+json".parse().expect("a value"));
            proxy.forward(&Method::PUT, &uri, &headers, stranger).await;
            Body::empty()
        }
        _ if method == Method::HEAD => Body::empty(),
        _ => Body::from(answer),
    };
    builder.body(body).expect("a response")
}

fn plain(status: u16, headers: &[(&str, &str)]) -> Response<Body> {
    let builder = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
    headers
        .iter()
        .fold(builder, |builder, (name, value)| builder.header(*name, *value))
        .body(Body::empty())
        .expect("sound")
}

/// Fewer bytes than promised, then the end.
fn reset(bytes: Bytes, promised: usize) -> Response<Body> {
    let cut = stream::iter([Ok(bytes), Err(std::io::Error::other("reset"))]);
    Response::builder().header("content-length", promised + 1).body(Body::from_stream(cut)).expect("sound")
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What is right after a publish: each tag names the result exactly where the outcome says so.
async fn agrees(registry: &Registry, job: &PublishJob, outcome: &PublishOutcome, target: &Digest) {
    let said: Vec<String> = match outcome {
        PublishOutcome::Succeeded(published) => published.tags.clone(),
        PublishOutcome::Failed { published, .. } => published.as_ref().map(|p| p.tags.clone()).unwrap_or_default(),
        PublishOutcome::LegsMissing { .. } => Vec::new(),
    };
    for tag in &job.spec.tags {
        let (repository, name) = (tag.repository().name(), tag.tag().expect("a tag"));
        let names = registry.digest(repository, name).await;
        let is_target = names.as_ref() == Some(target);
        assert_eq!(is_target, said.contains(&tag.to_string()), "{tag} names {names:?}; {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_publish_ends_complete_or_reported_and_a_retry_completes_it() {
    let seed = number("KILN_SEED", 1);
    let Some((proxy, host)) = Proxy::start(seed).await else { return };
    let registry = Registry::open().expect("the bed");
    let (one, two) = (unique("storm-one"), unique("storm-two"));
    let mut legs: Vec<Leg> = Vec::new();
    for platform in FOUR {
        legs.push(registry.leg(&[&one, &two], platform).await);
    }
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    let target = reference(&publisher, &proxy, &host, &one, &legs).await;
    let count = number("KILN_PUBLISHES", 60);
    let run = |round: u64| {
        let tags =
            [format!("{host}/{one}:{round}"), format!("{host}/{one}:{round}-x"), format!("{host}/{two}:{round}")];
        let this = job(spec(&FOUR, &tags), legs.clone());
        let (publisher, registry, target) = (&publisher, &registry, &target);
        async move {
            let outcome = publisher.publish(this.clone(), Vec::new(), CancellationToken::new()).await;
            agrees(registry, &this, &outcome, target).await;
            (this, outcome)
        }
    };
    let ended: Vec<(PublishJob, PublishOutcome)> =
        stream::iter(0..count).map(run).buffer_unordered(AT_ONCE).collect().await;
    *proxy.is_calm.lock().expect("sound") = true;
    let (mut complete, mut completed, mut foreign) = (0, 0, 0);
    for (this, outcome) in ended {
        let (published, message) = match outcome {
            PublishOutcome::Failed { published, message } => (published, message),
            // The proxy hides what is there for longer than anybody waits.
            PublishOutcome::LegsMissing { message, .. } => (None, message),
            PublishOutcome::Succeeded(_) => {
                complete += 1;
                continue;
            }
        };
        assert!(!message.is_empty());
        let is_partial = published.is_some();
        let again = PublishJob { publish: 2, earlier: published, ..this };
        let outcome = publisher.publish(again.clone(), Vec::new(), CancellationToken::new()).await;
        agrees(&registry, &again, &outcome, &target).await;
        match outcome {
            PublishOutcome::Succeeded(Published { digest, .. }) => {
                assert_eq!(digest, target);
                completed += 1;
            }
            // Someone else moved a tag that this build had moved: it is theirs now.
            PublishOutcome::Failed { message, .. } => {
                assert!(is_partial && message.contains("someone else moved it"), "{message}");
                foreign += 1;
            }
            PublishOutcome::LegsMissing { message, .. } => panic!("{message}"),
        }
    }
    let seen = proxy.seen.lock().expect("sound").clone();
    println!(
        "seed {seed}: {complete} of {count} complete at once, {completed} by a retry, {foreign} left to others; faults: {seen:?}"
    );
    assert_eq!(complete + completed + foreign, count);
    assert!(complete > count / 2, "retries within the budget mend most faults");
    assert_eq!(proxy.children_written.load(Ordering::SeqCst), 0, "nothing is built or uploaded again");
}

/// What all publishes of these legs have to come to.
async fn reference(publisher: &RegistryPublisher, proxy: &Proxy, host: &str, repository: &str, legs: &[Leg]) -> Digest {
    *proxy.is_calm.lock().expect("sound") = true;
    let this = job(spec(&FOUR, &[format!("{host}/{repository}:reference")]), legs.to_vec());
    let outcome = publisher.publish(this, Vec::new(), CancellationToken::new()).await;
    *proxy.is_calm.lock().expect("sound") = false;
    let PublishOutcome::Succeeded(published) = outcome else { panic!("{outcome:?}") };
    assert_eq!(published.digest, sha256(&proxy.upstream.raw(repository, "reference").await.1));
    published.digest
}
