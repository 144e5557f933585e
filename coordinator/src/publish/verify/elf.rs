//! What an ELF file says that it runs on, read while its bytes go by (System V ABI, "ELF Header"; ELF for the Arm
//! Architecture).
//!
//! [`Inspector`] takes the file in pieces of any size and keeps some 400 KB of it at most: the headers, the table of
//! sections and what looks like build attributes. A file that is cut short or lies in its headers says less; it never
//! costs more.

use std::ops::Range;

use super::attributes;

/// `e_machine` of 32-bit arm, the one machine whose files say more than their headers do.
pub const EM_ARM: u16 = 40;

const IDENT_BYTES: usize = 16;
const PT_INTERP: u32 = 3;
const SHT_ARM_ATTRIBUTES: u32 = 0x7000_0003;
/// Larger tables than these belong to no program.
const SECTION_TABLE_BYTES: u64 = 256 * 1024;
const PROGRAM_TABLE_BYTES: u64 = 64 * 1024;
/// Build attributes have some 50 bytes; this many of the newest candidates are kept.
const ATTRIBUTES_BYTES: usize = 4 * 1024;
const CANDIDATES: usize = 16;
/// What stands after the format version and the length of an attributes section.
const VENDOR: &[u8] = b"aeabi\0";
const VENDOR_AT: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Bits32,
    Bits64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    Little,
    Big,
}

/// What of an ELF file decides where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    pub class: Class,
    pub order: ByteOrder,
    /// `e_machine`.
    pub machine: u16,
    /// `e_flags`.
    pub flags: u32,
    /// `ET_EXEC`, or `ET_DYN` with an interpreter; otherwise a shared library (or a static position-independent program).
    pub is_executable: bool,
    /// It is linked at run time, and so mixes with the libraries of its image.
    pub is_dynamic: bool,
    /// Tag_CPU_arch of arm's build attributes, where the file has them.
    pub cpu_arch: Option<u8>,
}

/// Reads one file.
#[derive(Debug)]
pub struct Inspector {
    at: u64,
    head: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The header has not arrived in full.
    Head,
    /// Not ELF, or nothing that would be executed.
    Nothing,
    /// All that there is to know.
    Known(Program),
    Arm(Box<Arm>),
}

/// The parts of an arm file that come after its header, wherever they are.
#[derive(Debug)]
struct Arm {
    program: Program,
    programs: Window,
    sections: Window,
    section_bytes: usize,
    program_bytes: usize,
    candidates: Vec<Window>,
    /// The last bytes seen, in which a candidate may begin.
    tail: Vec<u8>,
}

/// A range of the file that is kept.
#[derive(Debug)]
struct Window {
    range: Range<u64>,
    bytes: Vec<u8>,
}

impl Default for Inspector {
    fn default() -> Self {
        Self { at: 0, head: Vec::new(), state: State::Head }
    }
}

impl Inspector {
    /// The next bytes of the file.
    pub fn feed(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Head) {
            self.feed_head(bytes);
        }
        if let State::Arm(arm) = &mut self.state {
            arm.feed(self.at, bytes);
        }
        self.at += bytes.len() as u64;
    }

    /// Whether more bytes of the file can tell more.
    #[must_use]
    pub const fn wants_more(&self) -> bool {
        matches!(self.state, State::Head | State::Arm(_))
    }

    /// What the file is; `None` where it is nothing that runs.
    #[must_use]
    pub fn finish(self) -> Option<Program> {
        match self.state {
            State::Head | State::Nothing => None,
            State::Known(program) => Some(program),
            State::Arm(arm) => Some(arm.finish()),
        }
    }

    fn feed_head(&mut self, bytes: &[u8]) {
        let missing = |head: &Vec<u8>| head_bytes(head).saturating_sub(head.len());
        let mut rest = bytes;
        while !rest.is_empty() && missing(&self.head) > 0 {
            let (now, later) = rest.split_at(missing(&self.head).min(rest.len()));
            self.head.extend_from_slice(now);
            rest = later;
            if !b"\x7fELF".starts_with(&self.head[..self.head.len().min(4)]) {
                self.state = State::Nothing;
                return;
            }
        }
        if missing(&self.head) == 0 {
            self.state = read_head(&self.head);
        }
    }
}

/// How long the header is, as far as what is here of it tells.
fn head_bytes(head: &[u8]) -> usize {
    match head.get(4) {
        None => IDENT_BYTES,
        Some(1) => 52,
        Some(_) => 64,
    }
}

/// Fields of a header or a table, in the file's byte order; 0 where the bytes end.
#[derive(Clone, Copy)]
struct Fields<'a> {
    bytes: &'a [u8],
    order: ByteOrder,
}

impl Fields<'_> {
    fn number(self, at: usize, length: usize) -> u64 {
        let Some(bytes) = at.checked_add(length).and_then(|end| self.bytes.get(at..end)) else { return 0 };
        let shift = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        match self.order {
            ByteOrder::Big => bytes.iter().fold(0, shift),
            ByteOrder::Little => bytes.iter().rev().fold(0, shift),
        }
    }

    fn half(self, at: usize) -> u16 {
        u16::try_from(self.number(at, 2)).unwrap_or_default()
    }

    fn word(self, at: usize) -> u32 {
        u32::try_from(self.number(at, 4)).unwrap_or_default()
    }
}

