//! One attempt's entries that are not durable yet: the head in memory, the tail in the spool.
//!
//! Invariant: entries are numbered from 0 without a gap, an entry is dropped only before it has a number, and memory
//! holds no more than [`limits::LOG_MEMORY_BYTES`].

use std::collections::VecDeque;

use kiln_common::limits;
use kiln_proto::v1::{LogBatch, LogLine, ProgressEntry, Vertex, progress_entry::Event};
use prost::Message;

use super::spool::Spool;

/// What an entry takes in memory beside its text.
const ENTRY_OVERHEAD: usize = 256;

/// Kept free for the two entries that say how much was dropped.
const RESERVE: u64 = 4096;

pub(super) struct Buffer {
    /// All entries before this one are durable; it is the first one in `memory`.
    acknowledged: u64,
    memory: VecDeque<(ProgressEntry, usize)>,
    memory_bytes: usize,
    /// Entries behind those in memory.
    spool: Spool,
    /// Number of the next entry.
    next: u64,
    bytes: u64,
    dropped: u64,
    closed: bool,
}

/// What could be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pending {
    Nothing,
    /// Less than a full message: more may join it for a moment.
    Some,
    /// A message that need not wait.
    Full,
}

impl Buffer {
    pub(super) fn new(spool: Spool) -> Self {
        Self {
            acknowledged: 0,
            memory: VecDeque::new(),
            memory_bytes: 0,
            spool,
            next: 0,
            bytes: 0,
            dropped: 0,
            closed: false,
        }
    }

    /// Numbers and keeps an entry, or counts it as dropped once the log is as long as it may be.
    pub(super) fn push(&mut self, entry: ProgressEntry) {
        if self.closed {
            return;
        }
        let size = entry.encoded_len() as u64;
        if self.bytes + size > limits::LOG_BYTES_PER_ATTEMPT - RESERVE || !self.store(entry) {
            self.dropped += 1;
        } else {
            self.bytes += size;
        }
    }

    /// Nothing follows; says how much was dropped, if anything was.
    pub(super) fn close(&mut self) {
        if self.dropped > 0 && !self.closed {
            for event in dropped_notice(self.dropped) {
                // A log whose end cannot be stored either is complete without it.
                let _ = self.store(ProgressEntry { time: None, event: Some(event) });
            }
        }
        self.closed = true;
    }

    fn store(&mut self, entry: ProgressEntry) -> bool {
        let size = entry.encoded_len() + ENTRY_OVERHEAD;
        if self.spool.is_empty() && self.memory_bytes + size <= limits::LOG_MEMORY_BYTES {
            self.memory_bytes += size;
            self.memory.push_back((entry, size));
        } else if self.spool.append(&entry).is_err() {
            return false;
        }
        self.next += 1;
        debug_assert_eq!(self.next, self.acknowledged + self.memory.len() as u64 + self.spool.len());
        true
    }

    /// Entries before `next` are durable. A number that was never sent is taken for the last one that was.
    pub(super) fn acknowledge(&mut self, next: u64) {
        let count = next.saturating_sub(self.acknowledged).min(self.memory.len() as u64);
        for _ in 0..count {
            if let Some((_, size)) = self.memory.pop_front() {
                self.memory_bytes -= size;
            }
        }
        self.acknowledged += count;
        if self.memory_bytes < limits::LOG_MEMORY_BYTES / 2 {
            self.refill();
        }
    }

    fn refill(&mut self) {
        if self.spool.is_empty() {
            return;
        }
        match self.spool.take(limits::LOG_MEMORY_BYTES / 4) {
            Ok(entries) => {
                for entry in entries {
                    let size = entry.encoded_len() + ENTRY_OVERHEAD;
                    self.memory_bytes += size;
                    self.memory.push_back((entry, size));
                }
            }
            Err(error) => {
                tracing::warn!(%error, entries = self.spool.len(), "the log's spool cannot be read; its entries are lost");
                self.lose_spool();
            }
        }
    }

    /// What the spool held is gone: numbers go on from what memory holds, so that there is still no gap.
    fn lose_spool(&mut self) {
        self.dropped += self.spool.len();
        self.next -= self.spool.len();
        self.spool.clear();
    }

    /// The entries from `cursor` on that fit into one message.
    pub(super) fn batch(&self, cursor: u64) -> Option<LogBatch> {
        let mut bytes = 0;
        let entries: Vec<_> = self
            .after(cursor)
            .take(limits::LOG_BATCH_ENTRIES)
            .take_while(|(_, size)| {
                bytes += size;
                bytes <= limits::LOG_BATCH_BYTES
            })
            .map(|(entry, _)| entry.clone())
            .collect();
        (!entries.is_empty()).then(|| LogBatch { attempt_id: String::new(), first_sequence: cursor, entries })
    }

