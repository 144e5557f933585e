//! What the programs of a platform's images are, and how a found one differs.

use kiln_common::Platform;

use super::elf::{ByteOrder, Class, EM_ARM, Program};

const EF_ARM_ABI_FLOAT_SOFT: u32 = 0x200;
const EF_ARM_ABI_FLOAT_HARD: u32 = 0x400;

/// One row per architecture: its name in the OCI image-spec (`GOARCH`) and its ELF machine (System V ABI, "e_machine").
const MACHINES: [(&str, u16, Class, ByteOrder); 13] = [
    ("386", 3, Class::Bits32, ByteOrder::Little),
    ("amd64", 62, Class::Bits64, ByteOrder::Little),
    ("arm", EM_ARM, Class::Bits32, ByteOrder::Little),
    ("arm64", 183, Class::Bits64, ByteOrder::Little),
    ("loong64", 258, Class::Bits64, ByteOrder::Little),
    ("mips", 8, Class::Bits32, ByteOrder::Big),
    ("mipsle", 8, Class::Bits32, ByteOrder::Little),
    ("mips64", 8, Class::Bits64, ByteOrder::Big),
    ("mips64le", 8, Class::Bits64, ByteOrder::Little),
    ("ppc64", 21, Class::Bits64, ByteOrder::Big),
    ("ppc64le", 21, Class::Bits64, ByteOrder::Little),
    ("riscv64", 243, Class::Bits64, ByteOrder::Little),
    ("s390x", 22, Class::Bits64, ByteOrder::Big),
];

/// What the programs in images of one platform have to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    architecture: &'static str,
    arm: Option<ArmLimits>,
}

/// What a 32-bit arm variant runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ArmLimits {
    /// `v5`, `v6`, `v7`.
    variant: &'static str,
    /// Highest Tag_CPU_arch.
    newest: u8,
    float: Float,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Float {
    /// No floating-point registers to pass arguments in.
    Soft,
    /// Debian's armel and Raspberry Pi's or Alpine's armhf both exist.
    Either,
    Hard,
}

impl Expected {
    /// `None` where Kiln knows no ELF machine for the platform.
    #[must_use]
    pub fn of(platform: &Platform) -> Option<Self> {
        if platform.os() != "linux" {
            return None;
        }
        let (architecture, ..) = MACHINES.iter().find(|(name, ..)| *name == platform.architecture())?;
        let arm = match (*architecture, platform.variant()) {
            ("arm", Some("v5")) => Some(ArmLimits { variant: "v5", newest: V5TEJ, float: Float::Soft }),
            ("arm", Some("v6")) => Some(ArmLimits { variant: "v6", newest: V6K, float: Float::Either }),
            ("arm", Some("v7")) => Some(ArmLimits { variant: "v7", newest: V8, float: Float::Hard }),
            _ => None,
        };
        Some(Self { architecture, arm })
    }

    /// What is wrong with the program, in words that go on after "is"; `None` where it belongs in the image.
    #[must_use]
    pub fn mismatch(&self, program: &Program) -> Option<String> {
        // Machines without an OCI name (BPF, GPUs, microcontrollers) are loaded by other programs, not run by the kernel.
        let found = architecture_of(program)?;
        if found != self.architecture {
            return Some(format!("a program for linux/{found}"));
        }
        self.arm.and_then(|limits| limits.mismatch(program))
    }
}

fn architecture_of(program: &Program) -> Option<String> {
    let of_machine = MACHINES.iter().filter(|(_, machine, ..)| *machine == program.machine);
    let exact = of_machine.clone().find(|(_, _, class, order)| (*class, *order) == (program.class, program.order));
    match (exact, of_machine.clone().next()) {
        (Some((name, ..)), _) => Some((*name).to_owned()),
        (None, Some((name, ..))) => Some(format!("{name} in its {} variety", variety(program))),
        (None, None) => None,
    }
}

fn variety(program: &Program) -> &'static str {
    match (program.class, program.order) {
        (Class::Bits32, ByteOrder::Little) => "32-bit little-endian",
        (Class::Bits32, ByteOrder::Big) => "32-bit big-endian",
        (Class::Bits64, ByteOrder::Little) => "64-bit little-endian",
        (Class::Bits64, ByteOrder::Big) => "64-bit big-endian",
    }
}

// Tag_CPU_arch ("Addenda to the ABI for the Arm Architecture", "Target-related attributes").
const V5TEJ: u8 = 5;
const V6T2: u8 = 8;
const V6K: u8 = 9;
const V7: u8 = 10;
const V8: u8 = 14;
const NAMES: [(u8, &str); 13] = [
    (0, "before v4"),
    (1, "v4"),
    (2, "v4T"),
    (3, "v5T"),
    (4, "v5TE"),
    (V5TEJ, "v5TEJ"),
    (6, "v6"),
    (7, "v6KZ"),
    (V6T2, "v6T2"),
    (V6K, "v6K"),
    (V7, "v7"),
    (V8, "v8"),
    (22, "v9"),
];

