//! The registry that the engine thinks it pushes to: forwards to the real ones and pushes manifests by digest.
//!
//! `push` runs one for each attempt on this machine's loopback, which dockerd trusts without TLS. Credentials stay
//! here. Bodies are streamed; only manifests are held, up to their limit.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kiln_common::{
    Platform, limits,
    spec::{ImageDescriptor, MediaTypes},
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use super::{
    manifest::{self, Manifest},
    route::{self, Reference, Route},
    upstream::{Body, Failure, Upstream, empty, full},
};
use crate::engine::failure::Whose;

/// Uploads that are open at once: the layers of an image, and retries of them.
const UPLOADS: usize = 1024;
/// dockerd opens a handful.
const CONNECTIONS: usize = 64;
/// What goes through in either direction; all else is between the proxy and one side.
const FORWARDED: [HeaderName; 6] =
    [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CONTENT_RANGE, header::RANGE, header::ACCEPT, header::ETAG];
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

pub struct Proxy {
    /// `kiln-SECRET`, the first component of every name.
    pub folder: String,
    pub origin: String,
    pub upstreams: Vec<Upstream>,
    pub platform: Platform,
    pub media_types: MediaTypes,
    pub state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    /// What was pushed, by repository.
    pub pushed: BTreeMap<usize, ImageDescriptor>,
    /// What went wrong last; the engine's own words leave the registry's out.
    pub failure: Option<Failure>,
    /// Where uploads go on, by the id that the engine was given.
    uploads: BTreeMap<String, String>,
}

