//! How the worker's machine fares: said with every heartbeat.

use kiln_proto::v1::WorkerStats;

use super::machine::{disk, meminfo};
use crate::engine::EngineFacts;

/// What the Raspberry Pi's firmware says of heat and undervoltage, where its driver is there.
const PI_THROTTLED: &str = "/sys/devices/platform/soc/soc:firmware/get_throttled";
/// Under-voltage, capped frequency, throttled, soft temperature limit: all of them now (firmware's `get_throttled`).
const PI_THROTTLED_NOW: u64 = 0xf;
const THERMAL_ZONES: usize = 16;

/// Zero for an engine on another machine: nothing that is measured here holds for it.
#[must_use]
pub fn stats(engine: &EngineFacts, engine_is_local: bool) -> WorkerStats {
    if !engine_is_local {
        return WorkerStats::default();
    }
    WorkerStats {
        load1: first_number(&super::text("/proc/loadavg")),
        memory_available_bytes: meminfo(&super::text("/proc/meminfo"), "MemAvailable"),
        disk_available_bytes: disk(engine).map_or(0, |disk| disk.available),
        temperature_celsius: hottest(
            (0..THERMAL_ZONES).map(|zone| super::text(format!("/sys/class/thermal/thermal_zone{zone}/temp"))),
        ),
        throttled: is_throttled(&super::text(PI_THROTTLED)),
        ..WorkerStats::default()
    }
}

/// How much of the last ten seconds some task waited for a resource, in percent (Linux, `accounting/psi`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    pub cpu: f64,
    pub memory: f64,
    pub io: f64,
}

/// `None` where the kernel does not measure it.
#[must_use]
pub fn pressure() -> Option<Pressure> {
    let of = |name: &str| some_avg10(&super::text(format!("/proc/pressure/{name}")));
    Some(Pressure { cpu: of("cpu")?, memory: of("memory")?, io: of("io")? })
}

/// The line `some avg10=1.23 avg60=... total=...`.
fn some_avg10(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace().find_map(|field| field.strip_prefix("avg10=")?.parse().ok())
}

fn first_number(text: &str) -> f64 {
    text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// Degrees Celsius of the hottest zone; zones are in thousandths, and 0 is unknown.
fn hottest(zones: impl Iterator<Item = String>) -> f64 {
    zones.map(|text| first_number(&text) / 1000.0).filter(|degrees| *degrees < 200.0).fold(0.0, f64::max)
}

/// The firmware's bits, in hex with or without `0x` or `throttled=`.
fn is_throttled(text: &str) -> bool {
    let digits = text.trim().trim_start_matches("throttled=").trim_start_matches("0x");
    u64::from_str_radix(digits, 16).is_ok_and(|bits| bits & PI_THROTTLED_NOW != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_board_are_read() {
        assert!((first_number("0.52 0.58 0.59 1/467 12345\n") - 0.52).abs() < f64::EPSILON);
        let zones = ["48312\n", "51000\n", ""].map(str::to_owned);
        assert!((hottest(zones.into_iter()) - 51.0).abs() < 1e-9);
        assert!(hottest(std::iter::empty()).abs() < f64::EPSILON);
    }

    #[test]
    fn throttling_counts_while_it_lasts() {
        assert!(is_throttled("50005\n"), "undervoltage and throttled, now and earlier");
        assert!(is_throttled("throttled=0x4"));
        for text in ["50000\n", "0\n", "throttled=0x0", "", "nonsense"] {
            assert!(!is_throttled(text), "{text}");
        }
    }

    #[test]
    fn pressure_is_read_where_the_kernel_measures_it() {
        let text = "some avg10=12.34 avg60=1.00 avg300=0.00 total=7\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(some_avg10(text), Some(12.34));
        assert_eq!(some_avg10(""), None);
    }
}
