//! How hot a machine is, and whether heat or a weak power supply slows it down now.

use std::path::PathBuf;

use super::{Probe, number, text};

/// What the Raspberry Pi's firmware says of heat and undervoltage, where its driver is there.
const PI_THROTTLED: &str = "devices/platform/soc/soc:firmware/get_throttled";
/// Under-voltage, capped frequency, throttled, soft temperature limit: all of them now (firmware's `get_throttled`).
const PI_THROTTLED_NOW: u64 = 0xf;
/// The kernel's own driver for the Pi's power supply (`hwmon/raspberrypi-hwmon`).
const PI_VOLTAGE: &str = "rpi_volt";
/// Cooling devices that cool by slowing the CPU down (`drivers/thermal/cpufreq_cooling.c`, `cpuidle_cooling.c`, ACPI's).
const SLOWING: [&str; 4] = ["thermal-cpufreq-", "cpufreq-", "thermal-cpuidle-", "Processor"];
/// Entries of one kind that are looked at.
const ENTRIES: usize = 64;

impl Probe {
    /// Degrees Celsius of the hottest thermal zone; 0: unknown.
    pub(super) fn temperature(&self) -> f64 {
        hottest(self.entries("class/thermal/thermal_zone").map(|zone| text(zone.join("temp"))))
    }

    /// Whether the CPU is slower than it could be, by heat or undervoltage.
    pub(super) fn is_throttled(&self) -> bool {
        is_throttled(&text(self.sys.join(PI_THROTTLED)))
            || self.entries("class/hwmon/hwmon").any(|sensor| {
                text(sensor.join("name")).trim() == PI_VOLTAGE && number(sensor.join("in0_lcrit_alarm")) == Some(1)
            })
            || self.entries("class/thermal/cooling_device").any(|device| {
                let kind = text(device.join("type"));
                SLOWING.iter().any(|slowing| kind.starts_with(slowing))
                    && number(device.join("cur_state")).is_some_and(|state| state > 0)
            })
    }

    /// Folders `NAME0`, `NAME1` and so on.
    fn entries(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        let path = self.sys.join(name).into_os_string();
        (0..ENTRIES)
            .map(move |entry| {
                let mut path = path.clone();
                path.push(entry.to_string());
                PathBuf::from(path)
            })
            .take_while(|path| path.exists())
    }
}

/// Zones are in thousandths; more than 200 degrees is a sensor that is not there.
fn hottest(zones: impl Iterator<Item = String>) -> f64 {
    let degrees = zones.filter_map(|text| text.trim().parse::<f64>().ok()).map(|thousandths| thousandths / 1000.0);
    degrees.filter(|degrees| *degrees < 200.0).fold(0.0, f64::max)
}

/// The firmware's bits, in hex with or without `0x` or `throttled=`.
fn is_throttled(text: &str) -> bool {
    let digits = text.trim().trim_start_matches("throttled=").trim_start_matches("0x");
    u64::from_str_radix(digits, 16).is_ok_and(|bits| bits & PI_THROTTLED_NOW != 0)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join("sys").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn board(files: &[(&str, &str)]) -> (tempfile::TempDir, Probe) {
        let root = tempfile::tempdir().unwrap();
        files.iter().for_each(|(file, text)| write(root.path(), file, text));
        let probe = Probe::new(true, None).under(root.path());
        (root, probe)
    }

    #[test]
    fn the_hottest_zone_counts_and_no_zone_is_unknown() {
        let (_root, probe) = board(&[
            ("class/thermal/thermal_zone0/temp", "48312\n"),
            ("class/thermal/thermal_zone1/temp", "71500\n"),
            ("class/thermal/thermal_zone2/temp", "999999\n"),
        ]);
        assert!((probe.temperature() - 71.5).abs() < 1e-9);
        assert!(board(&[]).1.temperature().abs() < f64::EPSILON);
    }

    #[test]
    fn a_pi_s_firmware_says_when_it_throttles() {
        let (root, probe) = board(&[(PI_THROTTLED, "50005\n")]);
        assert!(probe.is_throttled(), "undervoltage and throttled, now and earlier");
        write(root.path(), PI_THROTTLED, "50000\n");
        assert!(!probe.is_throttled(), "earlier is over");
        assert!(is_throttled("throttled=0x4"));
        for text in ["0\n", "throttled=0x0", "", "nonsense"] {
            assert!(!is_throttled(text), "{text}");
        }
    }

    #[test]
    fn a_weak_power_supply_and_a_slowed_cpu_are_throttling_and_a_fan_is_not() {
        let voltage = |alarm| {
            [("class/hwmon/hwmon0/name", "cpu_thermal\n"), ("class/hwmon/hwmon1/name", "rpi_volt\n")]
                .into_iter()
                .chain([("class/hwmon/hwmon1/in0_lcrit_alarm", alarm)])
                .collect::<Vec<_>>()
        };
        assert!(board(&voltage("1\n")).1.is_throttled());
        assert!(!board(&voltage("0\n")).1.is_throttled());
        for (kind, state, throttled) in [
            ("thermal-cpufreq-0\n", "2\n", true),
            ("thermal-cpufreq-0\n", "0\n", false),
            ("Processor\n", "1\n", true),
            ("pwm-fan\n", "3\n", false),
        ] {
            let device =
                [("class/thermal/cooling_device0/type", kind), ("class/thermal/cooling_device0/cur_state", state)];
            assert_eq!(board(&device).1.is_throttled(), throttled, "{kind} {state}");
        }
    }
}
