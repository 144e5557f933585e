//! The bytes of a manifest: LEB128 numbers in their shortest form, length-prefixed texts, one encoding for each value.

use super::{ChunkId, ChunkRef, Entry, EntryKind};
use crate::limits;

/// The bytes are not a manifest chunk or a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it ends in the middle of a value")]
    Truncated,
    #[error("a number is not in its shortest form or too large")]
    Number,
    #[error("a path or a link target is not UTF-8")]
    Text,
    #[error("a path shares other bytes with the one before than it says")]
    Prefix,
    #[error("an entry has the unknown kind {0}")]
    Kind(u8),
    #[error("it does not start as a context root does")]
    Magic,
    #[error("{0} bytes follow its end")]
    Trailing(usize),
}

const DIRECTORY: u8 = 0;
const FILE: u8 = 1;
const SYMLINK: u8 = 2;
const HARD_LINK: u8 = 3;

pub(super) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_chunk(out: &mut Vec<u8>, chunk: &ChunkRef) {
    put_number(out, chunk.len.into());
    out.extend_from_slice(chunk.id.as_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Appends `entry`; `previous` is the path before it in the same chunk, empty at its start.
pub(super) fn put_entry(out: &mut Vec<u8>, previous: &str, entry: &Entry) {
    let shared = shared_prefix(previous.as_bytes(), entry.path.as_bytes());
    put_number(out, shared as u64);
    let suffix = &entry.path.as_bytes()[shared..];
    put_number(out, suffix.len() as u64);
    out.extend_from_slice(suffix);
    out.push(match &entry.kind {
        EntryKind::Directory => DIRECTORY,
        EntryKind::File(_) => FILE,
        EntryKind::Symlink(_) => SYMLINK,
        EntryKind::HardLink(_) => HARD_LINK,
    });
    put_number(out, entry.mode.into());
    out.extend_from_slice(&entry.mtime_ns.to_le_bytes());
    match &entry.kind {
        EntryKind::Directory => {}
        EntryKind::File(chunks) => {
            put_number(out, chunks.len() as u64);
            chunks.iter().for_each(|chunk| put_chunk(out, chunk));
        }
        EntryKind::Symlink(target) | EntryKind::HardLink(target) => put_text(out, target),
    }
}

fn shared_prefix(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(a, b)| a == b).count()
}

/// Reads values off the front of some bytes; never past their end, never more memory than they have bytes.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) const fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing(self.rest.len())) }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 || shift > 0 && byte == 0 {
                return Err(Malformed::Number);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Number)
    }

    fn length(&mut self, most: usize) -> Result<usize, Malformed> {
        usize::try_from(self.number()?).ok().filter(|length| *length <= most).ok_or(Malformed::Number)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = self.length(limits::PATH_BYTES)?;
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed::Text)
    }

    pub(super) fn chunk(&mut self) -> Result<ChunkRef, Malformed> {
        let len = u32::try_from(self.number()?).map_err(|_| Malformed::Number)?;
        let id = self.take(32)?.try_into().map_err(|_| Malformed::Truncated)?;
        Ok(ChunkRef { id: ChunkId::from_bytes(id), len })
    }

    pub(super) fn chunks(&mut self) -> Result<Vec<ChunkRef>, Malformed> {
        let count = usize::try_from(self.number()?).map_err(|_| Malformed::Number)?;
        // A chunk reference has at least 33 bytes: a count that lies allocates nothing.
        if count > self.rest.len() / 33 {
            return Err(Malformed::Truncated);
        }
        (0..count).map(|_| self.chunk()).collect()
    }

    /// The inverse of [`put_entry`].
    pub(super) fn entry(&mut self, previous: &str) -> Result<Entry, Malformed> {
        let path = self.path(previous)?;
        let kind = self.byte()?;
        let mode = u16::try_from(self.number()?).map_err(|_| Malformed::Number)?;
        let mtime = self.take(8)?.try_into().map_err(|_| Malformed::Truncated)?;
        let kind = match kind {
            DIRECTORY => EntryKind::Directory,
            FILE => EntryKind::File(self.chunks()?.into()),
            SYMLINK => EntryKind::Symlink(self.text()?.into()),
            HARD_LINK => EntryKind::HardLink(self.text()?.into()),
            unknown => return Err(Malformed::Kind(unknown)),
        };
        Ok(Entry { path, kind, mode, mtime_ns: i64::from_le_bytes(mtime) })
    }

    fn path(&mut self, previous: &str) -> Result<Box<str>, Malformed> {
        let shared = self.length(previous.len())?;
        let length = self.length(limits::PATH_BYTES)?;
        let suffix = self.take(length)?;
        let mut path = Vec::with_capacity(shared + length);
        path.extend_from_slice(&previous.as_bytes()[..shared]);
        path.extend_from_slice(suffix);
        // The longest shared prefix is the only one: two encodings of one tree would have two digests.
        if shared_prefix(previous.as_bytes(), &path) != shared {
            return Err(Malformed::Prefix);
        }
        String::from_utf8(path).map(String::into_boxed_str).map_err(|_| Malformed::Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, value);
            assert_eq!(Reader::new(&bytes).number(), Ok(value));
        }
        assert_eq!(Reader::new(&[0x80, 0x00]).number(), Err(Malformed::Number));
        assert_eq!(Reader::new(&[0xff; 10]).number(), Err(Malformed::Number));
        assert_eq!(Reader::new(&[0x80]).number(), Err(Malformed::Truncated));
    }

    #[test]
    fn a_count_that_lies_allocates_nothing() {
        let mut bytes = Vec::new();
        put_number(&mut bytes, u64::MAX / 64);
        assert_eq!(Reader::new(&bytes).chunks(), Err(Malformed::Truncated));
    }
}
