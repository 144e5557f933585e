//! Which platforms a worker runs, and how well: DESIGN's grades.
//!
//! The engine lists what its machine executes, its own platform first. The CPU is asked itself whether it runs the 32-bit
//! platforms: by a process where the engine is on this machine, by a container of the engine where it is not.

use std::collections::{BTreeMap, BTreeSet};

use kiln_common::{Grade, Platform};

use super::{Probe, elf, text};

impl Probe {
    /// Programs that an engine on another machine is to run, before [`Self::grades`] can say how it runs their platforms.
    #[must_use]
    pub fn trials(&self, listed: &[Platform]) -> Vec<(Platform, Vec<u8>)> {
        let own = listed.first().filter(|_| !self.local);
        let candidates = own.map(half_width).unwrap_or_default();
        candidates.into_iter().filter_map(|platform| Some((platform.clone(), elf::program(&platform)?))).collect()
    }

    /// Asks this machine, where the engine is on it; else `ran` has the platforms whose trials went well, and whatever
    /// else the engine lists counts as emulated.
    #[must_use]
    pub fn grades(&self, listed: &[Platform], ran: &BTreeSet<Platform>) -> BTreeMap<Platform, Grade> {
        if self.local {
            grade_all(listed, runs_here, |platform| self.has_lasting_handler(platform))
        } else {
            grade_all(listed, |platform| ran.contains(platform), |_| true)
        }
    }

    /// A handler that also works inside containers has the F flag (Linux, `admin-guide/binfmt-misc`). Where the handlers
    /// cannot be read, as in a container without that file system, the engine's own list stands.
    fn has_lasting_handler(&self, platform: &Platform) -> bool {
        let Ok(entries) = std::fs::read_dir(self.proc.join("sys/fs/binfmt_misc")) else { return true };
        let mut any = false;
        for entry in entries.flatten() {
            any = true;
            if let Some(handler) = Handler::parse(&text(entry.path()))
                && handler.is_for(platform)
            {
                return true;
            }
        }
        !any
    }
}

fn runs_here(platform: &Platform) -> bool {
    // A program that cannot even be started is one that the CPU does not run.
    elf::program(platform).is_some_and(|program| elf::runs(&program).unwrap_or(false))
}

/// Pure: `runs` tells what the CPU runs itself, `emulates` what an emulator can be had for.
fn grade_all(
    listed: &[Platform],
    runs: impl Fn(&Platform) -> bool,
    emulates: impl Fn(&Platform) -> bool,
) -> BTreeMap<Platform, Grade> {
    let Some(own) = listed.first() else { return BTreeMap::new() };
    let mut all: BTreeMap<_, _> =
        std::iter::once(own.clone()).chain(own.implied()).map(|platform| (platform, Grade::Native)).collect();
    for platform in listed.iter().cloned().chain(half_width(own)) {
        if all.contains_key(&platform) {
            continue;
        }
        let is_listed = listed.contains(&platform);
        if is_half_width(own, &platform) && runs(&platform) {
            all.insert(platform, Grade::Compat);
        } else if is_listed && platform.architecture() == own.architecture() && own.architecture() != "arm" {
            // Newer instruction sets of the same architecture, which BuildKit lists only where the CPU has them.
            all.insert(platform, Grade::Native);
        } else if is_listed && emulates(&platform) {
            all.insert(platform, Grade::Emulated);
        }
    }
    all
}

/// The 32-bit platforms that a 64-bit CPU may run itself.
fn half_width(own: &Platform) -> Vec<Platform> {
    let texts: &[&str] = match own.architecture() {
        "arm64" => &["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
        "amd64" => &["linux/386"],
        _ => &[],
    };
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn is_half_width(own: &Platform, platform: &Platform) -> bool {
    matches!((own.architecture(), platform.architecture()), ("arm64", "arm") | ("amd64", "386"))
}

/// An enabled handler with the F flag.
#[derive(Debug, PartialEq, Eq)]
struct Handler {
    magic: Vec<u8>,
}

impl Handler {
    /// A file of `/proc/sys/fs/binfmt_misc`; `None` for what is off, cannot be used in containers, or is no handler.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some("enabled") {
            return None;
        }
        let (mut lasts, mut magic) = (false, None);
        for line in lines {
            match line.split_once(' ') {
                Some(("flags:", flags)) => lasts = flags.contains('F'),
                Some(("magic", hex)) => magic = hex::decode(hex.trim()).ok(),
                Some(_) | None => {}
            }
        }
        magic.filter(|_| lasts).map(|magic| Self { magic })
    }

    /// Compares class, byte order and machine of the ELF header.
    fn is_for(&self, platform: &Platform) -> bool {
        let Some((class, order, machine)) = elf_kind(platform.architecture()) else { return false };
        let machine = if order == 1 { u16::to_le_bytes(machine) } else { u16::to_be_bytes(machine) };
        self.magic.get(4) == Some(&class)
            && self.magic.get(5) == Some(&order)
            && self.magic.get(18..20) == Some(&machine)
    }
}