impl ArmLimits {
    fn mismatch(self, program: &Program) -> Option<String> {
        self.cpu(program).or_else(|| self.float(program))
    }

    fn cpu(self, program: &Program) -> Option<String> {
        let found = program.cpu_arch?;
        // The profiles for microcontrollers have no names here: nothing of theirs runs under Linux.
        let (_, name) = NAMES.iter().find(|(value, _)| *value == found)?;
        // Libraries that choose code at run time carry the mark of the newest CPU that they know. No distribution
        // compiles all of its 32-bit code for v8, so in a library that mark is always such a choice.
        let chooses = found >= V8 && !program.is_executable;
        // Thumb-2 came to v6 with one CPU that runs no Linux; those that do lack it.
        let is_newer = found > self.newest || (found == V6T2 && self.newest == V6K);
        (is_newer && !chooses).then(|| format!("arm {name} code, which an arm/{} CPU does not run", self.variant))
    }

    fn float(self, program: &Program) -> Option<String> {
        let is_hard = program.flags & EF_ARM_ABI_FLOAT_HARD != 0;
        let is_soft = program.flags & EF_ARM_ABI_FLOAT_SOFT != 0;
        match self.float {
            Float::Soft if is_hard => {
                Some(format!("hard-float arm code, which an arm/{} CPU does not run", self.variant))
            }
            // A static program brings all its code along and runs either way.
            Float::Hard if is_soft && program.is_dynamic => Some(format!(
                "soft-float arm code, which does not link with an arm/{} image's hard-float libraries",
                self.variant
            )),
            Float::Soft | Float::Hard | Float::Either => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(machine: u16, class: Class) -> Program {
        Program {
            class,
            order: ByteOrder::Little,
            machine,
            flags: 0,
            is_executable: true,
            is_dynamic: false,
            cpu_arch: None,
        }
    }

    fn arm(cpu_arch: u8, flags: u32) -> Program {
        Program { cpu_arch: Some(cpu_arch), flags, ..program(EM_ARM, Class::Bits32) }
    }

    fn expected(platform: &str) -> Expected {
        Expected::of(&platform.parse().expect("a platform")).expect("known")
    }

    #[test]
    fn an_amd64_program_belongs_in_amd64_images_alone() {
        let amd64 = program(62, Class::Bits64);
        assert_eq!(expected("linux/amd64").mismatch(&amd64), None);
        for other in ["linux/arm64", "linux/arm/v7", "linux/386", "linux/riscv64"] {
            assert_eq!(expected(other).mismatch(&amd64).as_deref(), Some("a program for linux/amd64"), "{other}");
        }
        let x32 = expected("linux/amd64").mismatch(&program(62, Class::Bits32)).expect("the x32 variety");
        assert!(x32.contains("amd64 in its 32-bit little-endian variety"), "{x32}");
    }

    #[test]
    fn code_for_newer_arm_cpus_is_refused_where_it_would_crash() {
        for (platform, arch, fits) in [
            ("linux/arm/v6", 10, false),
            ("linux/arm/v6", V6T2, false),
            ("linux/arm/v6", V6K, true),
            ("linux/arm/v6", 4, true),
            ("linux/arm/v6", V8, false),
            ("linux/arm/v5", 6, false),
            ("linux/arm/v5", V5TEJ, true),
            ("linux/arm/v7", V7, true),
            ("linux/arm/v7", V8, true),
            ("linux/arm/v7", 22, false),
        ] {
            assert_eq!(expected(platform).mismatch(&arm(arch, 0)).is_none(), fits, "{arch} in {platform}");
        }
        let library = Program { is_executable: false, is_dynamic: true, ..arm(V8, EF_ARM_ABI_FLOAT_HARD) };
        assert_eq!(expected("linux/arm/v6").mismatch(&library), None, "it chooses at run time");
    }

    #[test]
    fn the_float_abi_counts_where_code_is_linked_with_other_code() {
        let soft = arm(4, EF_ARM_ABI_FLOAT_SOFT);
        let soft_dynamic = Program { is_dynamic: true, ..soft };
        let hard = arm(4, EF_ARM_ABI_FLOAT_HARD);
        assert_eq!(expected("linux/arm/v7").mismatch(&soft), None);
        assert!(expected("linux/arm/v7").mismatch(&soft_dynamic).expect("wrong").contains("soft-float"));
        assert!(expected("linux/arm/v5").mismatch(&hard).expect("wrong").contains("hard-float"));
        assert_eq!(expected("linux/arm/v6").mismatch(&hard).or(expected("linux/arm/v6").mismatch(&soft_dynamic)), None);
    }

    #[test]
    fn what_no_kernel_runs_is_nobody_s_mistake() {
        let bpf = program(247, Class::Bits64);
        assert_eq!(expected("linux/arm64").mismatch(&bpf), None);
        let microcontroller = arm(13, 0);
        assert_eq!(expected("linux/arm/v6").mismatch(&microcontroller), None);
        assert_eq!(Expected::of(&"windows/amd64".parse().expect("a platform")), None);
    }
}
