//! The coordinator as a whole: opened in order, run, stopped.
//!
//! `main`, `kiln up` and the tests call [`start`]. Invariant: when it answers, the state is recovered, the farm's
//! files are there and both ports are served.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use kiln_common::{
    Timestamp, limits,
    runtime::{Shutdown, files, tls},
};
use kiln_scheduler::Scheduler;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, spawn_blocking},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    access::{AccessLayer, ApiTokens},
    api::Api,
    audit::{self, Trail},
    config::{Config, Layout},
    contexts::{Contexts, housekeeping, service::ContextUploads},
    driver::{Driver, Handle, Ledger, Parts, Publisher},
    lock::DataLock,
    logs::Logs,
    pki::{JoinTokens, Pki, Revocations},
    publish::RegistryPublisher,
    seal::Sealer,
    secrets::SecretStore,
    server::{self, Services, listener},
    sessions::{AgentRelay, Sessions, Workers, service},
    store::{RedbStore, Store, schema},
};

/// How long calls may go on once the coordinator stops.
const GRACE: Duration = Duration::from_secs(5);

/// A coordinator that serves.
pub struct Running {
    pub grpc_addr: SocketAddr,
    pub http_addr: SocketAddr,
    /// `HOST:PORT` for clients and workers.
    pub endpoint: String,
    pub dashboard_url: String,
    pub ca_file: PathBuf,
    pub admin_token_file: PathBuf,
    handle: Handle,
    join_tokens: Arc<JoinTokens>,
    stopping: CancellationToken,
    driver: JoinHandle<Result<()>>,
    server: JoinHandle<Result<()>>,
    _lock: DataLock,
}

/// Opens everything under the data directory and serves.
///
/// # Errors
/// What is wrong with the configuration, the data directory or the ports.
pub async fn start(config: Config, shutdown: Shutdown) -> Result<Running> {
    let verdicts = Layout::new(config.data_dir()).verdicts();
    let publisher =
        RegistryPublisher::new(config.insecure_registries.clone(), Some(verdicts))?.signing_with(config.signing_key()?);
    start_with(config, shutdown, Arc::new(publisher)).await
}

/// [`start`] with another publisher, for tests.
///
/// # Errors
/// As [`start`].
pub async fn start_with(config: Config, shutdown: Shutdown, publisher: Arc<dyn Publisher>) -> Result<Running> {
    tls::install_provider();
    raise_file_limit();
    let layout = Layout::new(config.data_dir());
    files::create_private_dir(layout.root())?;
    let lock = DataLock::take(&layout.lock())?;
    let grpc = bind(config.grpc_listen, "--grpc-listen").await?;
    let http = bind(config.http_listen, "--http-listen").await?;
    let (grpc_addr, http_addr) = (grpc.local_addr()?, http.local_addr()?);
    let (endpoint, dashboard_url) = (config.endpoint(grpc_addr), config.dashboard_url(http_addr));

    // The order of `drain` matters to workers alone: a coordinator ends its calls and goes.
    let stopping = CancellationToken::new();
    let state = State::open(&layout, &endpoint, config.certificate_life).await?;
    let (driver_handle, queue) = Driver::queue(Arc::clone(&state.store), state.secrets.clone());
    let sessions = Arc::new(Sessions::default());
    let ledger = Arc::new(Ledger::default());
    let parts = Parts {
        scheduler: Scheduler::new(config.scheduling(), rand::random()),
        store: Arc::clone(&state.store),
        secrets: state.secrets.clone(),
        outbox: Arc::clone(&sessions) as _,
        publisher: Arc::clone(&publisher),
        ledger: Arc::clone(&ledger),
        trail: state.trail.clone(),
    };
    tokio::spawn(state.trail_writer.run(stopping.clone()));
    let driver = Driver::restore(parts, driver_handle.clone(), queue).await?;

    let agents = AgentRelay::default();
    let workers = Workers::new(service::Parts {
        driver: driver_handle.clone(),
        sessions,
        ledger,
        secrets: state.secrets,
        contexts: Arc::clone(&state.contexts),
        logs: state.logs.clone(),
        agents: agents.clone(),
        pki: Arc::clone(&state.pki),
        join_tokens: Arc::clone(&state.join_tokens),
        revocations: Arc::clone(&state.revocations),
        insecure_registries: config.insecure_registries,
        heartbeat_interval: config.heartbeat_lease / limits::HEARTBEATS_PER_LEASE,
        trail: state.trail.clone(),
        stop: stopping.clone(),
    });
    let router = crate::http::router(driver_handle.clone(), crate::http::metrics::recorder()?);
    let collecting = housekeeping::run(Arc::clone(&state.contexts), driver_handle.clone(), stopping.clone());
    let services = Services {
        access: AccessLayer::new(Arc::clone(&state.api_tokens), Arc::clone(&state.revocations), state.trail.clone()),
        api: Api {
            driver: driver_handle.clone(),
            logs: state.logs,
            contexts: Arc::clone(&state.contexts),
            join_tokens: Arc::clone(&state.join_tokens),
            api_tokens: state.api_tokens,
            revocations: state.revocations,
            agents: Arc::new(agents),
            trail: state.trail.clone(),
            publisher,
            dashboard_url: dashboard_url.as_str().into(),
        },
        contexts: ContextUploads::new(state.contexts),
        workers,
    };
    tokio::spawn(collecting);
    let incoming = listener::incoming(grpc, state.pki.server_config()?, state.trail, stopping.clone());
    let server = server::serve(incoming, services, stopping.clone())?;
    tokio::spawn(state.pki.server_certificate().keep_fresh(stopping.clone()));
    tokio::spawn(stop_on(shutdown, stopping.clone()));
    tokio::spawn(crate::http::serve(http, router, stopping.clone()));
    info!(grpc = %grpc_addr, http = %http_addr, endpoint, "coordinator ready");
    Ok(Running {
        grpc_addr,
        http_addr,
        endpoint,
        dashboard_url,
        ca_file: layout.ca_file(),
        admin_token_file: layout.admin_token(),
        handle: driver_handle,
        join_tokens: state.join_tokens,
        driver: tokio::spawn(drive(driver, stopping.clone())),
        server: tokio::spawn(async move { server.await.context("the gRPC server failed") }),
        stopping,
        _lock: lock,
    })
}