impl Proxy {
    pub fn with_state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves until it is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the push proxy cannot accept");
                    return;
                }
            };
            while connections.try_join_next().is_some() {}
            let proxy = self.clone();
            connections.spawn(async move {
                let service = service_fn(|request| {
                    let proxy = proxy.clone();
                    async move { Ok::<_, Infallible>(proxy.answer(request).await) }
                });
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new());
                if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "a connection to the push proxy broke");
                }
                drop(slot);
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let Some(route) = route::parse(&path, &self.folder) else { return plain(StatusCode::NOT_FOUND) };
        let handled = match route {
            Route::Ping => Ok(plain(StatusCode::OK)),
            Route::Manifest { repository, reference } => match self.upstreams.get(repository) {
                Some(upstream) => self.manifest(repository, upstream, &reference, request).await,
                None => Ok(plain(StatusCode::NOT_FOUND)),
            },
            Route::Blob { repository, digest } => match self.upstreams.get(repository) {
                Some(upstream) => forward(upstream, &upstream.url(&format!("blobs/{digest}")), request).await,
                None => Ok(plain(StatusCode::NOT_FOUND)),
            },
            Route::StartUpload { repository } => match self.upstreams.get(repository) {
                Some(upstream) => self.start_upload(repository, upstream, request).await,
                None => Ok(plain(StatusCode::NOT_FOUND)),
            },
            Route::Upload { repository, id } => match self.upstreams.get(repository) {
                Some(upstream) => self.upload(repository, upstream, id, request).await,
                None => Ok(plain(StatusCode::NOT_FOUND)),
            },
        };
        handled.unwrap_or_else(|failure| {
            let status = if failure.whose == Whose::User { StatusCode::FORBIDDEN } else { StatusCode::BAD_GATEWAY };
            let response = refusal(status, &failure.message);
            self.with_state(|state| state.failure = Some(failure));
            response
        })
    }

    async fn manifest(
        &self,
        repository: usize,
        upstream: &Upstream,
        reference: &Reference<'_>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        match (request.method(), reference) {
            (&Method::PUT, _) => {
                let body = Limited::new(request.into_body(), limits::MANIFEST_BYTES).collect().await;
                let body = body.map_err(|error| engine_failure(error.to_string()))?.to_bytes();
                self.put_manifest(repository, upstream, &body).await
            }
            (&Method::GET | &Method::HEAD, Reference::Digest(digest)) => {
                forward(upstream, &upstream.url(&format!("manifests/{digest}")), request).await
            }
            // No tag exists here, and none is made.
            (_, Reference::Tag(_) | Reference::Digest(_)) => Ok(plain(StatusCode::NOT_FOUND)),
        }
    }

    /// Pushes by digest, in the media types of the build.
    async fn put_manifest(
        &self,
        repository: usize,
        upstream: &Upstream,
        body: &[u8],
    ) -> Result<Response<Body>, Failure> {
        let mut manifest = Manifest::parse(body).map_err(|error| engine_failure(error.to_string()))?;
        if self.platform.variant().is_some()
            && let Some(digest) = manifest.config_digest()
        {
            let config = upstream.blob(&digest.to_string(), limits::IMAGE_CONFIG_BYTES).await?;
            if let Some(mended) = manifest::with_variant(&config, &self.platform) {
                manifest.set_config(&mended);
                let digest = manifest::digest_of(&mended).to_string();
                upstream.put_blob(&digest, mended.into()).await?;
            }
        }
        manifest.set_media_types(self.media_types);
        let bytes = Bytes::from(manifest.to_bytes());
        let digest = manifest::digest_of(&bytes);
        let media_type = manifest.media_type().to_owned();
        let content_type = HeaderValue::try_from(&media_type).map_err(|error| engine_failure(error.to_string()))?;
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]);
        let url = upstream.url(&format!("manifests/{digest}"));
        let response = upstream.call(Method::PUT, &url, headers, bytes.clone()).await?;
        if response.status() != StatusCode::CREATED {
            return Err(upstream.refused(&Method::PUT, response.status(), response).await);
        }
        let descriptor =
            ImageDescriptor { media_type, digest: digest.clone(), size: bytes.len() as u64, bases: Vec::new() };
        self.with_state(|state| state.pushed.insert(repository, descriptor));
        let mut answer = plain(StatusCode::CREATED);
        let header = HeaderValue::try_from(digest.to_string()).map_err(|error| engine_failure(error.to_string()))?;
        answer.headers_mut().insert(CONTENT_DIGEST, header);
        Ok(answer)
    }

    async fn start_upload(
        &self,
        repository: usize,
        upstream: &Upstream,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let mount = request.uri().query().and_then(|query| route::mount(query, &self.folder));
        let mut url = upstream.url("blobs/uploads/");
        if let Some((digest, from)) = mount
            && let Some(source) = self.upstreams.get(from).map(Upstream::repository)
            && source.host() == upstream.repository().host()
        {
            url = format!("{url}?mount={digest}&from={}", source.name());
        }
        let response = upstream.call(Method::POST, &url, HeaderMap::new(), Bytes::new()).await?;
        if !response.status().is_success() {
            return Err(upstream.refused(&Method::POST, response.status(), response).await);
        }
        self.upload_answer(repository, upstream, None, response)
    }

    async fn upload(
        &self,
        repository: usize,
        upstream: &Upstream,
        id: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let Some(url) = self.with_state(|state| state.uploads.get(id).cloned()) else {
            return Ok(plain(StatusCode::NOT_FOUND));
        };
        let url = match request.uri().query() {
            Some(query) if url.contains('?') => format!("{url}&{query}"),
            Some(query) => format!("{url}?{query}"),
            None => url,
        };
        let method = request.method().clone();
        let (parts, body) = request.into_parts();
        let headers = forwarded(&parts.headers);
        let response = if method == Method::PATCH || method == Method::PUT {
            upstream.stream(method.clone(), &url, headers, body.map_err(Into::into).boxed()).await?
        } else {
            upstream.call(method.clone(), &url, headers, Bytes::new()).await?
        };
        if !response.status().is_success() {
            return Err(upstream.refused(&method, response.status(), response).await);
        }
        self.upload_answer(repository, upstream, Some(id), response)
    }

    /// A `Location` of the registry as one of the proxy.
    fn upload_answer(
        &self,
        repository: usize,
        upstream: &Upstream,
        id: Option<&str>,
        response: Response<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let (parts, body) = response.into_parts();
        let ended = parts.status == StatusCode::CREATED;
        let location = parts.headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
        let next = location.and_then(|location| upstream.resolve(location)).map(|uri| uri.to_string());
        let id = id.map_or_else(|| format!("{:016x}", rand::random::<u64>()), str::to_owned);
        let name = format!("{}/v2/{}/{repository}", self.origin, self.folder);
        let location = match next {
            _ if ended => {
                self.with_state(|state| state.uploads.remove(&id));
                None
            }
            Some(next) => {
                let fits = self.with_state(|state| {
                    let fits = state.uploads.len() < UPLOADS || state.uploads.contains_key(&id);
                    if fits {
                        state.uploads.insert(id.clone(), next);
                    }
                    fits
                });
                if !fits {
                    return Err(engine_failure(format!("it opens more than {UPLOADS} uploads")));
                }
                Some(format!("{name}/blobs/uploads/{id}"))
            }
            None => None,
        };
        let mut answer = Response::new(body.map_err(Into::into).boxed());
        *answer.status_mut() = parts.status;
        *answer.headers_mut() = forwarded(&parts.headers);
        for kept in [CONTENT_DIGEST, UPLOAD_UUID, API_VERSION] {
            if let Some(value) = parts.headers.get(&kept) {
                answer.headers_mut().insert(kept, value.clone());
            }
        }
        // A finished upload names its blob; clients read the digest, and some want the header to be there.
        let location = location.or_else(|| {
            let digest = answer.headers().get(CONTENT_DIGEST)?.to_str().ok()?;
            Some(format!("{name}/blobs/{digest}"))
        });
        if let Some(value) = location.and_then(|location| HeaderValue::try_from(location).ok()) {
            answer.headers_mut().insert(header::LOCATION, value);
        }
        Ok(answer)
    }
}

/// GET and HEAD of content: the registry's answer as it is, wherever it keeps its blobs.
async fn forward(upstream: &Upstream, url: &str, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    let method = request.method().clone();
    if method != Method::GET && method != Method::HEAD {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED));
    }
    let response = upstream.call(method.clone(), url, forwarded(request.headers()), Bytes::new()).await?;
    let status = response.status();
    if !status.is_success() && status != StatusCode::NOT_FOUND {
        return Err(upstream.refused(&method, status, response).await);
    }
    let (parts, body) = response.into_parts();
    let mut answer = Response::new(body.map_err(Into::into).boxed());
    *answer.status_mut() = status;
    *answer.headers_mut() = forwarded(&parts.headers);
    if let Some(digest) = parts.headers.get(CONTENT_DIGEST) {
        answer.headers_mut().insert(CONTENT_DIGEST, digest.clone());
    }
    Ok(answer)
}

fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in FORWARDED {
        for value in headers.get_all(&name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    let code = if status == StatusCode::FORBIDDEN { "DENIED" } else { "UNKNOWN" };
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
    let mut response = Response::new(full(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn engine_failure(problem: String) -> Failure {
    Failure { message: format!("the engine's push is not understood: {problem}"), whose: Whose::Farm }
}

/// A listener on a free port that only this machine reaches.
pub async fn listen() -> io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", 0)).await
}
