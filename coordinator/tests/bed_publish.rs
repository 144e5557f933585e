//! Publishing to a real registry: the bed's, named by `KILN_BED_REGISTRY` (and `..._AUTH`, with user and password).
//! Without a bed the tests have nothing to talk to and pass.

use std::{sync::Arc, time::Instant};

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

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FOUR: [&str; 4] = ["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6"];

/// A registry of the bed as a worker sees it.
struct Registry {
    host: String,
    client: Client,
    login: Option<(String, String)>,
}

impl Registry {
    fn open() -> Option<Self> {
        Self::at(std::env::var("KILN_BED_REGISTRY").ok()?, None)
    }

    fn with_login() -> Option<Self> {
        let login = (std::env::var("KILN_BED_REGISTRY_USER").ok()?, std::env::var("KILN_BED_REGISTRY_PASSWORD").ok()?);
        Self::at(std::env::var("KILN_BED_REGISTRY_AUTH").ok()?, Some(login))
    }

    fn at(host: String, login: Option<(String, String)>) -> Option<Self> {
        kiln_common::runtime::tls::install_provider();
        let client = Client::builder().no_proxy().build().expect("client");
        Some(Self { host, client, login })
    }

    fn credentials(&self) -> Vec<RegistryCredential> {
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

    async fn leg(&self, repositories: &[&str], platform: &str) -> Leg {
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
        Leg { platform, image: image.expect("a repository"), grade: Grade::Native }
    }

    async fn raw(&self, repository: &str, tag: &str) -> (String, Bytes) {
        let get = self.request(reqwest::Method::GET, self.url(repository, &format!("manifests/{tag}")));
        let response = get.header(header::ACCEPT, format!("{INDEX}, {MANIFEST}")).send().await.expect("answer");
        let response = response.error_for_status().expect("there");
        let media_type = response.headers()[header::CONTENT_TYPE].to_str().expect("text").to_owned();
        (media_type, response.bytes().await.expect("body"))
    }

    async fn tags(&self, repository: &str) -> Vec<String> {
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

fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

fn spec(platforms: &[&str], tags: &[String]) -> BuildSpec {
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

fn job(spec: BuildSpec, legs: Vec<Leg>) -> PublishJob {
    PublishJob { build: BuildId::generate(), publish: 1, spec: Arc::new(spec), legs, earlier: None }
}

async fn publish(publisher: &RegistryPublisher, registry: &Registry, job: PublishJob) -> Published {
    match publisher.publish(job, registry.credentials(), CancellationToken::new()).await {
        PublishOutcome::Succeeded(published) => published,
        PublishOutcome::Failed { message, .. } => panic!("{message}"),
    }
}

fn unique(name: &str) -> String {
    format!("publish-{name}-{}", BuildId::generate())
}

#[tokio::test]
async fn four_legs_become_one_index_under_tags_of_two_repositories_and_no_other_tag_is_left() {
    let Some(registry) = Registry::open() else { return };
    let (one, two) = (unique("one"), unique("two"));
    let mut legs = Vec::new();
    for platform in FOUR {
        legs.push(registry.leg(&[&one, &two], platform).await);
    }
    let host = &registry.host;
    let tags = [format!("{host}/{one}:1.0"), format!("{host}/{one}:latest"), format!("{host}/{two}:1.0")];
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    let began = Instant::now();
    let published = publish(&publisher, &registry, job(spec(&FOUR, &tags), legs.clone())).await;
    println!("first publish, cold connections: {:?}", began.elapsed());
    assert_eq!((published.tags.as_slice(), published.media_type.as_str()), (&tags[..], INDEX));

    let (media_type, bytes) = registry.raw(&one, "1.0").await;
    assert_eq!((media_type.as_str(), sha256(&bytes)), (INDEX, published.digest.clone()));
    let index: serde_json::Value = serde_json::from_slice(&bytes).expect("json");
    let platforms: Vec<String> = index["manifests"]
        .as_array()
        .expect("manifests")
        .iter()
        .map(|one| {
            let part = |name: &str| one["platform"][name].as_str().map(|text| format!("/{text}")).unwrap_or_default();
            format!("{}{}{}", part("os"), part("architecture"), part("variant"))
        })
        .collect();
    assert_eq!(platforms, FOUR.map(|platform| format!("/{platform}")));
    assert_eq!(registry.raw(&two, "1.0").await.1, bytes);
    assert_eq!(registry.tags(&one).await, ["1.0", "latest"]);
    assert_eq!(registry.tags(&two).await, ["1.0"]);

    let mut times = Vec::new();
    for round in 0..20 {
        let tag = [format!("{host}/{one}:round-{round}")];
        let began = Instant::now();
        publish(&publisher, &registry, job(spec(&FOUR, &tag), legs.clone())).await;
        times.push(began.elapsed());
    }
    times.sort();
    println!("warm publish of four platforms, one tag: median {:?}, worst {:?}", times[10], times[19]);
}

#[tokio::test]
async fn one_leg_is_its_own_manifest_under_the_tag() {
    let Some(registry) = Registry::open() else { return };
    let name = unique("single");
    let leg = registry.leg(&[&name], "linux/arm/v6").await;
    let tags = [format!("{}/{name}:1", registry.host)];
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    let published = publish(&publisher, &registry, job(spec(&["linux/arm/v6"], &tags), vec![leg.clone()])).await;
    assert_eq!(published.digest, leg.image.digest);
    let (media_type, bytes) = registry.raw(&name, "1").await;
    assert_eq!((media_type.as_str(), sha256(&bytes)), (MANIFEST, leg.image.digest));
}

#[tokio::test]
async fn a_registry_with_a_login_takes_the_right_password_and_names_the_wrong_one() {
    let Some(registry) = Registry::with_login() else { return };
    let name = unique("login");
    let leg = registry.leg(&[&name], "linux/amd64").await;
    let tags = [format!("{}/{name}:1", registry.host)];
    let this = job(spec(&["linux/amd64"], &tags), vec![leg]);
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    match publisher.publish(this.clone(), Vec::new(), CancellationToken::new()).await {
        PublishOutcome::Failed { published: None, message } => assert!(message.contains("docker login"), "{message}"),
        other @ (PublishOutcome::Succeeded(_) | PublishOutcome::Failed { .. }) => panic!("{other:?}"),
    }
    publish(&publisher, &registry, this).await;
}

#[tokio::test]
async fn a_leg_that_is_missing_in_one_repository_moves_no_tag() {
    let Some(registry) = Registry::open() else { return };
    let (one, two) = (unique("here"), unique("missing"));
    let leg = registry.leg(&[&one], "linux/amd64").await;
    let tags = [format!("{}/{one}:1", registry.host), format!("{}/{two}:1", registry.host)];
    let publisher = RegistryPublisher::new([], None).expect("publisher");
    let outcome =
        publisher.publish(job(spec(&["linux/amd64"], &tags), vec![leg]), Vec::new(), CancellationToken::new()).await;
    match outcome {
        PublishOutcome::Failed { published: None, message } => {
            assert!(message.contains(&two) && message.contains("does not exist"), "{message}");
        }
        other @ (PublishOutcome::Succeeded(_) | PublishOutcome::Failed { .. }) => panic!("{other:?}"),
    }
}
