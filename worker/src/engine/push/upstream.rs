//! A client of one real registry for one repository, with the user's credentials. The proxy forwards through it.
//!
//! Requests whose body can be sent again are tried again when the registry is busy or wants another token; a stream
//! is sent once, after the token is known to be fresh.

use std::{
    io,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use kiln_common::{Repository, limits, reference::DOCKER_HUB};
use tokio::{sync::Mutex, time::timeout};

use super::{
    challenge::Challenge,
    tls,
    token::{self, Token},
};
use crate::engine::{
    failure::{UNREACHABLE, Whose},
    job::RegistryCredential,
};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = BoxBody<Bytes, BoxError>;
pub type HttpClient = Client<HttpsConnector<HttpConnector>, Body>;

const TRIES: u32 = 4;
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MOST: Duration = Duration::from_secs(10);
const ANSWER_BYTES: usize = 64 * 1024;
const REDIRECTS: usize = 5;

/// Why a registry could not be used, and whether another try may go well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    pub whose: Whose,
}

pub struct Upstream {
    client: HttpClient,
    base: String,
    repository: Repository,
    credential: Option<RegistryCredential>,
    auth: Mutex<Auth>,
}

#[derive(Default)]
struct Auth {
    challenge: Option<Challenge>,
    token: Option<Token>,
}

impl Upstream {
    /// Finds out how the registry speaks and whom it wants to see.
    pub async fn connect(
        repository: &Repository,
        credential: Option<RegistryCredential>,
        plain_http: bool,
    ) -> Result<Self, Failure> {
        let host = match repository.host() {
            DOCKER_HUB => "registry-1.docker.io",
            other => other,
        };
        let connector = tls::connector(host).map_err(|error| farm(repository.host(), &error))?;
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(8).build(connector);
        let mut upstream = Self {
            client,
            base: format!("https://{host}"),
            repository: repository.clone(),
            credential,
            auth: Mutex::default(),
        };
        // The first call carries no credentials, so that asking without TLS gives nothing away.
        if plain_http || repository.is_loopback() {
            upstream.base = format!("http://{host}");
            if upstream.ping().await.is_ok() {
                return Ok(upstream);
            }
            upstream.base = format!("https://{host}");
        }
        upstream.ping().await?;
        Ok(upstream)
    }

    #[must_use]
    pub const fn repository(&self) -> &Repository {
        &self.repository
    }

    /// distribution-spec, "Determining Support".
    async fn ping(&self) -> Result<(), Failure> {
        let request = Request::get(format!("{}/v2/", self.base)).body(empty());
        let response = self.bounded(request.map_err(|error| self.farm(&error))?).await?;
        match response.status() {
            StatusCode::OK => Ok(()),
            StatusCode::UNAUTHORIZED => {
                self.learn(response.headers()).await;
                Ok(())
            }
            status => Err(self.refused(&Method::GET, status, response).await),
        }
    }