impl Running {
    /// The driver, for those who share the process.
    #[must_use]
    pub const fn driver(&self) -> &Handle {
        &self.handle
    }

    /// Returns once the coordinator is stopping, whoever told it to.
    pub async fn stopped(&self) {
        self.stopping.cancelled().await;
    }

    /// A join token for one worker, as `kiln workers token create` makes them.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn create_join_token(&self) -> Result<String> {
        let labels = std::collections::BTreeMap::new();
        let made = self.join_tokens.create(limits::JOIN_TOKEN_TTL_DEFAULT, 1, labels, Timestamp::now()).await;
        Ok(made.context("cannot make a join token")?.token.to_string())
    }

    /// Until the coordinator was told to stop and has, or has to.
    ///
    /// # Errors
    /// Why it had to.
    pub async fn wait(mut self) -> Result<()> {
        let driver = (&mut self.driver).await;
        self.stopping.cancel();
        if tokio::time::timeout(GRACE, &mut self.server).await.is_err() {
            warn!("calls that did not end in time were cut off");
            self.server.abort();
        }
        driver.unwrap_or_else(|error| Err(anyhow!("the driver panicked: {error}")))
    }
}

impl Drop for Running {
    /// Nothing goes on in the background without its owner.
    fn drop(&mut self) {
        self.stopping.cancel();
        self.driver.abort();
        self.server.abort();
    }
}

/// What lies in the data directory, opened.
struct State {
    store: Arc<dyn Store>,
    secrets: SecretStore,
    pki: Arc<Pki>,
    join_tokens: Arc<JoinTokens>,
    api_tokens: Arc<ApiTokens>,
    revocations: Arc<Revocations>,
    logs: Logs,
    contexts: Arc<Contexts>,
    trail: Trail,
    trail_writer: audit::Writer,
}

impl State {
    async fn open(layout: &Layout, endpoint: &str, certificate_life: Duration) -> Result<Self> {
        let now = Timestamp::now();
        let path = layout.store();
        let store: Arc<dyn Store> = Arc::new(spawn_blocking(move || RedbStore::open(&path)).await??);
        schema::check(&*store).await?;
        let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
        let pki = Arc::new(Pki::open(&layout.ca(), &[host.to_owned()], certificate_life, now)?);
        let sealer = Arc::new(Sealer::open_key(&layout.seal_key())?);
        let api_tokens = Arc::new(ApiTokens::load(Arc::clone(&store)).await?);
        api_tokens.ensure_admin_file(&layout.admin_token(), now).await?;
        let (trail, trail_writer) = Trail::open(Arc::clone(&store)).await?;
        let coordinators = vec![endpoint.to_owned()];
        Ok(Self {
            secrets: SecretStore::new(Arc::clone(&store), sealer),
            join_tokens: Arc::new(JoinTokens::new(Arc::clone(&store), coordinators, pki.ca_fingerprint())),
            revocations: Arc::new(Revocations::load(&*store).await?),
            logs: Logs::open(&layout.logs())?,
            contexts: Contexts::open_local(&layout.contexts()).await?,
            pki,
            api_tokens,
            store,
            trail,
            trail_writer,
        })
    }
}

/// Each worker and client holds a descriptor; systems start programs with far fewer than they let them have.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, files = ?limit.current, "cannot raise the limit of open files");
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}; choose another {flag}"))
}

/// The loop's end is the coordinator's end, whatever its reason.
async fn drive(driver: Driver, stopping: CancellationToken) -> Result<()> {
    let outcome = driver.run(stopping.clone()).await;
    if let Err(cause) = &outcome {
        error!(%cause, "the coordinator stops; nothing that was acknowledged is lost");
    }
    stopping.cancel();
    Ok(outcome?)
}

async fn stop_on(shutdown: Shutdown, stopping: CancellationToken) {
    tokio::select! {
        () = shutdown.drain.cancelled() => stopping.cancel(),
        () = stopping.cancelled() => {}
    }
}
