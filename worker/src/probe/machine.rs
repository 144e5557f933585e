//! What the worker's machine is: said once with every registration.

use kiln_proto::v1::MachineInfo;

use super::{Probe, text};
use crate::engine::EngineFacts;

impl Probe {
    /// The machine of the engine: what the engine tells goes before what is measured here, which holds only for an
    /// engine on this machine.
    #[must_use]
    pub fn machine(&self, engine: &EngineFacts) -> MachineInfo {
        let here = if self.local { self.measured() } else { MachineInfo::default() };
        let here = MachineInfo {
            disk_bytes: self.engine_disk(engine).map_or(0, |disk| disk.total),
            kiln_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..here
        };
        match &engine.machine {
            Some(told) => {
                MachineInfo { cpus: told.cpus, memory_bytes: told.memory_bytes, os: kernel(&told.kernel), ..here }
            }
            None => here,
        }
    }

    fn measured(&self) -> MachineInfo {
        MachineInfo {
            cpu_model: cpu_model(&text(self.proc.join("cpuinfo"))),
            cpus: cpus(),
            memory_bytes: meminfo(&text(self.proc.join("meminfo")), "MemTotal"),
            os: kernel(&text(self.proc.join("sys/kernel/osrelease"))),
            ..MachineInfo::default()
        }
    }
}

fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

fn kernel(release: &str) -> String {
    format!("Linux {}", release.trim())
}

/// A line of `/proc/meminfo`, in bytes; 0 where there is none.
pub(super) fn meminfo(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibibytes = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

/// A CPU by its name where the kernel knows one, by arm's part numbers otherwise, and by the board as a last resort.
fn cpu_model(cpuinfo: &str) -> String {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim()).filter(|value| !value.is_empty())
        })
    };
    let part = || arm_part(field("CPU implementer")?, field("CPU part")?).map(str::to_owned);
    let named = || field("model name").filter(|name| !name.starts_with("ARMv")).map(str::to_owned);
    named()
        .or_else(part)
        .or_else(|| field("model name").or_else(|| field("Model")).map(str::to_owned))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// Arm's own part numbers (Main ID Register; Linux `arch/arm64/include/asm/cputype.h`).
fn arm_part(implementer: &str, part: &str) -> Option<&'static str> {
    Some(match (implementer, part) {
        ("0x41", "0xb76") => "ARM1176",
        ("0x41", "0xc07") => "Cortex-A7",
        ("0x41", "0xc08") => "Cortex-A8",
        ("0x41", "0xc09") => "Cortex-A9",
        ("0x41", "0xc0f") => "Cortex-A15",
        ("0x41", "0xd03") => "Cortex-A53",
        ("0x41", "0xd04") => "Cortex-A35",
        ("0x41", "0xd05") => "Cortex-A55",
        ("0x41", "0xd07") => "Cortex-A57",
        ("0x41", "0xd08") => "Cortex-A72",
        ("0x41", "0xd09") => "Cortex-A73",
        ("0x41", "0xd0a") => "Cortex-A75",
        ("0x41", "0xd0b") => "Cortex-A76",
        ("0x41", "0xd0c") => "Neoverse-N1",
        ("0x41", "0xd40") => "Neoverse-V1",
        ("0x41", "0xd49") => "Neoverse-N2",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PI_4: &str = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n\
        CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n\
        Revision\t: c03114\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n";
    const PI_ZERO: &str = "processor\t: 0\nmodel name\t: ARMv6-compatible processor rev 7 (v6l)\nBogoMIPS\t: 997.08\n\
        CPU implementer\t: 0x41\nCPU architecture: 7\nCPU part\t: 0xb76\nHardware\t: BCM2835\n\
        Model\t\t: Raspberry Pi Zero W Rev 1.1\n";
    const PC: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.80GHz\n";

    #[test]
    fn cpus_are_named_on_boards_and_on_pcs() {
        assert_eq!(cpu_model(PI_4), "Cortex-A72");
        assert_eq!(cpu_model(PI_ZERO), "ARM1176");
        assert_eq!(cpu_model(PC), "Intel(R) Xeon(R) CPU @ 2.80GHz");
        assert_eq!(cpu_model("model name : ARMv9 thing\n"), "ARMv9 thing");
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn memory_is_read_by_its_name() {
        let text = "MemTotal:         443080 kB\nMemFree:           50000 kB\nMemAvailable:     301716 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), 443_080 * 1024);
        assert_eq!(meminfo(text, "MemAvailable"), 301_716 * 1024);
        assert_eq!(meminfo(text, "SwapTotal"), 0);
    }
}
