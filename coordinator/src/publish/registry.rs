//! The distribution API (distribution-spec 1.1) as publishing needs it: manifests, tags and configurations.
//!
//! One [`Registries`] for the whole program keeps the connections; a [`Session`] belongs to one publish and carries its
//! credentials, its budget and its abandonment. Every body is bounded, every call retried while that can help.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use kiln_common::{Digest, Repository, limits, reference::DOCKER_HUB, runtime::tls};
use reqwest::{
    Client, Method, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    auth::{self, Challenge},
    error::{Fault, RegistryError},
    manifest,
    retry::Budget,
};
use crate::credentials::RegistryCredential;

/// Connections to all registries.
#[derive(Clone)]
pub(super) struct Registries {
    client: Client,
    /// The machine's own registries are never behind a proxy.
    direct: Client,
    insecure: Arc<BTreeSet<String>>,
}

/// One publish's way to its registries.
pub(super) struct Session {
    registries: Registries,
    credentials: Vec<RegistryCredential>,
    /// `Authorization` by repository; the inner lock lets one caller fetch a token and the others wait for it.
    authorizations: Mutex<HashMap<Repository, Arc<tokio::sync::Mutex<Option<HeaderValue>>>>>,
    pub(super) budget: Budget,
    pub(super) abandoned: CancellationToken,
}

/// What names a manifest within a repository.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pointer<'a> {
    Tag(&'a str),
    Digest(&'a Digest),
}

/// A manifest as the registry gave it.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    pub bytes: Bytes,
    pub content_type: String,
    pub digest: Digest,
}

impl fmt::Display for Pointer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl Registries {
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(insecure: impl IntoIterator<Item = String>) -> Result<Self, reqwest::Error> {
        let trust = system_trust();
        let builder = || {
            Client::builder()
                .tls_backend_preconfigured(trust.clone())
                .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(limits::HANDSHAKE_TIMEOUT)
                .timeout(limits::REGISTRY_CALL_TIMEOUT)
                .tcp_nodelay(true)
        };
        Ok(Self {
            client: builder().build()?,
            direct: builder().no_proxy().build()?,
            insecure: Arc::new(insecure.into_iter().collect()),
        })
    }

    pub fn session(&self, credentials: Vec<RegistryCredential>, abandoned: CancellationToken) -> Session {
        let registries = self.clone();
        Session { registries, credentials, authorizations: Mutex::default(), budget: Budget::default(), abandoned }
    }

    fn client(&self, repository: &Repository) -> &Client {
        if repository.is_loopback() { &self.direct } else { &self.client }
    }

    fn url(&self, repository: &Repository, kind: &str, reference: &str) -> String {
        let is_plain = repository.is_loopback() || self.insecure.contains(repository.host());
        let scheme = if is_plain { "http" } else { "https" };
        let host = if repository.host() == DOCKER_HUB { "registry-1.docker.io" } else { repository.host() };
        format!("{scheme}://{host}/v2/{}/{kind}/{reference}", repository.name())
    }
}

