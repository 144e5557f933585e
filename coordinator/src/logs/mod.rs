//! The logs of attempts: append-only, numbered without a gap, durable before a worker hears so.
//!
//! One file an attempt under `DATA/logs`. [`Logs`] keeps the open ones; sessions append, the api reads and follows. A batch
//! that was already stored is ignored, one that would leave a gap is refused, so after any restart of worker or
//! coordinator each entry is there once and in order.

mod file;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use kiln_common::{AttemptId, limits};
use kiln_proto::v1::ProgressEntry;
use tokio::sync::watch;

use file::LogFile;

/// Open log files at once; the ones that nobody uses are closed first.
const OPEN_FILES: usize = 512;

/// A log that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log of attempt {attempt} ends at entry {next}, so entry {got} would leave a gap; send from {next} on")]
    Gap { attempt: AttemptId, next: u64, got: u64 },
    #[error("the log of attempt {attempt} has {} bytes, the most it may have", 2 * limits::LOG_BYTES_PER_ATTEMPT)]
    Full { attempt: AttemptId },
    #[error("the log of attempt {attempt}: {source}; check the disk under the data directory")]
    Io { attempt: AttemptId, source: io::Error },
    #[error("{}: {source}", .path.display())]
    Directory { path: PathBuf, source: io::Error },
}

/// All logs of this farm. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    open: Mutex<BTreeMap<AttemptId, Arc<OpenLog>>>,
}

#[derive(Debug)]
struct OpenLog {
    /// Held only on blocking threads.
    file: Mutex<LogFile>,
    /// The first sequence number that is not durable yet.
    next: watch::Sender<u64>,
}

impl Logs {
    /// Uses `directory`, made when it is not there.
    ///
    /// # Errors
    /// [`LogError::Directory`] when it cannot be made.
    pub fn open(directory: &Path) -> Result<Self, LogError> {
        fs::create_dir_all(directory).map_err(|source| LogError::Directory { path: directory.to_owned(), source })?;
        let shared = Shared { directory: directory.to_owned(), open: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Appends entries numbered from `first`; the answer is the first sequence number that is still missing, given once
    /// all before it are durable.
    ///
    /// # Errors
    /// [`LogError::Gap`] when entries before `first` are missing, [`LogError::Full`] when there is too much of it already,
    /// [`LogError::Io`] when the disk refuses.
    pub async fn append(&self, attempt: AttemptId, first: u64, entries: Vec<ProgressEntry>) -> Result<u64, LogError> {
        self.with(attempt, move |log| {
            let mut file = lock(&log.file);
            let next = file.next_sequence();
            if first > next {
                return Err(LogError::Gap { attempt, next, got: first });
            }
            let known = usize::try_from(next - first).unwrap_or(usize::MAX);
            // The worker cuts its log off itself, by the size of its texts; what one that does not may fill is bounded here.
            if file.bytes() > 2 * limits::LOG_BYTES_PER_ATTEMPT {
                return Err(LogError::Full { attempt });
            }
            if known < entries.len() {
                file.append(&entries[known..]).map_err(|source| LogError::Io { attempt, source })?;
                log.next.send_replace(file.next_sequence());
            }
            Ok(file.next_sequence())
        })
        .await
    }

    /// The first sequence number that is still missing; 0 for an attempt that logged nothing.
    ///
    /// # Errors
    /// [`LogError::Io`] when the file cannot be read.
    pub async fn next_sequence(&self, attempt: AttemptId) -> Result<u64, LogError> {
        if !self.shared.path(attempt).exists() {
            return Ok(0);
        }
        self.with(attempt, |log| Ok(*log.next.borrow())).await
    }

    /// At most `most` entries from `from` on, and never more than a message of the wire holds; empty at the end.
    ///
    /// # Errors
    /// [`LogError::Io`] when the file cannot be read.
    pub async fn read(&self, attempt: AttemptId, from: u64, most: usize) -> Result<Vec<ProgressEntry>, LogError> {
        if !self.shared.path(attempt).exists() {
            return Ok(Vec::new());
        }
        self.with(attempt, move |log| {
            lock(&log.file).read(from, most).map_err(|source| LogError::Io { attempt, source })
        })
        .await
    }

    /// Tells of every growth of an attempt's log: the value is the first sequence number that is not durable yet.
    ///
    /// # Errors
    /// [`LogError::Io`] when the file cannot be opened.
    pub async fn subscribe(&self, attempt: AttemptId) -> Result<watch::Receiver<u64>, LogError> {
        self.with(attempt, |log| Ok(log.next.subscribe())).await
    }

    /// Deletes an attempt's log.
    ///
    /// # Errors
    /// [`LogError::Io`] when the file cannot be deleted; a log that is not there is fine.
    pub async fn remove(&self, attempt: AttemptId) -> Result<(), LogError> {
        let shared = self.shared.clone();
        blocking(move || {
            lock(&shared.open).remove(&attempt);
            match fs::remove_file(shared.path(attempt)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LogError::Io { attempt, source }),
                Ok(()) | Err(_) => Ok(()),
            }
        })
        .await
    }

    /// Runs `act` on the attempt's open log on a blocking thread.
    async fn with<T: Send + 'static>(
        &self,
        attempt: AttemptId,
        act: impl FnOnce(&OpenLog) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let shared = self.shared.clone();
        blocking(move || act(shared.log(attempt)?.as_ref())).await
    }
}

