//! What an engine is: found by asking it, never guessed from a name.
//!
//! `Engine` calls [`probe`] when it connects and whenever the engine came back.

use std::{collections::HashMap, time::Duration};

use bollard_buildkit_proto::{
    moby::buildkit::v1::{
        InfoRequest, ListWorkersRequest, SolveRequest, control_client::ControlClient, types::WorkerRecord,
    },
    pb,
};
use kiln_common::{Feature, FeatureSet, Platform};
use tokio::time::timeout;
use tonic::{Code, transport::Channel};

use super::{
    EngineError,
    address::{Endpoint, Protocol},
    docker::{Docker, Info, Version},
    push,
    transport::Dialer,
};

/// An engine may be busy starting when it is asked.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// Names the snapshotter; dockerd has it only with the containerd image store.
const SNAPSHOTTER_LABEL: &str = "org.mobyproject.buildkit.worker.snapshotter";
/// What `host-gateway` stands for, where dockerd tells.
const HOST_GATEWAY_LABEL: &str = "org.mobyproject.buildkit.worker.moby.host-gateway-ip";
/// The frontend's capability behind `--build-context` (BuildKit 0.10).
const NAMED_CONTEXTS_CAP: &str = "moby.buildkit.frontend.contexts";
/// The entitlement behind `--network host`.
pub(super) const HOST_NETWORK: &str = "network.host";

/// The three shapes of engines, which differ in how an image leaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// dockerd with the containerd image store: BuildKit pushes by digest itself.
    DockerdContainerd,
    /// dockerd with its classic image store: BuildKit can only load into it, dockerd pushes.
    DockerdClassic,
    /// A standalone buildkitd.
    Buildkitd,
}

impl EngineKind {
    /// The name in the API and in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DockerdContainerd => "dockerd-containerd",
            Self::DockerdClassic => "dockerd-classic",
            Self::Buildkitd => "buildkitd",
        }
    }
}

/// What placement and building need to know of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    pub kind: EngineKind,
    /// dockerd's version, or buildkitd's.
    pub version: String,
    pub features: FeatureSet,
    /// As BuildKit lists them, the engine's own first.
    pub platforms: Vec<Platform>,
    /// What `--add-host NAME:host-gateway` stands for.
    pub host_gateway: Option<String>,
    /// Whether one solve may have several exporters (BuildKit 0.13; Docker 26, which is Engine API 1.45).
    pub several_exporters: bool,
    /// What dockerd says of its machine; a standalone buildkitd says nothing.
    pub machine: Option<EngineMachine>,
}

/// The machine that the engine runs on, as the engine tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineMachine {
    pub cpus: u32,
    pub memory_bytes: u64,
    pub data_root: String,
    pub kernel: String,
    /// As `uname -m` writes it.
    pub architecture: String,
}

/// Asks the engine everything.
pub async fn probe(dialer: &Dialer) -> Result<EngineFacts, EngineError> {
    timeout(PROBE_TIMEOUT, probe_unbounded(dialer))
        .await
        .unwrap_or_else(|_| Err(EngineError::Silent { address: dialer.address().to_string() }))
}

async fn probe_unbounded(dialer: &Dialer) -> Result<EngineFacts, EngineError> {
    let mut control = ControlClient::new(dialer.channel().await?);
    let worker = first_worker(&mut control).await?;
    let release = buildkit_release(&mut control).await?;
    let named_contexts = has_named_contexts(&mut control, &release).await?;
    let host_network = grants_host_network(&mut control).await?;
    let host_gateway = worker.labels.get(HOST_GATEWAY_LABEL).cloned().filter(|address| !address.is_empty());
    let (kind, docker, host_gateway) = match dialer.address().protocol {
        Protocol::BuildKit => (EngineKind::Buildkitd, None, host_gateway),
        Protocol::Docker => {
            let docker = Docker::new(dialer.clone());
            let gateway = match host_gateway {
                Some(address) => Some(address),
                // An engine without the default bridge has none; that is a fact, not a failure.
                None => docker.bridge_gateway().await.unwrap_or_default(),
            };
            let kind = dockerd_kind(&worker.labels);
            if kind == EngineKind::DockerdClassic {
                push::remove_leftovers(&docker).await?;
            }
            (kind, Some((docker.version().await?, docker.info().await?)), gateway)
        }
    };
    if kind == EngineKind::DockerdClassic && matches!(dialer.address().endpoint, Endpoint::Tcp { .. }) {
        return Err(EngineError::ClassicStoreOverTcp { address: dialer.address().to_string() });
    }
    let platforms = platforms(&worker.platforms);
    if platforms.is_empty() {
        return Err(EngineError::NoPlatforms { address: dialer.address().to_string() });
    }
    let (version, machine) = docker.map(|(version, info)| (version, machine(info))).unzip();
    let several_exporters = several_exporters(&release, version.as_ref());
    let estargz = writes_estargz(version.as_ref());
    Ok(EngineFacts {
        kind,
        features: features(
            kind,
            &release,
            &Asked { several_exporters, named_contexts, estargz, host_network, host_gateway: host_gateway.is_some() },
        ),
        several_exporters,
        version: version.map_or(release.version, |version| version.version),
        platforms,
        host_gateway,
        machine,
    })
}

