//! The flags that say which engine a worker drives and what of its machine it may take. `kiln-worker` and `kiln up` have
//! them both.

use std::path::PathBuf;

use clap::Args;
use kiln_common::limits;

use super::ConfigError;
use crate::{
    disk::{Amount, DiskPolicy},
    engine::EngineAddress,
};

/// Flags of an engine and its machine.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// The container engine: unix:///PATH, tcp://HOST:PORT, buildkit+unix://PATH or buildkit+tcp://HOST:PORT
    #[arg(long, value_name = "ADDRESS", default_value = "unix:///var/run/docker.sock")]
    engine: EngineAddress,
    /// Folder with ca.pem, cert.pem and key.pem for an engine over TCP
    #[arg(long, value_name = "DIR")]
    engine_tls_dir: Option<PathBuf>,
    /// Where the engine keeps its data on this machine [default: what Docker says, /var/lib/buildkit]
    #[arg(long, value_name = "DIR")]
    engine_data_dir: Option<PathBuf>,
    /// How many builds run at once [default: two for each CPU, one for each GiB of memory, the smaller]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::WORKER_SLOTS)))]
    slots: Option<u32>,
    /// Prune the build cache once less disk than this is free, a size or a share [default: 10%, at most 10GiB]
    #[arg(long, value_name = "AMOUNT")]
    disk_low: Option<Amount>,
    /// Prune until this much is free [default: twice --disk-low]
    #[arg(long, value_name = "AMOUNT")]
    disk_target: Option<Amount>,
    /// Take no build while less than this is free [default: 5%, at most 1GiB]
    #[arg(long, value_name = "AMOUNT")]
    disk_min: Option<Amount>,
}

/// The same, checked.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    pub address: EngineAddress,
    /// Where it keeps its data, where it does not say so itself.
    pub data_dir: Option<PathBuf>,
    /// `None`: from the machine.
    pub slots: Option<u32>,
    pub disk: DiskPolicy,
}

impl EngineArgs {
    /// # Errors
    /// [`ConfigError::Engine`].
    pub fn config(self) -> Result<EngineConfig, ConfigError> {
        let address = match self.engine_tls_dir {
            Some(folder) => self.engine.with_tls(&folder)?,
            None => self.engine,
        };
        address.check()?;
        let disk = DiskPolicy { low: self.disk_low, target: self.disk_target, min: self.disk_min };
        Ok(EngineConfig { address, data_dir: self.engine_data_dir, slots: self.slots, disk })
    }
}