/// The system's CAs, as `SSL_CERT_FILE` and `SSL_CERT_DIR` may name them. A machine without any still reaches its registries
/// over plain HTTP, so that is no error here.
fn system_trust() -> rustls::ClientConfig {
    tls::install_provider();
    let system = rustls_native_certs::load_native_certs();
    if system.certs.is_empty() {
        let problems: Vec<String> = system.errors.iter().map(ToString::to_string).collect();
        tracing::warn!(?problems, "no CA certificates: no registry can be reached over https; install ca-certificates");
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(system.certs);
    rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

impl Session {
    /// A manifest; a digest's content is checked against it.
    pub async fn manifest(&self, repository: &Repository, at: Pointer<'_>) -> Result<Fetched, RegistryError> {
        self.retry(|| self.manifest_once(repository, at)).await
    }

    /// The same, tried once.
    pub async fn manifest_once(&self, repository: &Repository, at: Pointer<'_>) -> Result<Fetched, RegistryError> {
        let request =
            Call { method: Method::GET, repository, kind: "manifests", reference: at.to_string(), body: None };
        let response = self.send(&request, "pull from").await?;
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = read_bounded(response, limits::MANIFEST_BYTES, repository.host()).await?;
        let digest = sha256(&bytes);
        match at {
            Pointer::Digest(wanted) if *wanted != digest => Err(RegistryError::transient(format!(
                "{repository}@{wanted} arrives with other content ({digest}); the registry or something before it is broken"
            ))),
            Pointer::Digest(_) | Pointer::Tag(_) => Ok(Fetched { bytes, content_type, digest }),
        }
    }

    /// What a tag or a digest names, without its content where the registry says so.
    pub async fn digest_of(&self, repository: &Repository, at: Pointer<'_>) -> Result<Digest, RegistryError> {
        self.retry(|| self.digest_once(repository, at)).await
    }

    /// The same without waiting for "not found" to change.
    pub async fn find(&self, repository: &Repository, at: Pointer<'_>) -> Result<Option<Digest>, RegistryError> {
        let found = self.retry(|| async {
            match self.digest_once(repository, at).await {
                Err(error) if error.fault == Fault::NotFound => Ok(None),
                other => other.map(Some),
            }
        });
        found.await
    }

    async fn digest_once(&self, repository: &Repository, at: Pointer<'_>) -> Result<Digest, RegistryError> {
        let request =
            Call { method: Method::HEAD, repository, kind: "manifests", reference: at.to_string(), body: None };
        let response = self.send(&request, "pull from").await?;
        let header = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        match header.and_then(|text| text.parse().ok()) {
            Some(digest) => Ok(digest),
            // The header is optional (distribution-spec, "Checking if content exists in the registry").
            None => self.manifest_once(repository, at).await.map(|fetched| fetched.digest),
        }
    }

    /// Puts a manifest's bytes under a digest or a tag.
    pub async fn put_manifest(
        &self,
        repository: &Repository,
        at: Pointer<'_>,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let body = Some((media_type, bytes));
        let request = Call { method: Method::PUT, repository, kind: "manifests", reference: at.to_string(), body };
        self.retry(|| async { self.send(&request, "push to").await.map(drop) }).await
    }

    /// A whole blob, at most `most` bytes of it, checked against its digest.
    pub async fn blob(&self, repository: &Repository, digest: &Digest, most: usize) -> Result<Bytes, RegistryError> {
        let request =
            Call { method: Method::GET, repository, kind: "blobs", reference: digest.to_string(), body: None };
        self.retry(|| async {
            let response = self.send(&request, "pull from").await?;
            let bytes = read_bounded(response, most, repository.host()).await?;
            if sha256(&bytes) == *digest {
                Ok(bytes)
            } else {
                Err(RegistryError::transient(format!("blob {digest} of {repository} arrives with other content")))
            }
        })
        .await
    }

    /// The answer to a blob's GET, whose body is the caller's to read, to bound and to check.
    pub async fn open_blob(&self, repository: &Repository, digest: &Digest) -> Result<Response, RegistryError> {
        let request =
            Call { method: Method::GET, repository, kind: "blobs", reference: digest.to_string(), body: None };
        self.send_within(&request, "pull from", limits::LAYER_TIMEOUT).await
    }

    /// One request, logged in where the registry asks for it.
    pub async fn send(&self, call: &Call<'_>, act: &str) -> Result<Response, RegistryError> {
        self.send_within(call, act, limits::REGISTRY_CALL_TIMEOUT).await
    }

    /// The same with another limit for the whole call, its body included.
    pub(super) async fn send_within(
        &self,
        call: &Call<'_>,
        act: &str,
        timeout: Duration,
    ) -> Result<Response, RegistryError> {
        let slot = self.slot(call.repository);
        let authorization = slot.lock().await.clone();
        let response = self.request(call, authorization.as_ref(), timeout).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return check(call, act, response, self.credential(call.repository).is_some()).await;
        }
        let fresh = self.log_in(call.repository, &slot, authorization.as_ref(), &response).await?;
        let response = self.request(call, fresh.as_ref(), timeout).await?;
        check(call, act, response, self.credential(call.repository).is_some()).await
    }

    /// Where the call goes.
    pub(super) fn url(&self, call: &Call<'_>) -> String {
        self.registries.url(call.repository, call.kind, &call.reference)
    }

    pub(super) fn client(&self, repository: &Repository) -> &Client {
        self.registries.client(repository)
    }

    /// What the registry was last shown as authorization for the repository.
    pub(super) async fn authorization(&self, repository: &Repository) -> Option<HeaderValue> {
        self.slot(repository).lock().await.clone()
    }

    fn slot(&self, repository: &Repository) -> Arc<tokio::sync::Mutex<Option<HeaderValue>>> {
        let mut slots = self.authorizations.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(slots.entry(repository.clone()).or_default())
    }

    /// Answers the challenge of `response`, unless another call has done so since `used` was read.
    async fn log_in(
        &self,
        repository: &Repository,
        slot: &tokio::sync::Mutex<Option<HeaderValue>>,
        used: Option<&HeaderValue>,
        response: &Response,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let mut current = slot.lock().await;
        if current.as_ref() != used {
            return Ok(current.clone());
        }
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenge = challenges.filter_map(|value| Challenge::parse(value.to_str().ok()?)).next();
        let credential = self.credential(repository);
        let denied = || RegistryError::denied(repository, "log in for", "", credential.is_some());
        let challenge = challenge.ok_or_else(denied)?;
        let client = self.registries.client(repository);
        *current = auth::answer(client, &challenge, repository, credential).await?;
        Ok(current.clone())
    }

    pub(super) fn credential(&self, repository: &Repository) -> Option<&RegistryCredential> {
        self.credentials.iter().find(|credential| credential.host == repository.host())
    }

    async fn request(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
        timeout: Duration,
    ) -> Result<Response, RegistryError> {
        let url = self.url(call);
        let mut request = self.registries.client(call.repository).request(call.method.clone(), url).timeout(timeout);
        if call.kind == "manifests" {
            request = request.header(ACCEPT, manifest::ACCEPTED);
        }
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        if let Some((media_type, bytes)) = call.body {
            request = request.header(CONTENT_TYPE, media_type).body(bytes.clone());
        }
        request.send().await.map_err(|error| RegistryError::connection(call.repository.host(), &error))
    }
}

/// One request.
pub(super) struct Call<'a> {
    pub method: Method,
    pub repository: &'a Repository,
    pub kind: &'a str,
    pub reference: String,
    pub body: Option<(&'a str, &'a Bytes)>,
}

