//! A registry of the bed as a worker sees it, and jobs to publish in it.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;

use bytes::Bytes;
use kiln_common::{BuildId, BuildSpec, Digest, Grade, Platform, spec::ImageDescriptor};
use kiln_coordinator::{
    credentials::RegistryCredential,
    driver::{PublishOutcome, Publisher},
    publish::RegistryPublisher,
};
use kiln_scheduler::{
    effect::{Leg, PublishJob},
    record::Published,
};
use reqwest::{Client, header};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const FOUR: [&str; 4] = ["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6"];

/// A registry of the bed as a worker sees it.
pub struct Registry {
    pub host: String,
    pub client: Client,
    login: Option<(String, String)>,
}

impl Registry {
    pub fn open() -> Option<Self> {
        Self::at(std::env::var("KILN_BED_REGISTRY").ok()?, None)
    }

    pub fn with_login() -> Option<Self> {
        let login = (std::env::var("KILN_BED_REGISTRY_USER").ok()?, std::env::var("KILN_BED_REGISTRY_PASSWORD").ok()?);
        Self::at(std::env::var("KILN_BED_REGISTRY_AUTH").ok()?, Some(login))
    }

    fn at(host: String, login: Option<(String, String)>) -> Option<Self> {
        kiln_common::runtime::tls::install_provider();
        let client = Client::builder().no_proxy().build().expect("client");
        Some(Self { host, client, login })
    }

    pub fn credentials(&self) -> Vec<RegistryCredential> {
        let one = |(username, password): &(String, String)| RegistryCredential {
            host: self.host.clone(),
            username: username.clone(),
            password: Zeroizing::new(password.clone()),
            identity_token: Zeroizing::default(),
        };
        self.login.iter().map(one).collect()
    }

    fn request(&self, method: reqwest::Method, url: String) -> reqwest::RequestBuilder {
        let request = self.client.request(method, url);
        match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }

    fn url(&self, repository: &str, rest: &str) -> String {
        format!("http://{}/v2/{repository}/{rest}", self.host)
    }

    async fn put_blob(&self, repository: &str, bytes: Bytes) -> Digest {
        let digest = sha256(&bytes);
        let started = self.request(reqwest::Method::POST, self.url(repository, "blobs/uploads/")).send().await;
        let started = started.expect("upload").error_for_status().expect("allowed");
        let location = started.headers()[header::LOCATION].to_str().expect("text").to_owned();
        let location = if location.starts_with('/') { format!("http://{}{location}", self.host) } else { location };
        let separator = if location.contains('?') { '&' } else { '?' };
        let put = self.request(reqwest::Method::PUT, format!("{location}{separator}digest={digest}")).body(bytes);
        put.send().await.expect("blob").error_for_status().expect("stored");
        digest
    }

    async fn put_manifest(&self, repository: &str, bytes: Bytes) -> Digest {
        let digest = sha256(&bytes);
        let put = self.request(reqwest::Method::PUT, self.url(repository, &format!("manifests/{digest}")));
        let put = put.header(header::CONTENT_TYPE, MANIFEST).body(bytes);
        put.send().await.expect("manifest").error_for_status().expect("stored");
        digest
    }

    pub async fn leg(&self, repositories: &[&str], platform: &str) -> Leg {
        let platform: Platform = platform.parse().expect("platform");
        let variant = platform.variant().map(|v| format!(r#","variant":"{v}""#)).unwrap_or_default();
        let config = Bytes::from(format!(
            r#"{{"os":"linux","architecture":"{}"{variant},"config":{{}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#,
            platform.architecture()
        ));
        let layer = archive("etc/platform", platform.to_string().as_bytes());
        let mut image = None;
        for repository in repositories {
            let config_digest = self.put_blob(repository, config.clone()).await;
            let layer_digest = self.put_blob(repository, layer.clone()).await;
            let manifest = Bytes::from(format!(
                r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{layer_digest}","size":{}}}]}}"#,
                config.len(),
                layer.len()
            ));
            let size = manifest.len() as u64;
            let digest = self.put_manifest(repository, manifest).await;
            image = Some(ImageDescriptor { media_type: MANIFEST.into(), digest, size, bases: Vec::new() });
        }
        Leg { platform, image: image.expect("a repository").into(), grade: Grade::Native }
    }

    pub async fn raw(&self, repository: &str, tag: &str) -> (String, Bytes) {
        let get = self.request(reqwest::Method::GET, self.url(repository, &format!("manifests/{tag}")));
        let response = get.header(header::ACCEPT, format!("{INDEX}, {MANIFEST}")).send().await.expect("answer");
        let response = response.error_for_status().expect("there");
        let media_type = response.headers()[header::CONTENT_TYPE].to_str().expect("text").to_owned();
        (media_type, response.bytes().await.expect("body"))
    }

    /// What a tag names; nothing where it does not exist. The registry answers 500 while it writes the same manifest anew.
    pub async fn digest(&self, repository: &str, tag: &str) -> Option<Digest> {
        loop {
            let get = self.request(reqwest::Method::GET, self.url(repository, &format!("manifests/{tag}")));
            let response = get.header(header::ACCEPT, format!("{INDEX}, {MANIFEST}")).send().await.expect("answer");
            match response.status() {
                status if status.is_server_error() => tokio::task::yield_now().await,
                status if status.is_success() => return Some(sha256(&response.bytes().await.expect("body"))),
                _ => return None,
            }
        }
    }

    pub async fn tags(&self, repository: &str) -> Vec<String> {
        let get = self.request(reqwest::Method::GET, self.url(repository, "tags/list"));
        let body = get.send().await.expect("answer").bytes().await.expect("body");
        let json: serde_json::Value = serde_json::from_slice(&body).expect("json");
        let mut tags: Vec<String> = serde_json::from_value(json["tags"].clone()).expect("tags");
        tags.sort();
        tags
    }
}

/// A layer with one file.
fn archive(path: &str, content: &[u8]) -> Bytes {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, path, content).expect("appended");
    builder.into_inner().expect("an archive").into()
}

pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

pub fn spec(platforms: &[&str], tags: &[String]) -> BuildSpec {
    let platforms: Vec<_> =
        platforms.iter().map(|platform| serde_json::json!({ "platform": platform, "required": true })).collect();
    let tree = "0".repeat(64);
    let json = serde_json::json!({
        "context": null,
        "dockerfile": { "tree": tree, "filename": "Dockerfile" },
        "platforms": platforms,
        "tags": tags,
        "timeout": { "secs": 60, "nanos": 0 },
        "project": "bed",
    });
    serde_json::from_value(json).expect("a spec")
}

pub fn job(spec: BuildSpec, legs: Vec<Leg>) -> PublishJob {
    PublishJob { build: BuildId::generate(), publish: 1, spec: Arc::new(spec), legs, earlier: None }
}

pub async fn publish(publisher: &RegistryPublisher, registry: &Registry, job: PublishJob) -> Published {
    match publisher.publish(job, registry.credentials(), CancellationToken::new()).await {
        PublishOutcome::Succeeded(published) => published,
        PublishOutcome::Failed { message, .. } | PublishOutcome::LegsMissing { message, .. } => panic!("{message}"),
    }
}

pub fn unique(name: &str) -> String {
    format!("publish-{name}-{}", BuildId::generate())
}
