//! The container engine as a [`Builder`]: builds by [`Engine`], grades from what it lists, figures from this machine.

use std::{collections::BTreeMap, fs, path::Path};

use async_trait::async_trait;
use kiln_common::{Grade, Platform};
use kiln_proto::v1::{MachineInfo, WorkerStats};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    builder::{Builder, Job},
    engine::{BuildOutcome, Engine, EngineFacts, EngineState, Progress},
};

/// Handlers that the kernel has for foreign instructions.
const BINFMT: &str = "/proc/sys/fs/binfmt_misc";

/// An engine and this machine.
pub struct RealBuilder {
    engine: Engine,
    /// Whether the engine runs on this machine, so that what is measured here holds for it.
    local: bool,
}

impl RealBuilder {
    #[must_use]
    pub const fn new(engine: Engine, local: bool) -> Self {
        Self { engine, local }
    }
}

#[async_trait]
impl Builder for RealBuilder {
    fn watch(&self) -> watch::Receiver<EngineState> {
        self.engine.watch()
    }

    async fn platforms(&self, engine: &EngineFacts) -> BTreeMap<Platform, Grade> {
        let handled = |name: &str| self.local && Path::new(BINFMT).join(name).exists();
        grades(&engine.platforms, handled("qemu-arm"))
    }

    fn machine(&self, engine: &EngineFacts) -> MachineInfo {
        let own = own_machine();
        let told = engine.machine.as_ref();
        let disk_bytes = if self.local { disk(engine).map_or(0, |(all, _)| all) } else { 0 };
        MachineInfo {
            cpus: told.map_or(own.cpus, |machine| machine.cpus),
            memory_bytes: told.map_or(own.memory_bytes, |machine| machine.memory_bytes),
            os: told.map_or(own.os, |machine| format!("Linux {}", machine.kernel)),
            cpu_model: if self.local { own.cpu_model } else { String::new() },
            disk_bytes,
            kiln_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn stats(&self) -> WorkerStats {
        if !self.local {
            return WorkerStats::default();
        }
        WorkerStats {
            load1: first_number("/proc/loadavg"),
            memory_available_bytes: meminfo("MemAvailable:"),
            disk_available_bytes: disk(&self.engine.facts()).map_or(0, |(_, free)| free),
            temperature_celsius: first_number("/sys/class/thermal/thermal_zone0/temp") / 1000.0,
            throttled: false,
        }
    }

    async fn build(&self, job: Job, progress: Progress, stop: CancellationToken) -> BuildOutcome {
        self.engine.build(job, progress, stop).await
    }
}

/// The engine lists its own platform first, and everything that it could execute a program of; what is not the same
/// CPU's runs through a handler of the kernel.
fn grades(listed: &[Platform], arm_is_handled: bool) -> BTreeMap<Platform, Grade> {
    let Some(own) = listed.first() else { return BTreeMap::new() };
    let grade = |platform: &Platform| match (own.architecture(), platform.architecture()) {
        (own, other) if own == other => Grade::Native,
        ("amd64", "386") => Grade::Compat,
        ("arm64", "arm") if !arm_is_handled => Grade::Compat,
        _ => Grade::Emulated,
    };
    let mut grades: BTreeMap<_, _> = listed.iter().map(|platform| (platform.clone(), grade(platform))).collect();
    for implied in own.implied() {
        grades.insert(implied, Grade::Native);
    }
    grades
}

fn own_machine() -> MachineInfo {
    let uname = rustix::system::uname();
    MachineInfo {
        cpus: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        memory_bytes: meminfo("MemTotal:"),
        os: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
        cpu_model: cpu_model(),
        ..MachineInfo::default()
    }
}

/// Size and free bytes of the file system under the engine's data, where this machine can see it.
fn disk(engine: &EngineFacts) -> Option<(u64, u64)> {
    let root = engine.machine.as_ref().map_or("/var/lib/buildkit", |machine| machine.data_root.as_str());
    let root = Path::new(root);
    let seen = root.ancestors().find(|path| path.exists())?;
    let figures = rustix::fs::statvfs(seen).ok()?;
    Some((figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize))
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|line| line.starts_with("model name") || line.starts_with("Model"));
    model.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

/// Bytes of one line of `/proc/meminfo`; 0 where there is none.
fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn first_number(path: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graded(listed: &[&str], arm_is_handled: bool) -> Vec<String> {
        let listed: Vec<Platform> = listed.iter().map(|text| text.parse().expect("a platform")).collect();
        let grades = grades(&listed, arm_is_handled);
        grades.into_iter().map(|(platform, grade)| format!("{platform} {grade}")).collect()
    }

    #[test]
    fn the_engine_s_own_cpu_is_native_and_foreign_ones_are_emulated() {
        assert_eq!(
            graded(&["linux/amd64", "linux/amd64/v2", "linux/386", "linux/arm64", "linux/arm/v7"], true),
            [
                "linux/386 compat",
                "linux/amd64 native",
                "linux/amd64/v2 native",
                "linux/arm/v7 emulated",
                "linux/arm64 emulated"
            ]
        );
    }

    #[test]
    fn an_arm64_cpu_runs_arm_itself_only_where_no_handler_does() {
        assert_eq!(graded(&["linux/arm64", "linux/arm/v7"], false), ["linux/arm/v7 compat", "linux/arm64 native"]);
        assert_eq!(graded(&["linux/arm64", "linux/arm/v7"], true), ["linux/arm/v7 emulated", "linux/arm64 native"]);
        assert_eq!(
            graded(&["linux/arm/v7"], false),
            ["linux/arm/v5 native", "linux/arm/v6 native", "linux/arm/v7 native"]
        );
    }
}
