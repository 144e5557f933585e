//! The few plain Engine API calls that a worker makes: version, info, push, image removal.
//!
//! Called by `facts` and `push`. Written on hyper because the push's answers need their layer ids, which client
//! libraries' typed models leave out, and because the calls go over [`Dialer`]'s streams, TLS included.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::transport::Dialer;

const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
const PUSH_LINE_BYTES: usize = 256 * 1024;
/// Sent where no credentials are: Docker wants the header, `{}` in URL-safe base64.
const NO_CREDENTIALS: &str = "e30=";

/// Why an Engine API call failed.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    #[error("the engine cannot be reached: {0}")]
    Connection(#[from] io::Error),
    #[error("the connection to the engine broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("the engine answers {call} with {status}: {message}")]
    Refused { call: String, status: StatusCode, message: String },
    #[error("the engine's answer to {call} is malformed: {problem}")]
    Malformed { call: String, problem: String },
    #[error("the engine does not answer {call} within {} s", CALL_TIMEOUT.as_secs())]
    TimedOut { call: String },
}

/// What `GET /version` tells.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Version {
    pub version: String,
    /// Newest version of the Engine API that it speaks.
    #[serde(default)]
    pub api_version: String,
    /// What it was compiled with: `go1.24.4`.
    #[serde(default)]
    pub go_version: String,
}

/// What `GET /info` tells of the machine that the engine runs on.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Info {
    #[serde(rename = "NCPU")]
    pub cpus: u32,
    pub mem_total: u64,
    pub docker_root_dir: String,
    pub kernel_version: String,
    pub architecture: String,
}

/// One line of a push's answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PushLine {
    /// The layer.
    pub id: String,
    pub status: String,
    pub progress_detail: PushProgress,
    pub error_detail: Option<PushFailure>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PushProgress {
    pub current: i64,
    pub total: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PushFailure {
    pub message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    repo_tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    #[serde(rename = "IPAM")]
    ipam: Ipam,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    #[serde(default)]
    config: Vec<IpamConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct IpamConfig {
    #[serde(default)]
    gateway: String,
}

/// The Engine API of one dockerd. Each call has a connection of its own.
#[derive(Clone)]
pub struct Docker {
    dialer: Dialer,
}

impl Docker {
    #[must_use]
    pub const fn new(dialer: Dialer) -> Self {
        Self { dialer }
    }

    pub async fn version(&self) -> Result<Version, DockerError> {
        self.get("/version").await
    }

    pub async fn info(&self) -> Result<Info, DockerError> {
        self.get("/info").await
    }

    /// The address under which containers on the default bridge reach the engine's machine.
    pub async fn bridge_gateway(&self) -> Result<Option<String>, DockerError> {
        let network: Network = self.get("/networks/bridge").await?;
        Ok(network.ipam.config.into_iter().map(|config| config.gateway).find(|gateway| !gateway.is_empty()))
    }

    /// Pushes `name:tag` and hands every line of the answer to `each`.
    pub async fn push(&self, name: &str, tag: &str, mut each: impl FnMut(PushLine)) -> Result<(), DockerError> {
        let call = format!("POST /images/{name}/push?tag={tag}");
        let request = Request::post(format!("/images/{name}/push?tag={tag}")).header("x-registry-auth", NO_CREDENTIALS);
        let mut body = refused(&call, self.send(request).await?).await?.into_body();
        let mut pending = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line = pending.split_to(end + 1);
                if let Ok(line) = serde_json::from_slice(&line) {
                    each(line);
                }
            }
            if pending.len() > PUSH_LINE_BYTES {
                return Err(DockerError::Malformed { call, problem: "a line is too long".to_owned() });
            }
        }
        Ok(())
    }

    /// `name:tag` of every image in the store.
    pub async fn image_names(&self) -> Result<Vec<String>, DockerError> {
        let images: Vec<Image> = self.get("/images/json").await?;
        Ok(images.into_iter().filter_map(|image| image.repo_tags).flatten().collect())
    }

    /// Takes `name` from the image store; the layers stay in the build cache.
    pub async fn remove_image(&self, name: &str) -> Result<(), DockerError> {
        let call = format!("DELETE /images/{name}");
        let request = Request::builder().method(Method::DELETE).uri(format!("/images/{name}"));
        match bounded(&call, async { refused(&call, self.send(request).await?).await }).await {
            Ok(_) => Ok(()),
            Err(DockerError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, DockerError> {
        let call = format!("GET {path}");
        bounded(&call, async {
            let response = refused(&call, self.send(Request::get(path)).await?).await?;
            let malformed = |problem: String| DockerError::Malformed { call: call.clone(), problem };
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| malformed(error.to_string()))?.to_bytes();
            serde_json::from_slice(&body).map_err(|error| malformed(error.to_string()))
        })
        .await
    }

    async fn send(&self, request: http::request::Builder) -> Result<Response<Incoming>, DockerError> {
        let stream = TokioIo::new(self.dialer.dial().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection);
        let request = request.header("host", "engine").body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        Ok(sender.send_request(request).await?)
    }
}

async fn bounded<T>(call: &str, work: impl Future<Output = Result<T, DockerError>>) -> Result<T, DockerError> {
    timeout(CALL_TIMEOUT, work).await.unwrap_or_else(|_| Err(DockerError::TimedOut { call: call.to_owned() }))
}

async fn refused(call: &str, response: Response<Incoming>) -> Result<Response<Incoming>, DockerError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let message = serde_json::from_slice::<Refusal>(&body)
        .map_or_else(|_| String::from_utf8_lossy(&body).trim().to_owned(), |refusal| refusal.message);
    Err(DockerError::Refused { call: call.to_owned(), status, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_push_keep_their_layer_and_their_failure() {
        let line = r#"{"status":"Pushing","progressDetail":{"current":512,"total":1024},"id":"5f70bf18a086"}"#;
        let line: PushLine = serde_json::from_str(line).expect("well formed");
        assert_eq!((line.id.as_str(), line.progress_detail.current), ("5f70bf18a086", 512));
        let line = r#"{"errorDetail":{"message":"denied"},"error":"denied"}"#;
        let line: PushLine = serde_json::from_str(line).expect("well formed");
        assert_eq!(line.error_detail.expect("failed").message, "denied");
    }
}