impl Shared {
    fn path(&self, attempt: AttemptId) -> PathBuf {
        self.directory.join(format!("{attempt}.log"))
    }

    fn log(&self, attempt: AttemptId) -> Result<Arc<OpenLog>, LogError> {
        let mut open = lock(&self.open);
        if let Some(log) = open.get(&attempt) {
            return Ok(log.clone());
        }
        if open.len() >= OPEN_FILES {
            // In use are those that someone else holds or follows.
            open.retain(|_, log| Arc::strong_count(log) > 1 || log.next.receiver_count() > 0);
        }
        let file = LogFile::open(&self.path(attempt)).map_err(|source| LogError::Io { attempt, source })?;
        let next = watch::Sender::new(file.next_sequence());
        let log = Arc::new(OpenLog { file: Mutex::new(file), next });
        open.insert(attempt, log.clone());
        Ok(log)
    }
}

/// A thread that panicked while it held the lock left the file as its last complete write.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(act).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking tasks are only cancelled when the runtime itself is gone.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_proto::v1::{LogLine, progress_entry::Event};

    fn lines(range: std::ops::Range<u64>) -> Vec<ProgressEntry> {
        let line = |i: u64| LogLine { text: format!("line {i}").into_bytes(), ..LogLine::default() };
        range.map(|i| ProgressEntry { time: None, event: Some(Event::Line(line(i))) }).collect()
    }

    fn logs() -> (tempfile::TempDir, Logs, AttemptId) {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::open(&folder.path().join("logs")).unwrap();
        (folder, logs, AttemptId::generate())
    }

    #[tokio::test]
    async fn entries_read_back_in_order_after_a_reopen() {
        let (folder, logs, attempt) = logs();
        assert_eq!(logs.next_sequence(attempt).await.unwrap(), 0);
        assert_eq!(logs.append(attempt, 0, lines(0..700)).await.unwrap(), 700);
        let again = Logs::open(&folder.path().join("logs")).unwrap();
        assert_eq!(again.next_sequence(attempt).await.unwrap(), 700);
        assert_eq!(again.read(attempt, 650, 20).await.unwrap(), lines(650..670));
        assert_eq!(again.read(attempt, 700, 20).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_batch_sent_again_is_stored_once_and_a_gap_is_refused() {
        let (_folder, logs, attempt) = logs();
        logs.append(attempt, 0, lines(0..5)).await.unwrap();
        assert_eq!(logs.append(attempt, 2, lines(2..8)).await.unwrap(), 8);
        assert_eq!(logs.append(attempt, 0, lines(0..5)).await.unwrap(), 8);
        assert!(matches!(logs.append(attempt, 9, lines(9..10)).await, Err(LogError::Gap { next: 8, got: 9, .. })));
        assert_eq!(logs.read(attempt, 0, 100).await.unwrap(), lines(0..8));
    }

    #[tokio::test]
    async fn a_torn_tail_is_cut_off_and_written_again() {
        let (folder, logs, attempt) = logs();
        logs.append(attempt, 0, lines(0..10)).await.unwrap();
        let path = folder.path().join("logs").join(format!("{attempt}.log"));
        let whole = fs::read(&path).unwrap();
        for cut in [1, 7, 20] {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let again = Logs::open(&folder.path().join("logs")).unwrap();
            let next = again.next_sequence(attempt).await.unwrap();
            assert!(next < 10);
            assert_eq!(again.append(attempt, next, lines(next..10)).await.unwrap(), 10);
            assert_eq!(again.read(attempt, 0, 100).await.unwrap(), lines(0..10));
        }
    }

    #[tokio::test]
    async fn garbage_in_the_middle_ends_the_log_there() {
        let (folder, logs, attempt) = logs();
        logs.append(attempt, 0, lines(0..10)).await.unwrap();
        let path = folder.path().join("logs").join(format!("{attempt}.log"));
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&path, bytes).unwrap();
        let again = Logs::open(&folder.path().join("logs")).unwrap();
        let next = again.next_sequence(attempt).await.unwrap();
        assert!((3..7).contains(&next), "{next}");
        assert_eq!(again.read(attempt, 0, 100).await.unwrap(), lines(0..next));
    }

    #[tokio::test]
    async fn followers_hear_of_growth_and_removal_is_final() {
        let (_folder, logs, attempt) = logs();
        let mut growth = logs.subscribe(attempt).await.unwrap();
        logs.append(attempt, 0, lines(0..3)).await.unwrap();
        growth.changed().await.unwrap();
        assert_eq!(*growth.borrow(), 3);
        logs.remove(attempt).await.unwrap();
        logs.remove(attempt).await.unwrap();
        assert_eq!(logs.next_sequence(attempt).await.unwrap(), 0);
    }
}
