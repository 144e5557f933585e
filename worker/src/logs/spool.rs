//! The tail of a log on disk, while the coordinator is away or slow: first in, first out, one file per attempt.
//!
//! A spool does not outlive its program (the build does not either), so nothing is synced and a start clears the folder.
//! Writes go to the page cache and are small; they are made where the entry arises, so that memory stays bounded.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kiln_common::{AttemptId, limits};
use kiln_proto::v1::ProgressEntry;
use prost::Message;

/// The folder of all spools and what they may take together.
#[derive(Debug, Clone)]
pub struct SpoolDir {
    path: PathBuf,
    free: Arc<AtomicU64>,
}

/// One attempt's tail. The file exists while there is something in it.
#[derive(Debug)]
pub struct Spool {
    dir: SpoolDir,
    path: PathBuf,
    file: Option<File>,
    entries: u64,
    read: u64,
    written: u64,
}

impl SpoolDir {
    /// Makes the folder, or clears what an earlier run left in it. All spools together hold `most` bytes.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(path: &Path, most: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { path: path.to_owned(), free: Arc::new(AtomicU64::new(most)) })
    }

    pub(super) fn spool(&self, attempt: AttemptId) -> Spool {
        let path = self.path.join(format!("{attempt}.log"));
        Spool { dir: self.clone(), path, file: None, entries: 0, read: 0, written: 0 }
    }

    fn take(&self, bytes: u64) -> bool {
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Spool {
    pub(super) const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Entries in the file.
    pub(super) const fn len(&self) -> u64 {
        self.entries
    }

    /// Adds an entry behind all others.
    pub(super) fn append(&mut self, entry: &ProgressEntry) -> io::Result<()> {
        let record = entry.encode_length_delimited_to_vec();
        let size = record.len() as u64;
        if !self.dir.take(size) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the spools hold as much as they may"));
        }
        if let Err(error) = self.write(&record) {
            self.dir.give_back(size);
            return Err(error);
        }
        self.written += size;
        self.entries += 1;
        Ok(())
    }

    /// Takes the oldest entries, about `bytes` of them and at least one; a file that is read to its end is removed.
    pub(super) fn take(&mut self, bytes: usize) -> io::Result<Vec<ProgressEntry>> {
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        let most = (bytes.max(limits::LOG_LINE_BYTES * 2) as u64).min(self.written - self.read);
        let mut buffer = vec![0; usize::try_from(most).unwrap_or(bytes)];
        file.read_exact_at(&mut buffer, self.read)?;
        let mut rest = buffer.as_slice();
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let mut ahead = rest;
            let Ok(entry) = ProgressEntry::decode_length_delimited(&mut ahead) else { break };
            entries.push(entry);
            rest = ahead;
        }
        if entries.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the spool does not decode"));
        }
        self.read += (buffer.len() - rest.len()) as u64;
        self.entries -= entries.len() as u64;
        if self.entries == 0 {
            self.clear();
        }
        Ok(entries)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        if self.file.take().is_some() {
            let _ = std::fs::remove_file(&self.path);
        }
        self.dir.give_back(self.written);
        (self.entries, self.read, self.written) = (0, 0, 0);
    }

    fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            empty @ None => empty.insert(create(&self.path)?),
        };
        file.write_all_at(record, self.written)
    }
}

/// Build output may be confidential: only this user reads it.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(true).read(true).write(true).mode(0o600).open(path)
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::v1::{LogLine, progress_entry::Event};

    use super::*;

    fn line(number: usize) -> ProgressEntry {
        let text = format!("line {number} {}", "x".repeat(number % 300)).into_bytes();
        ProgressEntry { time: None, event: Some(Event::Line(LogLine { text, ..LogLine::default() })) }
    }

    #[test]
    fn entries_come_out_in_order_and_leave_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let spools = SpoolDir::open(dir.path(), limits::LOG_SPOOL_BYTES).unwrap();
        let mut spool = spools.spool(AttemptId::generate());
        (0..5000).for_each(|number| spool.append(&line(number)).unwrap());
        let mut read = Vec::new();
        while !spool.is_empty() {
            read.extend(spool.take(10_000).unwrap());
        }
        assert_eq!(read, (0..5000).map(line).collect::<Vec<_>>());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(spools.free.load(Ordering::Relaxed), limits::LOG_SPOOL_BYTES);
    }

    #[test]
    fn a_full_folder_refuses_and_a_start_clears_what_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let spools = SpoolDir::open(dir.path(), 100).unwrap();
        let mut spool = spools.spool(AttemptId::generate());
        spool.append(&line(10)).unwrap();
        assert!(spool.append(&line(299)).is_err());
        assert_eq!(spool.len(), 1);
        SpoolDir::open(dir.path(), limits::LOG_SPOOL_BYTES).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
