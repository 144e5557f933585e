//! How the worker's machine fares: said with every heartbeat.

use kiln_proto::v1::WorkerStats;

use super::{Probe, machine::meminfo, text};
use crate::engine::EngineFacts;

impl Probe {
    /// Zero for an engine on another machine: nothing that is measured here holds for it.
    #[must_use]
    pub fn stats(&self, engine: &EngineFacts) -> WorkerStats {
        if !self.local {
            return WorkerStats::default();
        }
        WorkerStats {
            load1: first_number(&text(self.proc.join("loadavg"))),
            memory_available_bytes: meminfo(&text(self.proc.join("meminfo")), "MemAvailable"),
            disk_available_bytes: self.engine_disk(engine).map_or(0, |disk| disk.available),
            temperature_celsius: self.temperature(),
            throttled: self.is_throttled(),
            cpu_pressure: self.pressure("cpu"),
            memory_pressure: self.pressure("memory"),
            io_pressure: self.pressure("io"),
            ..WorkerStats::default()
        }
    }

    /// Whether the kernel measures pressure at all.
    #[must_use]
    pub fn measures_pressure(&self) -> bool {
        self.pressure("cpu").is_some()
    }

    /// How much of the last ten seconds some task waited for the resource, in percent (Linux, `accounting/psi`).
    fn pressure(&self, resource: &str) -> Option<f64> {
        some_avg10(&text(self.proc.join("pressure").join(resource)))
    }
}

/// The line `some avg10=1.23 avg60=... total=...`.
fn some_avg10(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace().find_map(|field| field.strip_prefix("avg10=")?.parse().ok())
}

fn first_number(text: &str) -> f64 {
    text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::engine::EngineKind;

    /// An engine that says nothing of its machine.
    fn engine() -> EngineFacts {
        EngineFacts {
            kind: EngineKind::Buildkitd,
            version: "1.0".to_owned(),
            features: kiln_common::FeatureSet::new(),
            platforms: Vec::new(),
            host_gateway: None,
            several_exporters: true,
            machine: None,
        }
    }

    fn board(files: &[(&str, &str)]) -> (tempfile::TempDir, Probe) {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join("proc").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let probe = Probe::new(true, Some(root.path().to_owned())).under(root.path());
        (root, probe)
    }

    #[test]
    fn a_board_s_figures_are_read_from_its_files() {
        let psi = |some: &str| format!("some avg10={some} avg60=1.00 avg300=0.00 total=7\nfull avg10=0.10 total=1\n");
        let (_root, probe) = board(&[
            ("loadavg", "0.52 0.58 0.59 1/467 12345\n"),
            ("meminfo", "MemTotal: 443080 kB\nMemAvailable: 301716 kB\n"),
            ("pressure/cpu", &psi("12.34")),
            ("pressure/memory", &psi("0.00")),
            ("pressure/io", &psi("99.5")),
        ]);
        let stats = probe.stats(&engine());
        assert!((stats.load1 - 0.52).abs() < f64::EPSILON);
        assert_eq!(stats.memory_available_bytes, 301_716 * 1024);
        assert!(stats.disk_available_bytes > 0);
        assert_eq!(
            (stats.cpu_pressure, stats.memory_pressure, stats.io_pressure),
            (Some(12.34), Some(0.0), Some(99.5))
        );
    }

    #[test]
    fn a_kernel_without_pressure_and_an_engine_elsewhere_say_nothing() {
        let (_root, probe) = board(&[("loadavg", "1.00 0 0\n")]);
        let stats = probe.stats(&engine());
        assert_eq!((stats.cpu_pressure, stats.memory_pressure, stats.io_pressure), (None, None, None));
        assert!(!probe.measures_pressure());
        assert_eq!(Probe::new(false, None).stats(&engine()), WorkerStats::default());
    }
}
