//! Arm's build attributes ("Addenda to, and Errata in, the ABI for the Arm Architecture", section 3): of all of them, the
//! CPU architecture that a file was compiled for.

use super::elf::ByteOrder;

const TAG_FILE: u64 = 1;
const TAG_CPU_RAW_NAME: u64 = 4;
const TAG_CPU_NAME: u64 = 5;
const TAG_CPU_ARCH: u64 = 6;
const TAG_COMPATIBILITY: u64 = 32;

/// Tag_CPU_arch of an attributes section; `None` where it says none or does not read.
#[must_use]
pub fn cpu_arch(section: &[u8], order: ByteOrder) -> Option<u8> {
    let (version, mut rest) = section.split_first()?;
    if *version != b'A' {
        return None;
    }
    while !rest.is_empty() {
        let (vendor_section, after) = split_sized(rest, 0, order)?;
        rest = after;
        let body = vendor_section.get(4..)?;
        if let Some(attributes) = body.strip_prefix(b"aeabi\0")
            && let Some(found) = of_file(attributes, order)
        {
            return Some(found);
        }
    }
    None
}

fn of_file(mut rest: &[u8], order: ByteOrder) -> Option<u8> {
    while !rest.is_empty() {
        let mut reader = Reader(rest);
        let tag = reader.number()?;
        let tag_bytes = rest.len() - reader.0.len();
        let (part, after) = split_sized(rest, tag_bytes, order)?;
        if tag == TAG_FILE {
            return among(Reader(part.get(tag_bytes + 4..)?));
        }
        rest = after;
    }
    None
}

fn among(mut attributes: Reader<'_>) -> Option<u8> {
    while !attributes.0.is_empty() {
        match attributes.number()? {
            TAG_CPU_ARCH => return u8::try_from(attributes.number()?).ok(),
            TAG_CPU_RAW_NAME | TAG_CPU_NAME => attributes.text()?,
            TAG_COMPATIBILITY => {
                attributes.number()?;
                attributes.text()?;
            }
            // Of the others the odd ones are texts.
            tag if tag > TAG_COMPATIBILITY && tag % 2 == 1 => attributes.text()?,
            _ => {
                attributes.number()?;
            }
        }
    }
    None
}

/// Splits off a part whose length in bytes, itself included, stands at `at`.
fn split_sized(bytes: &[u8], at: usize, order: ByteOrder) -> Option<(&[u8], &[u8])> {
    let field: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    let length = match order {
        ByteOrder::Little => u32::from_le_bytes(field),
        ByteOrder::Big => u32::from_be_bytes(field),
    };
    let length = usize::try_from(length).ok()?;
    if length < at + 4 { None } else { bytes.split_at_checked(length) }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// ULEB128.
    fn number(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..63).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn text(&mut self) -> Option<()> {
        let end = memchr::memchr(0, self.0)?;
        self.0 = &self.0[end + 1..];
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Debian's armhf busybox has it, up to the tags that follow.
    fn section(arch: u8) -> Vec<u8> {
        let attributes = [&[5][..], b"7-A\0", &[6, arch, 7, b'A', 34, 1]].concat();
        let file = [&[1][..], &u32::try_from(5 + attributes.len()).unwrap().to_le_bytes(), &attributes].concat();
        let body = [&b"aeabi\0"[..], &file].concat();
        [&b"A"[..], &u32::try_from(4 + body.len()).unwrap().to_le_bytes(), &body].concat()
    }

    #[test]
    fn the_architecture_is_read_past_the_name() {
        assert_eq!(cpu_arch(&section(10), ByteOrder::Little), Some(10));
        assert_eq!(cpu_arch(&section(14), ByteOrder::Little), Some(14));
    }

    #[test]
    fn every_cut_and_every_changed_byte_reads_without_harm() {
        let whole = section(10);
        for end in 0..whole.len() {
            assert!(matches!(cpu_arch(&whole[..end], ByteOrder::Little), None | Some(10)));
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                let _ = cpu_arch(&changed, ByteOrder::Big).or(cpu_arch(&changed, ByteOrder::Little));
            }
        }
    }
}
