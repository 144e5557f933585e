//! What an operator sets: flags over `KILN_*` variables over a TOML file. `kiln-worker` parses [`Args`], `kiln up` makes
//! a [`Config`] itself; everything is checked here, before anything starts.

mod engine_args;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Parser;
use kiln_common::{
    Grade, Platform, limits,
    platform::InvalidPlatform,
    runtime::{
        CommonArgs, Dialer, JoinToken, dial,
        files::{self, FileError},
        join_token::InvalidJoinToken,
        telemetry::{self, TelemetryError},
        tls::{self, TlsError, Trust},
    },
};

pub use self::engine_args::{EngineArgs, EngineConfig};
use crate::engine::address;

const DATA_DIR: &str = "/var/lib/kiln";
const TOKEN_BYTES: u64 = 16 * 1024;

/// Runs the builds of a Kiln farm on the container engine beside it.
#[derive(Debug, Parser)]
#[command(name = "kiln-worker", version, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where the farm's coordinators listen, separated by commas; the join token names them, too
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    coordinator: Vec<String>,
    /// File with the token from `kiln workers token create`; needed for the first start only
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    /// What this worker runs instead of what it finds: PLATFORM[=native|compat|emulated],...
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    platforms: Vec<PlatformGrade>,
    /// A label for placement, KEY=VALUE; several times, or separated by commas
    #[arg(long = "label", value_name = "KEY=VALUE", value_delimiter = ',')]
    label: Vec<Label>,
    /// Where this worker stands; the same as --label zone=ZONE
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// The name that it asks for [default: the host's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Check the engine, the platforms, the disk and the farm, say what was found, and exit
    #[arg(long)]
    pub doctor: bool,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    /// Over the addresses of the token, where given.
    pub coordinators: Vec<String>,
    pub join_token: Option<JoinToken>,
    pub engine: EngineConfig,
    /// Empty: as probed.
    pub platforms: BTreeMap<Platform, Grade>,
    /// The zone among them.
    pub labels: BTreeMap<String, String>,
    pub name: String,
}

/// One entry of `--platforms`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PlatformGrade(Platform, Grade);

/// One `--label`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label(String, String);

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("--coordinator: {0}")]
    Coordinator(#[from] dial::InvalidAddress),
    #[error("--engine: {0}")]
    Engine(#[from] address::InvalidAddress),
    #[error("--join-token-file: {0}")]
    TokenFile(FileError),
    #[error("--join-token-file: there is no file {}", .0.display())]
    NoTokenFile(PathBuf),
    #[error("--join-token-file {}: {problem}", file.display())]
    Token { file: PathBuf, problem: InvalidJoinToken },
    #[error("--platforms: {0} is listed twice")]
    PlatformTwice(Platform),
    #[error("--platforms: {count} entries; at most {} are allowed", limits::WORKER_PLATFORMS)]
    TooManyPlatforms { count: usize },
    #[error("--label: `{0}` is given twice")]
    LabelTwice(String),
    #[error("--label: {count} labels; at most {} are allowed", limits::WORKER_LABELS)]
    TooManyLabels { count: usize },
    #[error(
        "--name: `{name}` is not a name; write 1 to {} characters of a-z, A-Z, 0-9, `.`, `_` and `-`",
        limits::WORKER_NAME_BYTES
    )]
    Name { name: String },
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

#[derive(Debug, thiserror::Error)]
enum InvalidPlatformGrade {
    #[error(transparent)]
    Platform(#[from] InvalidPlatform),
    #[error("`{0}` is not a grade; write native, compat or emulated")]
    Grade(String),
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a label; write KEY=VALUE, both without spaces and at most 256 characters")]
struct InvalidLabel(String);

impl Args {
    /// # Errors
    /// [`ConfigError`] with the flag, what is wrong and what to write.
    pub fn config(self) -> Result<Config, ConfigError> {
        telemetry::parse(&self.common.log_level)?;
        if !self.coordinator.is_empty() {
            Dialer::new(&self.coordinator, tls::client_config(Trust::Fingerprint([0; 32]), None)?)?;
        }
        let engine = self.engine.config()?;
        let name = self.name.unwrap_or_else(host_name);
        check_name(&name)?;
        Ok(Config {
            data_dir: self.common.data_dir.unwrap_or_else(|| DATA_DIR.into()),
            coordinators: self.coordinator,
            join_token: self.join_token_file.as_deref().map(read_token).transpose()?,
            engine,
            platforms: platforms(self.platforms)?,
            labels: labels(self.label, self.zone)?,
            name,
        })
    }
}

fn read_token(file: &Path) -> Result<JoinToken, ConfigError> {
    let bytes = files::read_optional(file, TOKEN_BYTES).map_err(ConfigError::TokenFile)?;
    let bytes = bytes.ok_or_else(|| ConfigError::NoTokenFile(file.to_owned()))?;
    String::from_utf8_lossy(&bytes).parse().map_err(|problem| ConfigError::Token { file: file.to_owned(), problem })
}

fn platforms(list: Vec<PlatformGrade>) -> Result<BTreeMap<Platform, Grade>, ConfigError> {
    if list.len() > limits::WORKER_PLATFORMS {
        return Err(ConfigError::TooManyPlatforms { count: list.len() });
    }
    let mut platforms = BTreeMap::new();
    for PlatformGrade(platform, grade) in list {
        if platforms.insert(platform.clone(), grade).is_some() {
            return Err(ConfigError::PlatformTwice(platform));
        }
    }
    Ok(platforms)
}

fn labels(list: Vec<Label>, zone: Option<String>) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut labels = BTreeMap::new();
    let zone = zone.map(|zone| Label("zone".to_owned(), zone));
    for Label(key, value) in list.into_iter().chain(zone) {
        if labels.insert(key.clone(), value).is_some() {
            return Err(ConfigError::LabelTwice(key));
        }
    }
    if labels.len() > limits::WORKER_LABELS {
        return Err(ConfigError::TooManyLabels { count: labels.len() });
    }
    Ok(labels)
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > limits::WORKER_NAME_BYTES || !name.bytes().all(allowed) {
        return Err(ConfigError::Name { name: name.chars().take(160).collect() });
    }
    Ok(())
}

/// The host's name, or `worker` where it has none that can be shown.
#[must_use]
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if check_name(&name).is_ok() { name } else { "worker".to_owned() }
}

