//! Images out of a classic image store: dockerd pushes to a proxy of the attempt's own, which pushes on by digest.
//!
//! `build` starts one before the solve, because the image's names in the store hold the proxy's port, and finishes it
//! afterwards. The names are taken out of the store again, whatever happens; BuildKit keeps its cache.

mod challenge;
mod manifest;
mod proxy;
mod report;
mod route;
mod tls;
mod token;
mod upstream;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use kiln_common::{BuildSpec, Platform, spec::ImageDescriptor};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{
    proxy::{Proxy, State},
    report::PushReport,
    upstream::{Failure, Upstream},
};
use super::{
    docker::{Docker, DockerError},
    job::{BuildError, BuildOutcome, Progress, RegistryCredential},
    transport::Dialer,
};

/// Never leaves the machine; the proxy makes no tag of it.
const TAG: &str = "attempt";
/// Names in the store that are left from a worker that was killed start like this, after the proxy's address.
const FOLDER_PREFIX: &str = "kiln-";

/// One attempt's way out of the store.
pub struct ClassicPush {
    proxy: Arc<Proxy>,
    images: StoredImages,
    _server: AbortOnDropHandle<()>,
}

impl ClassicPush {
    /// Reaches every registry of the build, so that a wrong login fails before the build and not after it.
    pub async fn start(
        dialer: &Dialer,
        spec: &BuildSpec,
        platform: &Platform,
        credentials: &BTreeMap<String, RegistryCredential>,
        insecure_registries: &BTreeSet<String>,
    ) -> Result<Self, BuildError> {
        let mut upstreams = Vec::new();
        for repository in spec.repositories() {
            let credential = credentials.get(repository.host()).cloned();
            let plain_http = insecure_registries.contains(repository.host());
            upstreams.push(Upstream::connect(repository, credential, plain_http).await?);
        }
        let no_port = |error| BuildError::Infrastructure(format!("the push proxy has no port: {error}"));
        let listener = proxy::listen().await.map_err(no_port)?;
        let address = listener.local_addr().map_err(no_port)?;
        let folder = format!("{FOLDER_PREFIX}{:032x}", rand::random::<u128>());
        let names = (0..upstreams.len()).map(|index| format!("{address}/{folder}/{index}:{TAG}")).collect();
        let proxy = Arc::new(Proxy {
            folder,
            origin: format!("http://{address}"),
            upstreams,
            platform: platform.clone(),
            media_types: spec.media_types,
            state: Mutex::new(State::default()),
        });
        let server = AbortOnDropHandle::new(tokio::spawn(proxy.clone().serve(listener)));
        let images = StoredImages { docker: Docker::new(dialer.clone()), names };
        Ok(Self { proxy, images, _server: server })
    }

    /// The names under which the build has to leave its image in the store.
    pub fn names(&self) -> &[String] {
        &self.images.names
    }

    /// Pushes what the build left, if it did, and clears the store.
    pub async fn finish(
        self,
        built: Result<(), BuildError>,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> BuildOutcome {
        let outcome = match built {
            Ok(()) => tokio::select! {
                outcome = self.push(progress) => outcome,
                () = cancel.cancelled() => Err(BuildError::Cancelled),
            },
            Err(error) => Err(error),
        };
        self.images.remove().await;
        outcome
    }

    async fn push(&self, progress: &Progress) -> BuildOutcome {
        let repositories: Vec<_> =
            self.proxy.upstreams.iter().map(|upstream| upstream.repository().to_string()).collect();
        let mut report = PushReport::start(progress.clone(), &repositories.join(", "));
        let outcome = self.push_all(&mut report).await;
        report.finish(outcome.as_ref().err().map(ToString::to_string));
        outcome
    }

    async fn push_all(&self, report: &mut PushReport) -> BuildOutcome {
        for name in &self.images.names {
            let name = name.strip_suffix(TAG).and_then(|name| name.strip_suffix(':')).unwrap_or(name);
            let mut refused = None;
            let sent = self
                .images
                .docker
                .push(name, TAG, |line| match &line.error_detail {
                    Some(failure) => refused = Some(failure.message.clone()),
                    None => report.line(&line),
                })
                .await;
            if let Some(problem) = sent.err().map(|error| error.to_string()).or(refused) {
                return Err(self.failure(problem));
            }
        }
        self.pushed()
    }

    /// The registry's own words where it said something, else the engine's.
    fn failure(&self, engine_says: String) -> BuildError {
        match self.proxy.with_state(|state| state.failure.take()) {
            Some(failure) => failure.into(),
            None => BuildError::Infrastructure(format!("the engine cannot push: {engine_says}")),
        }
    }

    /// The same image must be in every repository.
    fn pushed(&self) -> BuildOutcome {
        let pushed = self.proxy.with_state(|state| state.pushed.clone());
        let mut all: Vec<ImageDescriptor> = pushed.values().cloned().collect();
        all.dedup();
        match (pushed.len() == self.proxy.upstreams.len(), all.as_slice()) {
            (true, [descriptor]) => Ok(descriptor.clone()),
            _ => Err(BuildError::Infrastructure(
                "the engine ended its push without pushing the same image everywhere".to_owned(),
            )),
        }
    }
}

impl From<Failure> for BuildError {
    fn from(failure: Failure) -> Self {
        failure.whose.error(failure.message)
    }
}

/// Names in the store; they are removed when this is dropped too, as when the build's future is.
struct StoredImages {
    docker: Docker,
    names: Vec<String>,
}

impl StoredImages {
    async fn remove(mut self) {
        remove(&self.docker, &std::mem::take(&mut self.names)).await;
    }
}

impl Drop for StoredImages {
    fn drop(&mut self) {
        let names = std::mem::take(&mut self.names);
        if let (false, Ok(runtime)) = (names.is_empty(), tokio::runtime::Handle::try_current()) {
            let docker = self.docker.clone();
            runtime.spawn(async move { remove(&docker, &names).await });
        }
    }
}

async fn remove(docker: &Docker, names: &[String]) {
    for name in names {
        if let Err(error) = docker.remove_image(name).await {
            tracing::warn!(%error, name, "an image of a finished attempt stays in the engine's store");
        }
    }
}

/// Removes what a killed worker left in the store: names of proxies that nobody answers for any more.
pub async fn remove_leftovers(docker: &Docker) -> Result<(), DockerError> {
    let mut left = Vec::new();
    for name in docker.image_names().await? {
        let Some((address, rest)) = name.split_once('/') else { continue };
        let is_ours = address.starts_with("127.0.0.1:") && rest.starts_with(FOLDER_PREFIX);
        if is_ours && tokio::net::TcpStream::connect(address).await.is_err() {
            left.push(name);
        }
    }
    remove(docker, &left).await;
    Ok(())
}
