//! One segment file of the cache: records of a head (chunk id, length) and the chunk's bytes, back to back.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use kiln_common::{
    context::{ChunkId, ChunkRef},
    limits,
};

/// 32 bytes of id, 4 of length.
pub(super) const HEAD_BYTES: usize = 36;

#[derive(Debug)]
pub(super) struct Segment {
    number: u64,
    file: File,
    len: AtomicU32,
}

pub(super) fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.chunks"))
}

/// The number of a segment's file; `None` for other files.
pub(super) fn number_of(name: &OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_suffix(".chunks").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Appends a record; how long it is.
pub(super) fn put_record(out: &mut Vec<u8>, id: ChunkId, bytes: &[u8]) -> u32 {
    let start = out.len();
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
    (out.len() - start) as u32
}

impl Segment {
    pub(super) fn create(directory: &Path, number: u64) -> io::Result<Self> {
        let file = options().create(true).truncate(true).open(path(directory, number))?;
        Ok(Self { number, file, len: AtomicU32::new(0) })
    }

    /// Opens a segment, tells of each record and cuts off what is torn at its end.
    pub(super) fn load(directory: &Path, number: u64, mut each: impl FnMut(ChunkId, u32)) -> io::Result<Self> {
        let file = options().open(path(directory, number))?;
        let on_disk = file.metadata()?.len();
        let mut offset = 0_u64;
        let mut head = [0; HEAD_BYTES];
        while offset + (HEAD_BYTES as u64) < on_disk {
            file.read_exact_at(&mut head, offset)?;
            let (id, len) = parse_head(&head);
            let end = offset + HEAD_BYTES as u64 + u64::from(len);
            let (false, Ok(start)) =
                (len == 0 || len as usize > limits::CHUNK_BYTES || end > on_disk, u32::try_from(offset))
            else {
                break;
            };
            each(id, start);
            offset = end;
        }
        if offset < on_disk {
            file.set_len(offset)?;
        }
        let len = u32::try_from(offset).map_err(|_| io::Error::other("a segment of more than 4 GiB"))?;
        Ok(Self { number, file, len: AtomicU32::new(len) })
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn len(&self) -> u32 {
        self.len.load(Ordering::Acquire)
    }

    /// Only one caller at a time: the cache holds its lock.
    pub(super) fn append(&self, records: &[u8]) -> io::Result<()> {
        let start = self.len();
        self.file.write_all_at(records, start.into())?;
        // On its way to the disk now, and out of memory: else the engine's next sync waits for all of it. Only a hint.
        let written = NonZeroU64::new(records.len() as u64);
        let _ = rustix::fs::fadvise(&self.file, start.into(), written, rustix::fs::Advice::DontNeed);
        self.len.store(start + records.len() as u32, Ordering::Release);
        Ok(())
    }

    /// The chunk at `offset`; `None` when it is another one, torn or corrupt.
    pub(super) fn read(&self, offset: u32, chunk: &ChunkRef) -> Option<Bytes> {
        let mut record = vec![0; HEAD_BYTES + chunk.len as usize];
        self.file.read_exact_at(&mut record, offset.into()).ok()?;
        let record = Bytes::from(record);
        let (id, len) = parse_head(record[..HEAD_BYTES].try_into().ok()?);
        let bytes = record.slice(HEAD_BYTES..);
        (id == chunk.id && len == chunk.len && ChunkId::of(&bytes) == chunk.id).then_some(bytes)
    }

    pub(super) fn remove(&self, directory: &Path) -> io::Result<()> {
        fs::remove_file(path(directory, self.number))
    }
}

fn options() -> fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(true);
    options
}

fn parse_head(head: &[u8; HEAD_BYTES]) -> (ChunkId, u32) {
    let (mut id, mut len) = ([0; 32], [0; 4]);
    id.copy_from_slice(&head[..32]);
    len.copy_from_slice(&head[32..]);
    (ChunkId::from_bytes(id), u32::from_le_bytes(len))
}
