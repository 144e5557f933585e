//! Files are read right in pieces of any size, and no cut or lie costs more than an answer.

use super::*;

/// A 32-bit arm file: header, one program header, `padding` bytes, attributes, section table.
fn arm_file(cpu_arch: u8, padding: usize, interpreter: bool) -> Vec<u8> {
    let attributes = {
        let inner = [6, cpu_arch];
        let file = [&[1][..], &7_u32.to_le_bytes(), &inner].concat();
        let body = [VENDOR, &file].concat();
        [&b"A"[..], &u32::try_from(4 + body.len()).unwrap().to_le_bytes(), &body].concat()
    };
    let attributes_at = 52 + 32 + padding;
    let sections_at = u32::try_from(attributes_at + attributes.len()).unwrap();
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    half(&mut file, if interpreter { 3 } else { 2 });
    half(&mut file, EM_ARM);
    for value in [1, 0, 52, sections_at, 0x0500_0400] {
        word(&mut file, value);
    }
    for value in [52, 32, 1, 40, 2, 0] {
        half(&mut file, value);
    }
    word(&mut file, if interpreter { PT_INTERP } else { 1 });
    file.resize(attributes_at, 0xaa);
    file.extend(&attributes);
    file.resize(file.len() + 40, 0);
    for value in [0, SHT_ARM_ATTRIBUTES, 0, 0, u32::try_from(attributes_at).unwrap()] {
        word(&mut file, value);
    }
    file.resize(file.len() + 20, 0);
    file
}

fn inspect(file: &[u8], piece: usize) -> Option<Program> {
    let mut inspector = Inspector::default();
    file.chunks(piece.max(1)).for_each(|bytes| inspector.feed(bytes));
    inspector.finish()
}

#[test]
fn an_arm_file_tells_all_in_pieces_of_every_size() {
    let file = arm_file(10, 300, true);
    for piece in 1..file.len() + 1 {
        let program = inspect(&file, piece).expect("a program");
        assert_eq!(program.cpu_arch, Some(10), "pieces of {piece}");
        assert!(program.is_executable && program.is_dynamic, "pieces of {piece}");
        assert_eq!((program.machine, program.class, program.flags), (EM_ARM, Class::Bits32, 0x0500_0400));
    }
    let program = inspect(&arm_file(9, 0, false), 4096).expect("a program");
    assert_eq!((program.cpu_arch, program.is_dynamic), (Some(9), false));
}

#[test]
fn decoys_before_the_attributes_change_nothing() {
    let mut file = arm_file(10, 4096, false);
    for at in (100..3000).step_by(40) {
        file[at..at + 11].copy_from_slice(b"A\x20\0\0\0aeabi\0");
    }
    for piece in [1, 7, 512, 8192] {
        assert_eq!(inspect(&file, piece).expect("a program").cpu_arch, Some(10));
    }
}

#[test]
fn other_machines_are_known_by_their_header_alone() {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[16] = 3;
    file[18] = 62;
    let mut inspector = Inspector::default();
    inspector.feed(&file[..40]);
    assert!(inspector.wants_more());
    inspector.feed(&file[40..]);
    assert!(!inspector.wants_more());
    assert_eq!(inspector.finish().expect("a program").machine, 62);
}

#[test]
fn what_is_not_run_is_nothing() {
    let mut object = arm_file(10, 0, false);
    object[16] = 1;
    for file in
        [&b""[..], b"\x7fEL", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x09\x01\x01aaaaaaaaaaaaaaaaaaaaaaa", &object]
    {
        assert_eq!(inspect(file, 3), None);
    }
}

#[test]
fn every_cut_and_every_changed_header_byte_is_read_without_harm() {
    let whole = arm_file(10, 64, true);
    for end in 0..whole.len() {
        let _ = inspect(&whole[..end], 16);
    }
    for at in 0..84 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] = value;
            let mut inspector = Inspector::default();
            changed.chunks(16).for_each(|bytes| inspector.feed(bytes));
            if let State::Arm(arm) = &inspector.state {
                let kept = arm.sections.bytes.len() + arm.programs.bytes.len();
                assert!(kept as u64 <= SECTION_TABLE_BYTES + PROGRAM_TABLE_BYTES);
            }
            let _ = inspector.finish();
        }
    }
}
