//! The farm's API as a program waits on it: until a worker or a build is as it should be, across restarts of the farm.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use kiln_common::runtime::{Dialer, tls};
use kiln_proto::v1::{
    Build, GetBuildRequest, LogsRequest, WatchBuildRequest, WatchWorkersRequest, Worker,
    build_service_client::BuildServiceClient, farm_service_client::FarmServiceClient, progress_entry::Event,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::Channel,
};

/// Nothing that these tests wait for takes longer but by a defect.
const PATIENCE: Duration = Duration::from_secs(90);
/// Before a farm that is away is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// An administrator's connection. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    pub builds: BuildServiceClient<InterceptedService<Channel, Bearer>>,
    pub farm: FarmServiceClient<InterceptedService<Channel, Bearer>>,
}

/// A token on every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl Calls {
    /// # Panics
    /// When the files are not what they should be.
    #[must_use]
    pub fn new(endpoint: &str, ca_file: &Path, token_file: &Path) -> Self {
        let ca = tls::certificates("the CA", &fs::read(ca_file).expect("the CA")).expect("PEM");
        let config = tls::client_config(tls::Trust::Ca(ca), None).expect("a TLS configuration");
        let channel = Dialer::new(&[endpoint], config).expect("an address").channel().expect("a channel");
        let token = fs::read_to_string(token_file).expect("the token");
        let bearer = Bearer(format!("Bearer {}", token.trim()).parse().expect("a header"));
        Self {
            builds: BuildServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            farm: FarmServiceClient::with_interceptor(channel, bearer),
        }
    }

    /// The worker, once it is as it should be.
    ///
    /// # Panics
    /// When it does not become so in time.
    pub async fn worker_until(&self, name: &str, what: &str, is_it: impl Fn(&Worker) -> bool) -> Worker {
        let watching = async {
            loop {
                let mut calls = self.clone();
                if let Ok(stream) = calls.farm.watch_workers(WatchWorkersRequest {}).await {
                    let mut stream = stream.into_inner();
                    while let Ok(Some(worker)) = stream.message().await {
                        if worker.name == name && is_it(&worker) {
                            return worker;
                        }
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, watching).await;
        waited.unwrap_or_else(|_| panic!("worker `{name}` did not become {what}"))
    }

    /// The build, once it is as it should be.
    ///
    /// # Panics
    /// When it does not become so in time, with the build as it is.
    pub async fn build_until(&self, id: &str, what: &str, is_it: impl Fn(&Build) -> bool) -> Build {
        let watching = async {
            loop {
                let mut calls = self.clone();
                if let Ok(stream) = calls.builds.watch(WatchBuildRequest { id: id.to_owned() }).await {
                    let mut stream = stream.into_inner();
                    while let Ok(Some(build)) = stream.message().await {
                        if is_it(&build) {
                            return build;
                        }
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        match tokio::time::timeout(PATIENCE, watching).await {
            Ok(build) => build,
            Err(_) => {
                let now = self.clone().builds.get(GetBuildRequest { id: id.to_owned() }).await;
                panic!("build {id} did not become {what}: {now:#?}");
            }
        }
    }

    /// Follows a build's output until it has said each of `wanted`.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn output_until(&self, id: &str, wanted: impl IntoIterator<Item = String>) {
        let mut missing: BTreeSet<String> = wanted.into_iter().collect();
        let mut calls = self.clone();
        let request = LogsRequest { id: id.to_owned(), follow: true, ..LogsRequest::default() };
        let reading = async {
            let mut stream = calls.builds.logs(request).await.expect("logs").into_inner();
            while !missing.is_empty() {
                let batch = stream.message().await.expect("the log goes on").expect("the log does not end");
                for entry in batch.entries {
                    let Some(Event::Line(line)) = entry.event else { continue };
                    let text = String::from_utf8_lossy(&line.text).into_owned();
                    missing.retain(|wanted| !text.contains(wanted.as_str()));
                }
            }
        };
        let read = tokio::time::timeout(PATIENCE, reading).await;
        assert!(read.is_ok(), "build {id} never said {missing:?}");
    }
}