fn several_exporters(release: &BuildkitRelease, docker: Option<&Version>) -> bool {
    let docker_has = || docker.and_then(|version| numbers(&version.api_version)).is_some_and(|api| api >= (1, 45));
    release.at_least((0, 13)).unwrap_or_else(docker_has)
}

/// Not as the Dockers known so far are compiled with Go 1.27, whose shorter gzip they take for a defect and end. A standalone
/// buildkitd does not tell; those of BuildKit's own releases write it.
fn writes_estargz(docker: Option<&Version>) -> bool {
    let go = docker.map(|version| version.go_version.trim_start_matches("go")).unwrap_or_default();
    // `1.27.1`, `1.27rc1`, `1.26.5-X:nogreenteagc`
    let release = go.split(char::is_alphabetic).next().unwrap_or_default();
    numbers(release).is_none_or(|go| go < (1, 27))
}

fn machine(info: Info) -> EngineMachine {
    EngineMachine {
        cpus: info.cpus,
        memory_bytes: info.mem_total,
        data_root: info.docker_root_dir,
        kernel: info.kernel_version,
        architecture: info.architecture,
    }
}

async fn first_worker(control: &mut ControlClient<Channel>) -> Result<WorkerRecord, EngineError> {
    let workers = control.list_workers(ListWorkersRequest { filter: Vec::new() }).await.map_err(EngineError::call)?;
    workers.into_inner().record.into_iter().next().ok_or(EngineError::NoBuilder)
}

/// The call itself tells: it is there since BuildKit 0.11, while distributions build engines without a version.
async fn buildkit_release(control: &mut ControlClient<Channel>) -> Result<BuildkitRelease, EngineError> {
    match control.info(InfoRequest {}).await {
        Ok(info) => {
            let version = info.into_inner().buildkit_version.map(|version| version.version).unwrap_or_default();
            Ok(BuildkitRelease { knows_info: true, version })
        }
        Err(status) if status.code() == Code::Unimplemented => Ok(BuildkitRelease::default()),
        Err(status) => Err(EngineError::call(status)),
    }
}

/// Asks the frontend itself: a request for its description that demands the capability is refused without it.
async fn has_named_contexts(
    control: &mut ControlClient<Channel>,
    release: &BuildkitRelease,
) -> Result<bool, EngineError> {
    if release.knows_info {
        return Ok(true);
    }
    let mut request = describe();
    request.frontend_attrs.insert("frontend.caps".to_owned(), NAMED_CONTEXTS_CAP.to_owned());
    Ok(!is_refused(control, request, "unsupported frontend capability").await?)
}

/// Entitlements are looked at before anything is built.
async fn grants_host_network(control: &mut ControlClient<Channel>) -> Result<bool, EngineError> {
    let request = SolveRequest { entitlements: vec![HOST_NETWORK.to_owned()], ..describe() };
    Ok(!is_refused(control, request, "not allowed").await?)
}

/// Asks the frontend what it is, which takes no context and builds nothing.
fn describe() -> SolveRequest {
    let attributes = [("requestid", "frontend.subrequests.describe")];
    SolveRequest {
        r#ref: format!("kiln-probe-{:016x}", rand::random::<u64>()),
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs: attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..Default::default()
    }
}

async fn is_refused(
    control: &mut ControlClient<Channel>,
    request: SolveRequest,
    in_words: &str,
) -> Result<bool, EngineError> {
    match control.solve(request).await {
        Ok(_) => Ok(false),
        Err(status) if matches!(status.code(), Code::Unavailable | Code::Cancelled) => Err(EngineError::call(status)),
        // What else it says is about the Dockerfile that nobody gave it.
        Err(status) => Ok(status.message().contains(in_words)),
    }
}

fn dockerd_kind(labels: &HashMap<String, String>) -> EngineKind {
    if labels.contains_key(SNAPSHOTTER_LABEL) { EngineKind::DockerdContainerd } else { EngineKind::DockerdClassic }
}

fn platforms(listed: &[pb::Platform]) -> Vec<Platform> {
    let mut all = Vec::new();
    for platform in listed {
        let variant = Some(platform.variant.as_str()).filter(|variant| !variant.is_empty());
        match Platform::new(&platform.os, &platform.architecture, variant) {
            Ok(platform) if !all.contains(&platform) => all.push(platform),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the engine lists a platform that is none"),
        }
    }
    all
}

