//! The log of an attempt: numbered from 0, masked, kept until the coordinator has it on its own disk.
//!
//! A job writes into its [`AttemptLog`] and never waits; [`ship()`] carries it over whatever connection there is.

mod buffer;
mod mask;
mod ship;
mod spool;

use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_common::{AttemptId, limits};
use kiln_proto::v1::{BuildWarning, LogBatch, LogLine, ProgressEntry, Vertex, progress_entry::Event};
use tokio::sync::{Notify, watch};

use self::buffer::{Buffer, Pending};
pub use self::{mask::Mask, ship::ship, spool::SpoolDir};

/// One attempt's log.
pub struct AttemptLog {
    attempt: AttemptId,
    mask: Mask,
    buffer: Mutex<Buffer>,
    written: Notify,
    /// How far the log is durable; `None` once the farm does not want it.
    durable: watch::Sender<Option<u64>>,
}

impl AttemptLog {
    #[must_use]
    pub fn new(attempt: AttemptId, mask: Mask, spools: &SpoolDir) -> Self {
        Self {
            attempt,
            mask,
            buffer: Mutex::new(Buffer::new(spools.spool(attempt))),
            written: Notify::new(),
            durable: watch::Sender::new(Some(0)),
        }
    }

    /// Adds an entry: secrets masked, long lines cut. Never waits; what the bounds do not allow is counted.
    pub fn append(&self, mut entry: ProgressEntry) {
        self.mask_entry(&mut entry);
        self.buffer().push(entry);
        self.written.notify_one();
    }

    /// Hides the values of the attempt's secrets in a message.
    pub fn mask(&self, text: &mut String) {
        self.mask.text(text);
    }

    /// Nothing follows. Returns how many entries the log has in all.
    pub fn close(&self) -> u64 {
        let mut buffer = self.buffer();
        buffer.close();
        let entries = buffer.entries();
        let durable = buffer.is_durable();
        drop(buffer);
        if durable {
            self.durable.send_modify(|_| ());
        }
        self.written.notify_one();
        entries
    }

    /// Ends once a closed log is durable, or the farm does not want it, or the farm takes nothing of it for
    /// [`limits::LOG_STALL`] while `connected` says that it could.
    pub async fn durable(&self, connected: impl Fn() -> bool) {
        let mut durable = self.durable.subscribe();
        while durable.borrow_and_update().is_some() && !self.buffer().is_durable() {
            match tokio::time::timeout(limits::LOG_STALL, durable.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) if connected() => return,
                Err(_) => {}
            }
        }
    }

    fn mask_entry(&self, entry: &mut ProgressEntry) {
        match &mut entry.event {
            Some(Event::Line(LogLine { text, .. })) => {
                self.mask.bytes(text);
                cut(text);
            }
            Some(Event::Vertex(Vertex { name, error, .. })) => {
                self.mask.text(name);
                self.mask.text(error);
            }
            Some(Event::Warning(BuildWarning { short, detail, .. })) => {
                self.mask.text(short);
                detail.iter_mut().for_each(|line| self.mask.text(line));
            }
            Some(Event::Status(_)) | None => {}
        }
    }

    fn batch(&self, cursor: u64) -> Option<LogBatch> {
        let mut batch = self.buffer().batch(cursor)?;
        batch.attempt_id = self.attempt.to_string();
        Some(batch)
    }

    fn pending(&self, cursor: u64) -> Pending {
        self.buffer().pending(cursor)
    }

    fn acknowledge(&self, next: u64) {
        let mut buffer = self.buffer();
        buffer.acknowledge(next);
        let acknowledged = buffer.acknowledged();
        drop(buffer);
        self.durable.send_replace(Some(acknowledged));
    }

    fn abandon(&self) {
        self.durable.send_replace(None);
    }

    fn acknowledged(&self) -> u64 {
        self.buffer().acknowledged()
    }

    fn is_durable(&self) -> bool {
        self.buffer().is_durable()
    }

    /// No code panics while it holds the lock, so a poisoned buffer is still whole.
    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cut(line: &mut Vec<u8>) {
    const NOTICE: &[u8] = b" [cut: the line is too long]";
    if line.len() > limits::LOG_LINE_BYTES {
        line.truncate(limits::LOG_LINE_BYTES - NOTICE.len());
        line.extend_from_slice(NOTICE);
    }
}
