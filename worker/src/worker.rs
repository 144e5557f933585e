//! Puts a worker together and takes it apart: identity, engine, session, and a stop that loses nothing.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use kiln_common::{
    limits,
    runtime::{Shutdown, files, tls},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    builder::Builder,
    config::{Config, default_slots},
    context::{CacheConfig, ContextStore},
    disk::Keeper,
    engine::Engine,
    enroll,
    job::{Jobs, OpenTrees},
    logs::SpoolDir,
    pause::Pause,
    probe::{FileSystem, Probe},
    real_builder::RealBuilder,
    session::{self, Farm, Link, Profile, Session, SessionError},
    slots::Slots,
};

/// Attempts that were told to stop have this long before the program ends without them.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Final reports wait this long for their acknowledgement before the program ends without it.
const REPORT_GRACE: Duration = Duration::from_secs(30);

/// Runs a worker until it is told to stop: drains at the first word, stops at the second.
///
/// # Errors
/// When the worker cannot join, its data folder cannot be used, or the farm has removed it.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    tls::install_provider();
    let mut rejoin = false;
    loop {
        let worker = tokio::select! {
            () = shutdown.drain.cancelled() => return Ok(()),
            worker = start(&config, rejoin) => worker?,
        };
        match worker.run(shutdown.clone()).await {
            Err(error) if error.is::<Rejoin>() && !rejoin => tracing::warn!(%error),
            ended => return ended,
        }
        rejoin = true;
    }
}

async fn start(config: &Config, rejoin: bool) -> anyhow::Result<Worker> {
    files::create_private_dir(&config.data_dir)?;
    let identity = match &config.join_token {
        Some(token) if rejoin => enroll::join(&config.data_dir, token, &config.coordinators, &config.name).await?,
        token => enroll::identity(&config.data_dir, token.as_ref(), &config.coordinators, &config.name).await?,
    };
    let probe = Probe::new(config.engine.address.is_local(), config.engine.data_dir.clone());
    let builder = Arc::new(RealBuilder::new(connect(config).await, probe));
    Worker::new(config.clone(), identity, builder).await
}

/// Waits for an engine that is not there yet, as it is after the machine's start.
async fn connect(config: &Config) -> Engine {
    let mut pause = Pause::default();
    loop {
        match Engine::connect(config.engine.address.clone()).await {
            Ok(engine) => return engine,
            Err(error) => tracing::warn!(%error, "the engine cannot be used yet; trying again"),
        }
        pause.wait().await;
    }
}

/// A worker with all its parts.
pub struct Worker {
    config: Config,
    slots: Arc<Slots>,
    farm: Farm,
    link: Link,
    session: Session,
    following: AbortOnDropHandle<()>,
    keeper: Keeper,
    leaving: CancellationToken,
}

impl Worker {
    /// # Errors
    /// When the data folder cannot be used.
    pub async fn new(config: Config, identity: enroll::Identity, builder: Arc<dyn Builder>) -> anyhow::Result<Self> {
        let share = share_of_disk(&config.data_dir);
        let spools = open_spools(&config.data_dir, share)?;
        let cache = config.data_dir.join("contexts");
        let bounds = CacheConfig { bytes: limits::CONTEXT_CACHE_BYTES.min(share), ..CacheConfig::default() };
        let contexts = ContextStore::open(&cache, bounds).await;
        let contexts = contexts.with_context(|| format!("cannot open the context cache {}", cache.display()))?;
        let profile = profile(&config, &*builder);
        let slots = Arc::new(Slots::new(profile.slots));
        let addresses = if config.coordinators.is_empty() { &identity.coordinators } else { &config.coordinators };
        let farm = Farm::new(addresses.clone(), identity);
        let (control, link) = session::link();
        let keeper = Keeper::new(config.engine.disk, config.data_dir.clone(), builder.clone(), contexts.clone());
        let trees = Arc::new(OpenTrees::new(contexts, link.clone()));
        let jobs = Jobs { slots: slots.clone(), builder: builder.clone(), trees, spools, link: link.clone() };
        let (registration, following) = session::follow(builder.clone(), profile).await;
        let leaving = CancellationToken::new();
        let session = Session::new(farm.clone(), slots.clone(), jobs, builder, registration, leaving.clone(), control);
        let following = AbortOnDropHandle::new(tokio::spawn(following));
        Ok(Self { config, slots, farm, link, session, following, keeper, leaving })
    }

    /// Runs until the shutdown is done.
    ///
    /// # Errors
    /// When the farm has removed this worker.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self { config, slots, farm, link, session, following, keeper, leaving } = self;
        let renewing = enroll::keep_renewed(config.data_dir.clone(), farm.clone(), link);
        let _renewing = AbortOnDropHandle::new(tokio::spawn(renewing));
        let _following = following;
        let _keeping = AbortOnDropHandle::new(tokio::spawn(keeper.run()));
        tokio::select! {
            ended = session.run() => {
                let Err(error) = ended;
                slots.stop_all();
                return Err(advise(error, &config, &farm));
            }
            () = wind_down(&slots, &leaving, &shutdown) => {}
        }
        tracing::info!("the worker has stopped");
        Ok(())
    }
}

/// Ends when the program may: everything finished and reported, or as much of it as the bounds allow.
async fn wind_down(slots: &Slots, leaving: &CancellationToken, shutdown: &Shutdown) {
    shutdown.drain.cancelled().await;
    slots.leave();
    leaving.cancel();
    let reported = async {
        slots.idle().await;
        let _ = tokio::time::timeout(REPORT_GRACE, slots.settled()).await;
    };
    tokio::select! {
        () = reported => {}
        () = shutdown.stop.cancelled() => {
            slots.stop_all();
            let _ = tokio::time::timeout(STOP_GRACE, slots.settled()).await;
        }
    }
}

/// A worker that was removed may hold a token that it has not used yet.
fn advise(error: SessionError, config: &Config, farm: &Farm) -> anyhow::Error {
    let unused = config.join_token.as_ref().is_some_and(|token| farm.identity().is_new(token));
    match error {
        SessionError::Refused { .. } if unused => anyhow::Error::new(Rejoin),
        error @ (SessionError::Refused { .. } | SessionError::Farm(_)) => error.into(),
    }
}

/// The farm removed this worker, which holds a token that it has not joined with.
#[derive(Debug, thiserror::Error)]
#[error("the farm removed this worker; it joins again with its new token")]
struct Rejoin;

/// What each of the worker's own stores may take of its disk at most: a card is for builds.
fn share_of_disk(data_dir: &Path) -> u64 {
    FileSystem::of(data_dir).map_or(u64::MAX, |disk| disk.total / 16)
}

fn open_spools(data_dir: &Path, share: u64) -> anyhow::Result<SpoolDir> {
    let path = data_dir.join("spool");
    SpoolDir::open(&path, limits::LOG_SPOOL_BYTES.min(share))
        .with_context(|| format!("cannot use the spool folder {}", path.display()))
}

fn profile(config: &Config, builder: &dyn Builder) -> Profile {
    let machine = builder.machine(builder.watch().borrow().facts());
    Profile {
        slots: config.engine.slots.unwrap_or_else(|| default_slots(machine.cpus, machine.memory_bytes)),
        labels: config.labels.clone(),
        platforms: config.platforms.clone(),
        disk: config.engine.disk,
        instance_id: format!("{:032x}", rand::random::<u128>()),
    }
}
