//! One attempt's log file: records of length, check and entry, one after the other.
//!
//! ```text
//! u32 little-endian  bytes of the entry
//! u32 little-endian  first four bytes of the entry's BLAKE3
//! ...                the entry, protobuf
//! ```
//! A record that is cut short or fails its check ends the file there: what follows was never acknowledged.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use kiln_common::limits;
use kiln_proto::v1::ProgressEntry;
use prost::Message as _;

const HEADER_BYTES: usize = 8;

/// The offset of every this many entries is kept in memory.
const INDEX_STEP: u64 = 256;

#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    /// Entries in the file.
    entries: u64,
    /// Bytes in the file.
    bytes: u64,
    /// Offset of entry `i * INDEX_STEP`.
    index: Vec<u64>,
}

impl LogFile {
    /// Opens or makes the file and cuts off a torn tail.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut log = Self { file, entries: 0, bytes: 0, index: Vec::new() };
        log.scan()?;
        log.file.set_len(log.bytes)?;
        Ok(log)
    }

    pub(super) const fn next_sequence(&self) -> u64 {
        self.entries
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends and syncs; on an error the file ends where it did before.
    pub(super) fn append(&mut self, entries: &[ProgressEntry]) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut starts = Vec::with_capacity(entries.len());
        for entry in entries {
            starts.push(self.bytes + buffer.len() as u64);
            let entry = entry.encode_to_vec();
            let length = u32::try_from(entry.len()).map_err(io::Error::other)?;
            buffer.extend_from_slice(&length.to_le_bytes());
            buffer.extend_from_slice(&check(&entry));
            buffer.extend_from_slice(&entry);
        }
        self.file.seek(SeekFrom::Start(self.bytes))?;
        let written = self.file.write_all(&buffer).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        for start in starts {
            self.note(start);
        }
        self.bytes += buffer.len() as u64;
        Ok(())
    }

    /// At most `most` entries and one message's bytes from `from` on.
    pub(super) fn read(&mut self, from: u64, most: usize) -> io::Result<Vec<ProgressEntry>> {
        let mut entries = Vec::new();
        if from >= self.entries {
            return Ok(entries);
        }
        let step = usize::try_from(from / INDEX_STEP).map_err(io::Error::other)?;
        self.file.seek(SeekFrom::Start(self.index[step]))?;
        let mut reader = BufReader::with_capacity(64 * 1024, &self.file);
        let mut bytes = 0;
        for sequence in (from / INDEX_STEP * INDEX_STEP)..self.entries {
            let Some(record) = read_record(&mut reader)? else { break };
            if sequence < from {
                continue;
            }
            bytes += record.len();
            if entries.len() == most || (bytes > limits::LOG_BATCH_BYTES && !entries.is_empty()) {
                break;
            }
            entries.push(ProgressEntry::decode(&record[..]).map_err(io::Error::other)?);
        }
        Ok(entries)
    }

    fn scan(&mut self) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(256 * 1024, self.file.try_clone()?);
        reader.seek(SeekFrom::Start(0))?;
        while let Some(record) = read_record(&mut reader)? {
            self.note(self.bytes);
            self.bytes += (HEADER_BYTES + record.len()) as u64;
        }
        Ok(())
    }

    /// One more entry, which starts at this offset.
    fn note(&mut self, start: u64) {
        if self.entries.is_multiple_of(INDEX_STEP) {
            self.index.push(start);
        }
        self.entries += 1;
    }
}

/// The next whole record's entry; `None` at the end or at the first torn one.
fn read_record(reader: &mut impl io::Read) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0_u8; HEADER_BYTES];
    if !fill(reader, &mut header)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if length > limits::MESSAGE_BYTES {
        return Ok(None);
    }
    let mut entry = vec![0_u8; length];
    let whole = fill(reader, &mut entry)? && check(&entry) == header[4..];
    Ok(whole.then_some(entry))
}

/// False when the file ends before the buffer is full.
fn fill(reader: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn check(entry: &[u8]) -> [u8; 4] {
    let hash = blake3::hash(entry);
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}