fn read_head(head: &[u8]) -> State {
    let (Some(class), Some(order)) = (class(head[4]), order(head[5])) else { return State::Nothing };
    let fields = Fields { bytes: head, order };
    let kind = fields.half(16);
    let program = Program {
        class,
        order,
        machine: fields.half(18),
        flags: fields.word(if class == Class::Bits32 { 36 } else { 48 }),
        is_executable: kind == 2,
        is_dynamic: kind == 3,
        cpu_arch: None,
    };
    match (kind, program.machine) {
        (2 | 3, EM_ARM) if class == Class::Bits32 => State::Arm(Box::new(Arm::new(program, fields))),
        (2 | 3, _) => State::Known(program),
        // Object files and core dumps are not run.
        _ => State::Nothing,
    }
}

const fn class(byte: u8) -> Option<Class> {
    match byte {
        1 => Some(Class::Bits32),
        2 => Some(Class::Bits64),
        _ => None,
    }
}

const fn order(byte: u8) -> Option<ByteOrder> {
    match byte {
        1 => Some(ByteOrder::Little),
        2 => Some(ByteOrder::Big),
        _ => None,
    }
}

impl Arm {
    fn new(program: Program, head: Fields<'_>) -> Self {
        let table = |offset_at, entry_at, most| {
            let (start, entry, count) =
                (head.number(offset_at, 4), head.number(entry_at, 2), head.number(entry_at + 2, 2));
            let length = entry * count;
            let length = if length > most { 0 } else { length };
            (Window::new(start, length), usize::try_from(entry).unwrap_or_default())
        };
        let (programs, program_bytes) = table(28, 42, PROGRAM_TABLE_BYTES);
        let (sections, section_bytes) = table(32, 46, SECTION_TABLE_BYTES);
        Self { program, programs, sections, section_bytes, program_bytes, candidates: Vec::new(), tail: Vec::new() }
    }

    fn feed(&mut self, at: u64, bytes: &[u8]) {
        self.programs.feed(at, bytes);
        self.sections.feed(at, bytes);
        self.candidates.iter_mut().for_each(|candidate| candidate.feed(at, bytes));
        self.find_candidates(at, bytes);
    }

    /// `A`, a length and the vendor's name begin an attributes section. It may begin in one piece and end in the next.
    fn find_candidates(&mut self, at: u64, bytes: &[u8]) {
        let needed = VENDOR_AT + VENDOR.len();
        let kept = self.tail.len();
        // Only the seam is searched in a copy; the piece itself may be large.
        self.tail.extend_from_slice(&bytes[..bytes.len().min(needed)]);
        let seam = std::mem::take(&mut self.tail);
        for found in starts(&seam).filter(|found| *found < kept) {
            self.add_candidate(at - (kept - found) as u64, &seam[found..], at, bytes);
        }
        for found in starts(bytes) {
            self.add_candidate(at + found as u64, &bytes[found..], at, bytes);
        }
        self.tail = if bytes.len() >= needed {
            bytes[bytes.len() - (needed - 1)..].to_vec()
        } else {
            let all = [&seam[..kept], bytes].concat();
            all[all.len().saturating_sub(needed - 1)..].to_vec()
        };
    }

    /// `first`: its bytes so far, from its start on. The current piece began at `at`.
    fn add_candidate(&mut self, start: u64, first: &[u8], at: u64, bytes: &[u8]) {
        let length = 1 + Fields { bytes: first, order: self.program.order }.number(1, 4);
        if length as usize > ATTRIBUTES_BYTES {
            return;
        }
        if self.candidates.len() == CANDIDATES {
            self.candidates.remove(0);
        }
        let mut candidate = Window::new(start, length);
        if start < at {
            let before = usize::try_from(at - start).unwrap_or_default().min(first.len());
            candidate.feed(start, &first[..before]);
        }
        candidate.feed(at, bytes);
        self.candidates.push(candidate);
    }

    fn finish(mut self) -> Program {
        let order = self.program.order;
        let mut programs = self.programs.bytes.chunks_exact(self.program_bytes.max(1));
        let has_interpreter = programs.any(|entry| Fields { bytes: entry, order }.word(0) == PT_INTERP);
        let sections = self.sections.bytes.chunks_exact(self.section_bytes.max(1));
        let mut attributes =
            sections.map(|bytes| Fields { bytes, order }).filter(|section| section.word(4) == SHT_ARM_ATTRIBUTES);
        let attributes = attributes.next().and_then(|section| {
            let start = section.number(16, 4);
            self.candidates.iter().find(|candidate| candidate.range.start == start)
        });
        self.program.cpu_arch = attributes.and_then(|found| attributes::cpu_arch(&found.bytes, order));
        self.program.is_executable |= has_interpreter;
        self.program.is_dynamic |= has_interpreter;
        self.program
    }
}

/// Where attributes sections may begin.
fn starts(bytes: &[u8]) -> impl Iterator<Item = usize> {
    memchr::memmem::find_iter(bytes, VENDOR)
        .filter_map(|found| found.checked_sub(VENDOR_AT))
        .filter(|start| bytes[*start] == b'A')
}

impl Window {
    const fn new(start: u64, length: u64) -> Self {
        Self { range: start..start.saturating_add(length), bytes: Vec::new() }
    }

    /// Takes what of these bytes, which begin at `at`, comes next in the range.
    fn feed(&mut self, at: u64, bytes: &[u8]) {
        let next = self.range.start + self.bytes.len() as u64;
        let end = self.range.end.min(at + bytes.len() as u64);
        if next >= at && next < end {
            let relative = |position: u64| usize::try_from(position - at).unwrap_or_default();
            self.bytes.extend_from_slice(&bytes[relative(next)..relative(end)]);
        }
    }
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
