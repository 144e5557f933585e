//! `kiln-coordinator`: flags, logging, start, wait.

use clap::Parser;
use kiln_common::runtime::{Shutdown, config};
use kiln_coordinator::Config;

/// Kiln's coordinator: splits image builds into one task per platform and publishes the result
#[derive(Debug, Parser)]
#[command(name = "kiln-coordinator", version)]
struct Arguments {
    #[command(flatten)]
    config: Config,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { config } = config::load();
    if config.common.config_check {
        config.check()?;
        println!("the configuration is sound");
        return Ok(());
    }
    config.common.init_telemetry()?;
    let running = kiln_coordinator::start(config, Shutdown::on_signals()?).await?;
    running.wait().await
}