    /// The URL of something in the repository, for example `blobs/uploads/`.
    pub fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.repository.name())
    }

    /// An absolute URL from a `Location`.
    pub fn resolve(&self, location: &str) -> Option<Uri> {
        let absolute = if location.starts_with('/') { format!("{}{location}", self.base) } else { location.to_owned() };
        absolute.parse().ok().filter(|uri: &Uri| uri.host().is_some())
    }

    /// Sends what can be sent again.
    pub async fn call(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let mut pause = PAUSE_FIRST;
        let (mut url, mut redirects, mut asked_again) = (url.to_owned(), 0, false);
        let mut tries = 1;
        loop {
            let answer = self.bounded(self.request(&method, &url, &headers, full(body.clone())).await?).await;
            let wait = match answer {
                Ok(response) => match response.status() {
                    StatusCode::UNAUTHORIZED if !asked_again => {
                        asked_again = true;
                        self.learn(response.headers()).await;
                        continue;
                    }
                    status if status.is_redirection() && body.is_empty() && redirects < REDIRECTS => {
                        redirects += 1;
                        let location = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
                        match location.and_then(|location| self.resolve(location)) {
                            Some(uri) => url = uri.to_string(),
                            None => return Ok(response),
                        }
                        continue;
                    }
                    status if tries < TRIES && is_busy(status) => retry_after(response.headers()),
                    _ => return Ok(response),
                },
                Err(failure) if tries == TRIES => return Err(failure),
                Err(_) => None,
            };
            tries += 1;
            tokio::time::sleep(wait.unwrap_or(pause).min(PAUSE_MOST)).await;
            pause *= 2;
        }
    }

    /// Sends a stream, once.
    pub async fn stream(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response<Incoming>, Failure> {
        let request = self.request(&method, url, &headers, body).await?;
        self.client.request(request).await.map_err(|error| self.farm(&error))
    }

    /// A blob of at most `most` bytes, whole.
    pub async fn blob(&self, digest: &str, most: usize) -> Result<Bytes, Failure> {
        let url = self.url(&format!("blobs/{digest}"));
        let response = self.call(Method::GET, &url, HeaderMap::new(), Bytes::new()).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(&Method::GET, response.status(), response).await);
        }
        let body = timeout(limits::REGISTRY_CALL_TIMEOUT, Limited::new(response.into_body(), most).collect()).await;
        let body = body.map_err(|_| self.farm(&silent()))?;
        Ok(body.map_err(|error| self.farm(&*error))?.to_bytes())
    }

    /// Uploads a small blob (distribution-spec, "POST then PUT").
    pub async fn put_blob(&self, digest: &str, bytes: Bytes) -> Result<(), Failure> {
        let begun = self.call(Method::POST, &self.url("blobs/uploads/"), HeaderMap::new(), Bytes::new()).await?;
        if begun.status() != StatusCode::ACCEPTED {
            return Err(self.refused(&Method::POST, begun.status(), begun).await);
        }
        let location = begun.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
        let location = location.and_then(|location| self.resolve(location)).ok_or_else(|| self.farm(&no_location()))?;
        let separator = if location.query().is_some() { '&' } else { '?' };
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, OCTETS)]);
        let put = self.call(Method::PUT, &format!("{location}{separator}digest={digest}"), headers, bytes).await?;
        if put.status() == StatusCode::CREATED {
            Ok(())
        } else {
            Err(self.refused(&Method::PUT, put.status(), put).await)
        }
    }

    /// What a refusal means, with the registry's own words.
    pub async fn refused(&self, method: &Method, status: StatusCode, response: Response<Incoming>) -> Failure {
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        self.refused_with(method, status, &body)
    }

    pub fn refused_with(&self, method: &Method, status: StatusCode, body: &[u8]) -> Failure {
        let words = registry_words(body);
        let colon = if words.is_empty() { "" } else { ": " };
        let remedy = match status {
            StatusCode::UNAUTHORIZED => "; log in to the registry first",
            StatusCode::FORBIDDEN => "; check that this login may push to the repository",
            _ => "",
        };
        let message = format!(
            "registry {} answers {method} for {} with {status}{colon}{words}{remedy}",
            self.repository.host(),
            self.repository.name()
        );
        let is_users = status.is_client_error() && !is_busy(status);
        Failure { message, whose: if is_users { Whose::User } else { Whose::Registry } }
    }

    async fn request(
        &self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Request<Body>, Failure> {
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| self.farm(&error))?;
        let is_registry = self.base.ends_with(uri.authority().map_or("", http::uri::Authority::as_str));
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers.clone();
        // Storage behind the registry is trusted by its URL and must not see the login.
        if is_registry && let Some(value) = self.authorization().await? {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        Ok(request)
    }

    async fn bounded(&self, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        match timeout(limits::REGISTRY_CALL_TIMEOUT, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| self.farm(&error)),
            Err(_) => Err(self.farm(&silent())),
        }
    }

    async fn learn(&self, headers: &HeaderMap) {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut auth = self.auth.lock().await;
        auth.challenge = challenges.filter_map(Challenge::parse).next().or(auth.challenge.take());
        auth.token = None;
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>, Failure> {
        let mut auth = self.auth.lock().await;
        let text = match (&auth.challenge, &self.credential) {
            (None, _) | (Some(Challenge::Basic), None | Some(RegistryCredential::IdentityToken(_))) => return Ok(None),
            (Some(Challenge::Basic), Some(RegistryCredential::Password { username, password })) => {
                format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{}", password.as_str())))
            }
            (Some(Challenge::Bearer { realm, service, scope }), credential) => {
                let fresh = auth.token.as_ref().filter(|token| token.expires > Instant::now());
                let token = match fresh {
                    Some(token) => token.clone(),
                    None => {
                        let default = format!("repository:{}:pull,push", self.repository.name());
                        let scope = scope.as_ref().unwrap_or(&default);
                        let asked = token::Wanted { realm, service: service.as_deref(), scope };
                        token::fetch(&self.client, &asked, credential.as_ref()).await?
                    }
                };
                let text = format!("Bearer {}", token.text.as_str());
                auth.token = Some(token);
                text
            }
        };
        let mut value = HeaderValue::try_from(text).map_err(|error| self.farm(&error))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn farm(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        farm(self.repository.host(), error)
    }
}

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

fn farm(host: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    let message = format!("registry {host} cannot be reached: {}; {UNREACHABLE}", crate::engine::causes(error));
    Failure { message, whose: Whose::Registry }
}

fn silent() -> io::Error {
    let seconds = limits::REGISTRY_CALL_TIMEOUT.as_secs();
    io::Error::new(io::ErrorKind::TimedOut, format!("it does not answer within {seconds} s"))
}

fn no_location() -> io::Error {
    io::Error::other("it accepts an upload and does not say where to")
}

fn is_busy(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// `{"errors":[{"code":..,"message":..}]}` (distribution-spec, "Error Codes"), or the text itself.
fn registry_words(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Entry {
        code: String,
        message: String,
    }
    match serde_json::from_slice::<Errors>(body) {
        Ok(all) => all
            .errors
            .iter()
            .map(|entry| if entry.message.is_empty() { entry.code.clone() } else { entry.message.clone() })
            .collect::<Vec<_>>()
            .join(", "),
        Err(_) => String::from_utf8_lossy(body).trim().chars().take(300).collect(),
    }
}

#[must_use]
pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

#[must_use]
pub fn empty() -> Body {
    full(Bytes::new())
}
