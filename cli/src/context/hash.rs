//! Reads files into chunks: small ones whole, large ones cut by content, a few files at once.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use fastcdc::v2020::StreamCDC;
use kiln_common::{
    context::{ChunkId, ChunkRef},
    limits,
};

use super::{ContextError, scan::Stamp};

/// Files up to this are one chunk.
const WHOLE_BYTES: u64 = 1024 * 1024;
const LEAST_BYTES: usize = 256 * 1024;
const AVERAGE_BYTES: usize = 1024 * 1024;
/// Small files are taken and handed on by so many bytes or files.
const GROUP_BYTES: u64 = 1024 * 1024;
const GROUP_FILES: usize = 64;
const THREADS: usize = 4;

/// A chunk and where its bytes are.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) chunk: ChunkRef,
    pub(super) bytes: PieceBytes,
}

#[derive(Debug)]
pub(super) enum PieceBytes {
    Here(Bytes),
    /// In a file that was hashed before; read again only if the farm asks for it.
    InFile {
        path: PathBuf,
        offset: u64,
    },
}

impl PieceBytes {
    /// The bytes, which hash to `chunk`.
    pub(super) fn load(self, chunk: &ChunkRef) -> Result<Bytes, ContextError> {
        let (path, offset) = match self {
            Self::Here(bytes) => return Ok(bytes),
            Self::InFile { path, offset } => (path, offset),
        };
        let mut bytes = vec![0; chunk.len as usize];
        let file = File::open(&path).map_err(ContextError::unreadable(&path))?;
        let read = std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset);
        let changed = || ContextError::Changed { path: path.display().to_string() };
        read.map_err(|_| changed())?;
        if ChunkId::of(&bytes) == chunk.id { Ok(bytes.into()) } else { Err(changed()) }
    }
}

/// A file to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) path: &'a str,
    pub(super) stamp: Stamp,
}

/// The chunks of a file as they were read.
#[derive(Debug)]
pub(super) struct Hashed {
    pub(super) chunks: Box<[ChunkRef]>,
    /// The file was not touched between the scan and the end of reading.
    pub(super) settled: bool,
}

/// Reads all files; hands each group of chunks to `give`, which blocks while the network is behind.
/// The results are in the order of the jobs.
pub(super) fn read_files(
    root: &Path,
    jobs: &[Job<'_>],
    give: &(dyn Fn(Vec<Piece>) -> Result<(), ContextError> + Sync),
) -> Result<Vec<Hashed>, ContextError> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Hashed>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS).min(jobs.len());
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let group = take_group(&next, jobs);
                if group.is_empty() {
                    return Ok(());
                }
                let hashed = read_group(root, &jobs[group.clone()], give).inspect_err(|_| {
                    // The others stop at their next group.
                    next.store(jobs.len(), Ordering::Relaxed);
                })?;
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                for (index, hashed) in group.zip(hashed) {
                    results[index] = Some(hashed);
                }
            }
        };
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        let joined = others.into_iter().map(|thread| thread.join().unwrap_or(Err(ContextError::Interrupted)));
        joined.fold(mine, Result::and)
    })?;
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().collect::<Option<_>>().ok_or(ContextError::Interrupted)
}

/// The next files that nobody reads yet.
fn take_group(next: &AtomicUsize, jobs: &[Job<'_>]) -> std::ops::Range<usize> {
    let mut start = next.load(Ordering::Relaxed);
    loop {
        let mut bytes = 0;
        let fit = jobs.get(start..).unwrap_or_default().iter().take(GROUP_FILES).take_while(|job| {
            bytes += job.stamp.size;
            bytes <= GROUP_BYTES
        });
        let end = (start + fit.count().max(1)).min(jobs.len());
        match next.compare_exchange_weak(start, end.max(start), Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return start.min(end)..end,
            Err(moved) => start = moved,
        }
    }
}

fn read_group(
    root: &Path,
    jobs: &[Job<'_>],
    give: &dyn Fn(Vec<Piece>) -> Result<(), ContextError>,
) -> Result<Vec<Hashed>, ContextError> {
    let mut pieces = Vec::with_capacity(jobs.len());
    let mut hashed = Vec::with_capacity(jobs.len());
    for job in jobs {
        let failed = || ContextError::unreadable(job.path);
        let mut file = File::open(root.join(job.path)).map_err(failed())?;
        let chunks = if job.stamp.size <= WHOLE_BYTES {
            read_whole(&mut file, job, &mut pieces)?
        } else {
            read_large(&mut file, job, give)?
        };
        let settled = Stamp::of(&file.metadata().map_err(failed())?) == job.stamp;
        hashed.push(Hashed { chunks, settled });
    }
    if !pieces.is_empty() {
        give(pieces)?;
    }
    Ok(hashed)
}

fn read_whole(file: &mut File, job: &Job<'_>, pieces: &mut Vec<Piece>) -> Result<Box<[ChunkRef]>, ContextError> {
    let mut bytes = Vec::with_capacity(job.stamp.size as usize + 1);
    let most = limits::CHUNK_BYTES as u64 + 1;
    file.take(most).read_to_end(&mut bytes).map_err(ContextError::unreadable(job.path))?;
    if bytes.len() > limits::CHUNK_BYTES {
        return Err(ContextError::Changed { path: job.path.into() });
    }
    if bytes.is_empty() {
        return Ok(Box::new([]));
    }
    Ok(Box::new([push(pieces, bytes.into())]))
}

fn read_large(
    file: &mut File,
    job: &Job<'_>,
    give: &dyn Fn(Vec<Piece>) -> Result<(), ContextError>,
) -> Result<Box<[ChunkRef]>, ContextError> {
    // What is appended meanwhile is the next build's: a file that grows for ever has an end.
    let bounded = file.take(job.stamp.size);
    let mut chunks = Vec::new();
    for cut in StreamCDC::new(bounded, LEAST_BYTES, AVERAGE_BYTES, limits::CHUNK_BYTES) {
        let cut = cut.map_err(|error| ContextError::unreadable(job.path)(std::io::Error::other(error)))?;
        let mut pieces = Vec::with_capacity(1);
        chunks.push(push(&mut pieces, cut.data.into()));
        give(pieces)?;
    }
    Ok(chunks.into())
}

fn push(pieces: &mut Vec<Piece>, bytes: Bytes) -> ChunkRef {
    let chunk = ChunkRef { id: ChunkId::of(&bytes), len: bytes.len() as u32 };
    pieces.push(Piece { chunk, bytes: PieceBytes::Here(bytes) });
    chunk
}
