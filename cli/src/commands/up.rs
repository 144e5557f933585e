//! `kiln up`: a farm of one. Coordinator and worker in this process, the store embedded, TLS on, nothing else needed but
//! a container engine.
//!
//! `DATA/up.env` says where the farm is; it is there while the farm is ready and gone once it is not.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;
use futures_util::StreamExt as _;
use kiln_common::runtime::{Shutdown, files};
use kiln_coordinator::{Running, WorkerState};
use kiln_worker::config::{EngineArgs, EngineConfig};

use crate::{
    failure::Failure,
    output::{self, Paint},
    paths,
};

#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    coordinator: kiln_coordinator::Config,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Runs until a signal: the first one finishes what is being built, a second one stops.
///
/// # Errors
/// What keeps the farm from starting or made it end.
pub async fn run(mut up: Up) -> Result<(), Failure> {
    let failed = |error: anyhow::Error| Failure::local("the farm cannot run", format!("{error:#}"));
    let engine = up.engine.config().map_err(Failure::usage)?;
    up.coordinator.check().map_err(|error| Failure::usage(error.to_string()))?;
    if up.coordinator.common.config_check {
        return output::write("the configuration is sound\n");
    }
    up.coordinator.common.init_telemetry().map_err(Failure::usage)?;
    if up.coordinator.common.data_dir.is_none() {
        up.coordinator.common.data_dir = paths::data_dir();
    }
    serve(up.coordinator, engine).await.map_err(failed)
}

async fn serve(coordinator: kiln_coordinator::Config, engine: EngineConfig) -> Result<()> {
    let data = coordinator.data_dir().to_owned();
    let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
    let coordinator_stop = Shutdown::new();
    let running = kiln_coordinator::start(coordinator, coordinator_stop.clone()).await?;
    let worker = kiln_worker::Config {
        data_dir: data.join("worker"),
        coordinators: vec![running.endpoint.clone()],
        join_token: Some(running.create_join_token().await?.parse()?),
        engine,
        platforms: BTreeMap::new(),
        labels: BTreeMap::new(),
        name: host_name(),
    };
    let mut worker = tokio::spawn(kiln_worker::run(worker, shutdown.clone()));
    let env_file = UpFile(data.join("up.env"));
    let ended = tokio::select! {
        registered = registered(&running) => {
            registered?;
            env_file.write(&running)?;
            announce(&running);
            tokio::select! {
                ended = &mut worker => ended,
                () = running.stopped() => {
                    shutdown.stop();
                    worker.await
                }
            }
        }
        ended = &mut worker => ended,
    };
    drop(env_file);
    coordinator_stop.stop();
    running.wait().await?;
    ended.context("the worker panicked")?
}

/// Returns once a worker is ready to take tasks.
async fn registered(running: &Running) -> Result<()> {
    let mut changes = running.driver().watch_workers().await?;
    loop {
        let is_there =
            running.driver().query(|scheduler, _| scheduler.workers().any(|view| view.state == WorkerState::Ready));
        if is_there.await? {
            return Ok(());
        }
        changes.next().await.context("the coordinator stopped")??;
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).collect();
    if name.is_empty() { "local".to_owned() } else { name }
}

/// Says where the farm is, for as long as it lives.
struct UpFile(PathBuf);

impl UpFile {
    fn write(&self, running: &Running) -> Result<()> {
        let text = format!(
            "KILN_ENDPOINT={}\nKILN_TOKEN_FILE={}\nKILN_CA={}\nKILN_DASHBOARD={}\n",
            running.endpoint,
            running.admin_token_file.display(),
            running.ca_file.display(),
            running.dashboard_url
        );
        files::write_private(&self.0, text.as_bytes())?;
        Ok(())
    }
}

impl Drop for UpFile {
    fn drop(&mut self) {
        // One that was never written is not there.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn announce(running: &Running) {
    let paint = Paint::for_stderr();
    let line = |name: &str, value: &str| format!("  {name:<12}{value}\n");
    let path = |path: &Path| path.display().to_string();
    let text = format!(
        "{}\n{}{}{}{}\n  On this machine `kiln build -t REGISTRY/NAME:TAG --platform linux/amd64,linux/arm64 .` finds it by itself; \
         elsewhere:\n  kiln login {} --token-file TOKEN --ca CA\n",
        paint.green("The farm is up."),
        line("endpoint", &running.endpoint),
        line("token file", &path(&running.admin_token_file)),
        line("CA file", &path(&running.ca_file)),
        line("dashboard", &running.dashboard_url),
        running.endpoint,
    );
    // A closed standard output must not end the farm.
    let _ = io::stdout().write_all(text.as_bytes());
    let _ = io::stdout().flush();
}
