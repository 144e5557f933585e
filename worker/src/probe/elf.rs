//! Tiny static programs that exit with 0 where the CPU itself runs them.
//!
//! The bytes after the ABI in `e_ident` (ELF specification, `EI_PAD`) are not zero: the kernel's own loader ignores them,
//! while the masks that binfmt_misc handlers are registered with do not, so no emulator ever runs one.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
    process::{Command, Stdio},
};

use kiln_common::Platform;
use rustix::fs::{MemfdFlags, memfd_create};

const LOAD_ADDRESS: u32 = 0x1_0000;
const HEADERS: u32 = 52 + 32;
const EM_386: u16 = 3;
const EM_ARM: u16 = 40;
/// EABI version 5, which Linux wants of arm programs.
const EF_ARM_EABI5: u32 = 0x0500_0000;

/// `exit(0)` after an instruction that only this variant and newer ones have.
const ARM_V7: [u32; 4] = [0xf57f_f05f, 0xe3a0_0000, 0xe3a0_7001, 0xef00_0000]; // dmb sy
const ARM_V6: [u32; 4] = [0xe6bf_1f30, 0xe3a0_0000, 0xe3a0_7001, 0xef00_0000]; // rev r1, r0
const ARM_V5: [u32; 4] = [0xe16f_1f10, 0xe3a0_0000, 0xe3a0_7001, 0xef00_0000]; // clz r1, r0
/// `mov eax, 1; xor ebx, ebx; int 0x80`.
const I386: [u8; 9] = [0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80];

/// A program for a 32-bit platform; `None` for the others.
#[must_use]
pub fn program(platform: &Platform) -> Option<Vec<u8>> {
    let arm = |words: [u32; 4]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    match (platform.os(), platform.architecture(), platform.variant()) {
        ("linux", "arm", Some("v7")) => Some(elf32(EM_ARM, EF_ARM_EABI5, &arm(ARM_V7))),
        ("linux", "arm", Some("v6")) => Some(elf32(EM_ARM, EF_ARM_EABI5, &arm(ARM_V6))),
        ("linux", "arm", Some("v5")) => Some(elf32(EM_ARM, EF_ARM_EABI5, &arm(ARM_V5))),
        ("linux", "386", _) => Some(elf32(EM_386, 0, &I386)),
        _ => None,
    }
}

/// A little-endian executable with one segment (ELF specification, "ELF Header" and "Program Header").
fn elf32(machine: u16, flags: u32, code: &[u8]) -> Vec<u8> {
    let size = HEADERS + u32::try_from(code.len()).unwrap_or_default();
    let mut file = b"\x7fELF\x01\x01\x01\x00".to_vec();
    file.extend(*b"kilnprob");
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    half(&mut file, 2);
    half(&mut file, machine);
    for value in [1, LOAD_ADDRESS + HEADERS, 52, 0, flags] {
        word(&mut file, value);
    }
    for value in [52, 32, 1, 40, 0, 0] {
        half(&mut file, value);
    }
    for value in [1, 0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 5, 0x1000] {
        word(&mut file, value);
    }
    file.extend(code);
    file
}

/// Whether the kernel runs `program` and it ends well. It is held in memory, so that no folder has to allow programs.
pub fn runs(program: &[u8]) -> io::Result<bool> {
    let mut file = File::from(memfd_create("kiln-probe", MemfdFlags::CLOEXEC)?);
    file.write_all(program)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let status =
        Command::new(path).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_misses_the_masks_of_emulators_and_keeps_to_the_format() {
        for platform in ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5", "linux/386"] {
            let program = program(&platform.parse().unwrap()).expect(platform);
            assert_eq!(program[..8], *b"\x7fELF\x01\x01\x01\x00");
            assert!(program[8..16].iter().all(|byte| *byte != 0), "{platform}");
            assert_eq!(u32::from_le_bytes(program[24..28].try_into().unwrap()), LOAD_ADDRESS + HEADERS);
            assert_eq!(u32::from_le_bytes(program[68..72].try_into().unwrap()) as usize, program.len());
        }
        assert_eq!(program(&"linux/amd64".parse().unwrap()), None);
        assert_eq!(program(&"windows/386".parse().unwrap()), None);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn foreign_instructions_are_not_run_even_where_an_emulator_would() {
        let arm = program(&"linux/arm/v7".parse().unwrap()).unwrap();
        assert!(!runs(&arm).unwrap_or(false));
    }
}