/// The response, if it is a success; else what the registry says, in our words.
pub(super) async fn check(
    call: &Call<'_>,
    act: &str,
    response: Response,
    had_credential: bool,
) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let (repository, host) = (call.repository, call.repository.host());
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| parse_retry_after(value.to_str().ok()?));
    let body = read_bounded(response, limits::REGISTRY_ANSWER_BYTES, host).await.unwrap_or_default();
    let detail = detail_of(&body);
    let thing = format!("{repository} {} {}", call.kind.trim_end_matches('s'), call.reference);
    let said = if detail.is_empty() { String::new() } else { format!(": {detail}") };
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            RegistryError::denied(repository, act, &detail, had_credential)
        }
        StatusCode::NOT_FOUND => RegistryError::new(Fault::NotFound, format!("{thing} does not exist{said}")),
        StatusCode::TOO_MANY_REQUESTS => {
            RegistryError::new(Fault::Transient { retry_after }, format!("{host} limits the rate of requests{said}"))
        }
        StatusCode::REQUEST_TIMEOUT => RegistryError::transient(format!("{host} answers {status} for {thing}")),
        status if status.is_server_error() => {
            RegistryError::new(Fault::Transient { retry_after }, format!("{host} answers {status} for {thing}{said}"))
        }
        status => RegistryError::new(Fault::Final, format!("{host} refuses {thing} with {status}{said}")),
    })
}

/// RFC 9110, section 10.2.3: seconds. Dates are rare and mean "later"; the usual backoff does for them.
fn parse_retry_after(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

/// distribution-spec, "Error codes": `CODE: message` of the first error.
fn detail_of(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let first = &json["errors"][0];
    let parts = [&first["code"], &first["message"]].into_iter().filter_map(serde_json::Value::as_str);
    let text: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    text.join(": ").chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The whole body, or an error once it has more than `most` bytes.
pub(super) async fn read_bounded(mut response: Response, most: usize, host: &str) -> Result<Bytes, RegistryError> {
    let too_large =
        || RegistryError::new(Fault::Final, format!("{host} sends more than the {most} bytes that are allowed here"));
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    let mut bytes = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| RegistryError::connection(host, &error))? {
        if bytes.len() + chunk.len() > most {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}