/// `EI_CLASS`, `EI_DATA` and `e_machine` by Go's names of architectures.
fn elf_kind(architecture: &str) -> Option<(u8, u8, u16)> {
    Some(match architecture {
        "386" => (1, 1, 3),
        "arm" => (1, 1, 40),
        "amd64" => (2, 1, 62),
        "arm64" => (2, 1, 183),
        "riscv64" => (2, 1, 243),
        "loong64" => (2, 1, 258),
        "ppc64le" => (2, 1, 21),
        "s390x" => (2, 2, 22),
        "mips64le" => (2, 1, 8),
        "mips64" => (2, 2, 8),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platforms(texts: &[&str]) -> Vec<Platform> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn shown(grades: &BTreeMap<Platform, Grade>) -> Vec<String> {
        let mut all: Vec<_> = grades.iter().map(|(platform, grade)| format!("{platform} {grade}")).collect();
        all.sort();
        all
    }

    #[test]
    fn a_pi_4_runs_32_bit_arm_itself_and_emulates_the_rest() {
        let listed = platforms(&["linux/arm64", "linux/amd64", "linux/arm/v7", "linux/arm/v6"]);
        let grades = grade_all(&listed, |platform| platform.architecture() == "arm", |_| true);
        assert_eq!(
            shown(&grades),
            [
                "linux/amd64 emulated",
                "linux/arm/v5 compat",
                "linux/arm/v6 compat",
                "linux/arm/v7 compat",
                "linux/arm64 native"
            ]
        );
    }

    #[test]
    fn an_engine_elsewhere_is_graded_by_its_trials() {
        let listed = platforms(&["linux/arm64", "linux/arm/v7", "linux/riscv64"]);
        let probe = Probe::new(false, None);
        let trials: Vec<_> = probe.trials(&listed).into_iter().map(|(platform, _)| platform.to_string()).collect();
        assert_eq!(trials, ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]);
        let ran = platforms(&["linux/arm/v7", "linux/arm/v6"]).into_iter().collect();
        assert_eq!(
            shown(&probe.grades(&listed, &ran)),
            ["linux/arm/v6 compat", "linux/arm/v7 compat", "linux/arm64 native", "linux/riscv64 emulated"]
        );
        assert!(Probe::new(true, None).trials(&listed).is_empty(), "here the CPU is asked directly");
    }

    #[test]
    fn an_arm_cpu_without_32_bit_mode_emulates_arm_where_it_can() {
        let listed = platforms(&["linux/arm64", "linux/arm/v7"]);
        assert_eq!(shown(&grade_all(&listed, |_| false, |_| true)), ["linux/arm/v7 emulated", "linux/arm64 native"]);
        assert_eq!(shown(&grade_all(&listed, |_| false, |_| false)), ["linux/arm64 native"]);
    }

    #[test]
    fn a_pi_zero_runs_v6_and_older_and_never_v7() {
        let grades = grade_all(&platforms(&["linux/arm/v6"]), |_| false, |_| true);
        assert_eq!(shown(&grades), ["linux/arm/v5 native", "linux/arm/v6 native"]);
    }

    #[test]
    fn a_pc_runs_its_own_levels_natively_and_386_in_its_32_bit_mode() {
        let listed = platforms(&["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/386", "linux/arm64"]);
        let grades = grade_all(&listed, |platform| platform.architecture() == "386", |_| true);
        assert_eq!(
            shown(&grades),
            [
                "linux/386 compat",
                "linux/amd64 native",
                "linux/amd64/v2 native",
                "linux/amd64/v3 native",
                "linux/arm64 emulated"
            ]
        );
    }

    #[test]
    fn only_handlers_that_work_inside_containers_count() {
        let handler = |flags: &str| {
            format!(
                "enabled\ninterpreter /usr/bin/qemu-arm-static\nflags: {flags}\noffset 0\n\
                 magic 7f454c4601010100000000000000000002002800\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
            )
        };
        let arm = Handler::parse(&handler("OCF")).expect("a handler");
        let [v7, arm64]: [Platform; 2] = platforms(&["linux/arm/v7", "linux/arm64"]).try_into().unwrap();
        assert!(arm.is_for(&v7) && !arm.is_for(&arm64));
        assert_eq!(Handler::parse(&handler("OC")), None);
        assert_eq!(Handler::parse(&handler("F").replace("enabled", "disabled")), None);
        assert_eq!(Handler::parse("enabled\n"), None, "the status file");
    }
}