/// What only asking tells.
#[derive(Debug, Clone, Copy)]
struct Asked {
    several_exporters: bool,
    named_contexts: bool,
    estargz: bool,
    host_network: bool,
    host_gateway: bool,
}

fn features(kind: EngineKind, release: &BuildkitRelease, asked: &Asked) -> FeatureSet {
    let has_oci_exporter = match kind {
        EngineKind::DockerdContainerd | EngineKind::Buildkitd => true,
        EngineKind::DockerdClassic => false,
    };
    [
        (Feature::NamedContexts, asked.named_contexts),
        (Feature::CacheExportRegistry, has_oci_exporter),
        (Feature::CacheExportInline, true),
        (Feature::Attestations, has_oci_exporter && release.knows_info),
        (Feature::Annotations, has_oci_exporter && release.knows_info),
        (Feature::LayerCompression, has_oci_exporter && release.knows_info),
        (Feature::Estargz, has_oci_exporter && release.knows_info && asked.estargz),
        // Both came with BuildKit 0.13.
        (Feature::RewriteTimestamp, has_oci_exporter && asked.several_exporters),
        // Their attributes came to the frontend one release before named contexts did.
        (Feature::StepLimits, asked.named_contexts),
        (Feature::HostGateway, asked.host_gateway),
        (Feature::HostNetwork, asked.host_network),
    ]
    .into_iter()
    .filter_map(|(feature, has)| has.then_some(feature))
    .collect()
}

/// Which BuildKit answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct BuildkitRelease {
    /// It has the call `Info`, so it is 0.11 or newer.
    knows_info: bool,
    /// As its builder named it: `v0.25.1`, `v0.0.0+unknown`, or nothing.
    version: String,
}

impl BuildkitRelease {
    /// `None` where the builder did not name it.
    fn at_least(&self, wanted: (u32, u32)) -> Option<bool> {
        numbers(&self.version).filter(|version| *version != (0, 0)).map(|version| version >= wanted)
    }
}

/// The first two numbers of `v1.45.2-rc1` or the like.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_s_nameless_build_is_not_taken_for_version_zero() {
        let release = |version: &str| BuildkitRelease { knows_info: true, version: version.to_owned() };
        assert_eq!(release("v0.0.0+unknown-moby").at_least((0, 13)), None);
        assert_eq!(release("").at_least((0, 13)), None);
        assert_eq!(release("v0.12.5").at_least((0, 13)), Some(false));
        assert_eq!(release("v0.25.1-rc1").at_least((0, 13)), Some(true));
    }

    #[test]
    fn the_store_is_told_by_the_snapshotter_s_label() {
        let labels = HashMap::from([(SNAPSHOTTER_LABEL.to_owned(), "overlayfs".to_owned())]);
        assert_eq!(dockerd_kind(&labels), EngineKind::DockerdContainerd);
        assert_eq!(dockerd_kind(&HashMap::new()), EngineKind::DockerdClassic);
    }

    #[test]
    fn a_classic_store_lacks_what_its_exporter_lacks() {
        let asked = Asked {
            several_exporters: false,
            named_contexts: false,
            estargz: true,
            host_network: true,
            host_gateway: true,
        };
        let old = features(EngineKind::DockerdClassic, &BuildkitRelease::default(), &asked);
        assert_eq!(old, [Feature::CacheExportInline, Feature::HostGateway, Feature::HostNetwork].into());
        let release = BuildkitRelease { knows_info: true, version: String::new() };
        let asked = Asked { several_exporters: true, named_contexts: true, ..asked };
        let new = features(EngineKind::DockerdClassic, &release, &asked);
        let more = [Feature::NamedContexts, Feature::StepLimits];
        assert_eq!(new, old.into_iter().chain(more).collect::<FeatureSet>());
        assert_eq!(features(EngineKind::DockerdContainerd, &release, &asked), Feature::ALL.into());
    }

    #[test]
    fn an_engine_that_estargz_would_end_does_not_get_it() {
        let built_with = |go: &str| Version { go_version: go.to_owned(), ..Version::default() };
        assert!(writes_estargz(Some(&built_with("go1.24.4"))) && writes_estargz(Some(&built_with("go1.26.5"))));
        assert!(!writes_estargz(Some(&built_with("go1.27.1"))) && !writes_estargz(Some(&built_with("go1.27rc1"))));
        assert!(writes_estargz(None) && writes_estargz(Some(&built_with(""))));
    }

    #[test]
    fn listed_platforms_are_normalised_and_listed_once() {
        let listed = |architecture: &str, variant: &str| pb::Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..Default::default()
        };
        let all = platforms(&[listed("arm64", ""), listed("arm64", "v8"), listed("arm", ""), listed("", "")]);
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["linux/arm64", "linux/arm/v7"]);
    }
}
