//! A registry in the process that does as told: answers rightly, or with the fault that a test asks for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Method, Response, StatusCode, Uri},
};
use bytes::Bytes;
use kiln_common::Digest;

use super::registry::sha256;

/// What goes wrong.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    Status(u16, &'static str),
    RetryAfter(u16, u64),
    /// Half of the body, then the connection ends.
    Reset,
    /// Other bytes than were put.
    Garbled,
}

#[derive(Debug)]
struct Rule {
    method: Method,
    path: String,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct Content {
    manifests: HashMap<(String, String), (String, Bytes)>,
    blobs: HashMap<String, Bytes>,
    rules: Vec<Rule>,
    log: Vec<String>,
    /// Bearer tokens are asked for, and given to this user for this password.
    login: Option<(String, String)>,
}

pub(super) struct Fake {
    pub host: String,
    content: Mutex<Content>,
}

impl Fake {
    pub async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let host = listener.local_addr().expect("address").to_string();
        let fake = Arc::new(Self { host, content: Mutex::default() });
        let router = Router::new().fallback(handle).with_state(Arc::clone(&fake));
        tokio::spawn(async move { axum::serve(listener, router).await });
        fake
    }

    pub fn require_login(&self, user: &str, password: &str) {
        self.lock().login = Some((user.into(), password.into()));
    }

    /// The next `times` requests of that method whose path contains `path` go wrong.
    pub fn fail(&self, method: Method, path: &str, times: usize, fault: Fault) {
        self.lock().rules.push(Rule { method, path: path.into(), times, fault });
    }

    pub fn put_blob(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        self.lock().blobs.insert(digest.to_string(), bytes);
        digest
    }

    pub fn put_manifest(&self, repository: &str, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        let key = (repository.to_owned(), digest.to_string());
        self.lock().manifests.insert(key, (media_type.to_owned(), bytes));
        digest
    }

    pub fn put_tag(&self, repository: &str, tag: &str, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = self.put_manifest(repository, media_type, bytes.clone());
        self.lock().manifests.insert((repository.to_owned(), tag.to_owned()), (media_type.to_owned(), bytes));
        digest
    }

    /// Media type and bytes under a tag or a digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Bytes)> {
        self.lock().manifests.get(&(repository.to_owned(), reference.to_owned())).cloned()
    }

    /// `METHOD path` of every request, in order.
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Content> {
        self.content.lock().expect("not poisoned")
    }
}

async fn handle(
    State(fake): State<Arc<Fake>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let mut content = fake.lock();
    let path = uri.path().to_owned();
    content.log.push(format!("{method} {path}"));
    if path == "/token" {
        return token(&content, &method, &headers, &body);
    }
    let is_open = content.login.is_none() || headers.get("authorization").is_some_and(|value| value == "Bearer good");
    if !is_open {
        let challenge = format!(r#"Bearer realm="http://{}/token",service="fake""#, fake.host);
        return reply(401, &[("www-authenticate", &challenge)], Bytes::new());
    }
    let fault =
        content.rules.iter_mut().find(|rule| rule.times > 0 && rule.method == method && path.contains(&rule.path));
    let fault = fault.map(|rule| {
        rule.times -= 1;
        rule.fault.clone()
    });
    match fault {
        Some(Fault::Status(code, body)) => return reply(code, &[], Bytes::from_static(body.as_bytes())),
        Some(Fault::RetryAfter(code, seconds)) => {
            return reply(code, &[("retry-after", &seconds.to_string())], Bytes::new());
        }
        Some(Fault::Garbled) => return reply(200, &[], Bytes::from_static(b"{}")),
        Some(Fault::Reset) => return reset(),
        None => {}
    }
    answer(&mut content, &method, &uri, &headers, body)
}

/// By user and password, or for an identity token, which is the password (distribution, "Docker Registry v2 authentication").
fn token(content: &Content, method: &Method, headers: &HeaderMap, body: &Bytes) -> Response<Body> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let (user, password) = content.login.clone().expect("a login");
    if *method == Method::POST {
        let form = String::from_utf8_lossy(body);
        let asks = form.contains("grant_type=refresh_token") && form.contains("scope=repository%3Aa%3Apull%2Cpush");
        let knows = form.contains(&format!("refresh_token={password}"));
        let answer = if knows { r#"{"access_token":"good"}"# } else { r#"{"error":"invalid_grant"}"# };
        return reply(if asks && knows { 200 } else { 401 }, &[], Bytes::from_static(answer.as_bytes()));
    }
    let good = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let knows = headers.get("authorization").is_some_and(|value| value == good.as_str());
    let body = if knows { r#"{"token":"good"}"# } else { r#"{"token":"anonymous"}"# };
    reply(200, &[], Bytes::from_static(body.as_bytes()))
}

fn answer(content: &mut Content, method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Response<Body> {
    let path = uri.path().strip_prefix("/v2/").expect("the distribution API");
    if *method == Method::POST {
        return reply(202, &[("location", &format!("/v2/{path}one?state=x"))], Bytes::new());
    }
    if let Some((_, blob)) = path.split_once("/blobs/") {
        if *method == Method::PUT {
            let digest = sha256(&body).to_string();
            let is_said =
                uri.query().is_some_and(|query| query == format!("state=x&digest={}", digest.replace(':', "%3A")));
            assert!(blob == "uploads/one" && is_said, "{uri}");
            content.blobs.insert(digest, body);
            return reply(201, &[], Bytes::new());
        }
        let digest = blob;
        return content.blobs.get(digest).map_or_else(missing, |bytes| reply(200, &[], bytes.clone()));
    }
    let (repository, reference) = path.split_once("/manifests/").expect("a manifest");
    let key = (repository.to_owned(), reference.to_owned());
    if *method == Method::PUT {
        let media_type = headers.get("content-type").and_then(|value| value.to_str().ok()).expect("a media type");
        let digest = sha256(&body).to_string();
        for reference in [reference.to_owned(), digest] {
            content.manifests.insert((repository.to_owned(), reference), (media_type.to_owned(), body.clone()));
        }
        return reply(201, &[("location", "/v2/x")], Bytes::new());
    }
    content.manifests.get(&key).map_or_else(missing, |(media_type, bytes)| {
        let digest = sha256(bytes).to_string();
        reply(200, &[("content-type", media_type), ("docker-content-digest", &digest)], bytes.clone())
    })
}

fn missing() -> Response<Body> {
    reply(404, &[], Bytes::from_static(br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#))
}

fn reply(code: u16, headers: &[(&str, &str)], body: Bytes) -> Response<Body> {
    let builder = Response::builder().status(StatusCode::from_u16(code).expect("a status"));
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    builder.body(Body::from(body)).expect("a response")
}

fn reset() -> Response<Body> {
    let half = futures_util::stream::iter([Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("reset"))]);
    Response::builder().header("content-length", "100").body(Body::from_stream(half)).expect("a response")
}