    pub(super) fn pending(&self, cursor: u64) -> Pending {
        let count = self.after(cursor).len();
        if count == 0 {
            Pending::Nothing
        } else if self.closed || count >= limits::LOG_BATCH_ENTRIES || self.memory_bytes >= limits::LOG_BATCH_BYTES {
            Pending::Full
        } else {
            Pending::Some
        }
    }

    fn after(&self, cursor: u64) -> impl ExactSizeIterator<Item = &(ProgressEntry, usize)> {
        let skip = usize::try_from(cursor.saturating_sub(self.acknowledged)).unwrap_or(usize::MAX);
        self.memory.range(skip.min(self.memory.len())..)
    }

    pub(super) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Entries in all so far.
    pub(super) const fn entries(&self) -> u64 {
        self.next
    }

    /// Closed, and every entry is durable.
    pub(super) const fn is_durable(&self) -> bool {
        self.closed && self.acknowledged == self.next
    }
}

fn dropped_notice(dropped: u64) -> [Event; 2] {
    let vertex = "kiln:log".to_owned();
    let text = format!("{dropped} entries were dropped here: the log was longer than the farm keeps").into_bytes();
    [
        Event::Vertex(Vertex { digest: vertex.clone(), name: "[kiln] end of the log".to_owned(), ..Vertex::default() }),
        Event::Line(LogLine { vertex, stream: 2, text, partial: false }),
    ]
}

#[cfg(test)]
mod tests {
    use kiln_common::AttemptId;

    use super::{super::spool::SpoolDir, *};

    fn line(number: u64, bytes: usize) -> ProgressEntry {
        let text = format!("{number:08}{}", "x".repeat(bytes)).into_bytes();
        ProgressEntry { time: None, event: Some(Event::Line(LogLine { text, ..LogLine::default() })) }
    }

    /// Sends everything, acknowledging each batch, and returns what came out.
    fn drain(buffer: &mut Buffer) -> Vec<ProgressEntry> {
        let mut out = Vec::new();
        while let Some(batch) = buffer.batch(buffer.acknowledged()) {
            assert_eq!(batch.first_sequence, out.len() as u64);
            out.extend(batch.entries);
            buffer.acknowledge(out.len() as u64);
        }
        out
    }

    #[test]
    fn what_does_not_fit_into_memory_comes_back_from_the_spool_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut buffer =
            Buffer::new(SpoolDir::open(dir.path(), limits::LOG_SPOOL_BYTES).unwrap().spool(AttemptId::generate()));
        (0..3000).for_each(|number| buffer.push(line(number, 2000)));
        assert!(buffer.memory_bytes <= limits::LOG_MEMORY_BYTES && !buffer.spool.is_empty());
        let out = drain(&mut buffer);
        assert_eq!(out, (0..3000).map(|number| line(number, 2000)).collect::<Vec<_>>());
        assert!(!buffer.is_durable());
        buffer.close();
        assert!(buffer.is_durable());
    }

    #[test]
    fn nothing_is_forgotten_before_it_is_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let mut buffer =
            Buffer::new(SpoolDir::open(dir.path(), limits::LOG_SPOOL_BYTES).unwrap().spool(AttemptId::generate()));
        (0..10).for_each(|number| buffer.push(line(number, 1)));
        assert_eq!(buffer.batch(0).unwrap().entries.len(), 10);
        assert_eq!(buffer.pending(10), Pending::Nothing);
        buffer.acknowledge(4);
        assert_eq!(buffer.batch(4).unwrap().entries[0], line(4, 1));
        buffer.acknowledge(2);
        assert_eq!(buffer.acknowledged(), 4);
        buffer.acknowledge(99);
        assert_eq!(buffer.acknowledged(), 10);
    }

    #[test]
    fn a_log_that_is_too_long_ends_with_the_count_of_what_was_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut buffer =
            Buffer::new(SpoolDir::open(dir.path(), limits::LOG_SPOOL_BYTES).unwrap().spool(AttemptId::generate()));
        buffer.bytes = limits::LOG_BYTES_PER_ATTEMPT - RESERVE - 100;
        buffer.push(line(0, 10));
        (1..8).for_each(|number| buffer.push(line(number, 100)));
        buffer.close();
        let out = drain(&mut buffer);
        assert_eq!(out.len(), 3);
        let Some(Event::Line(last)) = &out[2].event else { panic!("a line") };
        assert!(String::from_utf8_lossy(&last.text).starts_with("7 entries were dropped"));
        assert!(buffer.is_durable());
    }
}