/// How many builds a machine runs at once where nobody says: builds wait for the network half of the time, and each
/// needs memory.
#[must_use]
pub fn default_slots(cpus: u32, memory_bytes: u64) -> u32 {
    let by_memory = u32::try_from(memory_bytes >> 30).unwrap_or(u32::MAX);
    cpus.saturating_mul(2).min(by_memory).clamp(1, limits::WORKER_SLOTS)
}

impl FromStr for PlatformGrade {
    type Err = InvalidPlatformGrade;

    fn from_str(text: &str) -> Result<Self, InvalidPlatformGrade> {
        let (platform, grade) = text.split_once('=').unwrap_or((text, "native"));
        let grade = match grade {
            "native" => Grade::Native,
            "compat" => Grade::Compat,
            "emulated" => Grade::Emulated,
            other => return Err(InvalidPlatformGrade::Grade(other.chars().take(64).collect())),
        };
        Ok(Self(platform.parse()?, grade))
    }
}

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let invalid = || InvalidLabel(text.chars().take(64).collect());
        let (key, value) = text.split_once('=').ok_or_else(invalid)?;
        let sound =
            |part: &str| part.len() <= limits::KEY_BYTES && !part.chars().any(|c| c.is_whitespace() || c.is_control());
        if key.is_empty() || !sound(key) || !sound(value) {
            return Err(invalid());
        }
        Ok(Self(key.to_owned(), value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use kiln_common::runtime::config;

    use super::*;
    use crate::disk::{Amount, DiskPolicy};

    fn parse(flags: &[&str]) -> Result<Config, String> {
        let arguments = ["kiln-worker"].iter().chain(flags);
        let args = config::load_from::<Args>(arguments).map_err(|error| error.to_string())?;
        args.config().map_err(|error| error.to_string())
    }

    #[test]
    fn every_flag_arrives() {
        let config = parse(&[
            "--coordinator=a.example:7070,b.example:7070",
            "--engine=buildkit+unix:///run/buildkit.sock",
            "--engine-data-dir=/mnt/buildkit",
            "--slots=3",
            "--disk-low=4GiB",
            "--disk-min=3%",
            "--platforms=linux/arm64/v8=native,linux/arm/v7=compat,linux/riscv64",
            "--label=disk=ssd",
            "--zone=fra1",
            "--name=pi-4",
            "--data-dir=/tmp/k",
        ])
        .unwrap();
        assert_eq!(config.coordinators, ["a.example:7070", "b.example:7070"]);
        assert_eq!(
            (config.engine.slots, config.engine.data_dir.as_deref()),
            (Some(3), Some(Path::new("/mnt/buildkit")))
        );
        let disk = DiskPolicy { low: Some(Amount::Bytes(4 << 30)), target: None, min: Some(Amount::Percent(3)) };
        assert_eq!(config.engine.disk, disk);
        let expected =
            [("linux/arm64", Grade::Native), ("linux/arm/v7", Grade::Compat), ("linux/riscv64", Grade::Native)];
        assert_eq!(config.platforms, expected.map(|(text, grade)| (text.parse().unwrap(), grade)).into());
        assert_eq!(config.labels.get("zone").map(String::as_str), Some("fra1"));
        assert_eq!((config.name.as_str(), config.data_dir.as_path()), ("pi-4", Path::new("/tmp/k")));
    }

    #[test]
    fn each_mistake_names_its_flag_and_the_remedy() {
        for (flags, flag, remedy) in [
            (&["--coordinator=farm"][..], "--coordinator", "HOST:PORT"),
            (&["--engine=docker.sock"], "--engine", "unix://"),
            (&["--engine-tls-dir=/tls"], "--engine", "a unix socket has no TLS"),
            (&["--slots=0"], "--slots", "1..=256"),
            (&["--disk-low=lots"], "--disk-low", "2GiB"),
            (&["--platforms=linux/arm64=quick"], "--platforms", "native, compat or emulated"),
            (&["--platforms=linux/arm64,linux/arm64/v8"], "--platforms", "twice"),
            (&["--label=gpu"], "--label", "KEY=VALUE"),
            (&["--label=zone=a", "--zone=b"], "--label", "twice"),
            (&["--name=my board"], "--name", "a-z"),
            (&["--join-token-file=/nowhere/token"], "--join-token-file", "/nowhere/token"),
        ] {
            let error = parse(flags).expect_err(flag);
            assert!(error.contains(flag) && error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn slots_follow_cpus_and_memory() {
        assert_eq!(default_slots(1, 512 << 20), 1);
        assert_eq!(default_slots(4, 4 << 30), 4);
        assert_eq!(default_slots(2, 24 << 30), 4);
        assert_eq!(default_slots(500, 4096 << 30), limits::WORKER_SLOTS);
    }
}
