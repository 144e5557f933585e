//! A bounded cache of chunks on disk: append-only segment files, the oldest dropped first.
//!
//! It is only ever an optimisation: whatever is torn, corrupt or gone counts as not there, and every chunk is checked
//! against its hash when it is read. The index in memory is built by reading the segments' record heads at start.

mod segment;

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use kiln_common::{
    context::{ChunkId, ChunkRef},
    limits,
};
use segment::Segment;

/// How much the cache may hold.
#[derive(Debug, Clone, Copy)]
pub struct CacheConfig {
    /// All segments together.
    pub bytes: u64,
    /// A segment is closed once it has this many bytes.
    pub segment_bytes: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { bytes: limits::CONTEXT_CACHE_BYTES, segment_bytes: limits::CONTEXT_CACHE_SEGMENT_BYTES }
    }
}

/// All methods block on the disk: call them where blocking is allowed.
#[derive(Debug)]
pub(super) struct ChunkCache {
    directory: PathBuf,
    config: CacheConfig,
    /// Held while a segment is appended to; always taken before `state`.
    appending: Mutex<()>,
    /// Held for moments only, never while the disk is at work.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first; the last one is appended to.
    segments: VecDeque<Arc<Segment>>,
    /// By the first eight bytes of the id; the record's head has all of them.
    places: HashMap<u64, Place>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    segment: u64,
    offset: u32,
}

impl ChunkCache {
    pub(super) fn open(directory: &Path, config: CacheConfig) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut numbers: Vec<u64> = fs::read_dir(directory)?
            .filter_map(Result::ok)
            .filter_map(|entry| segment::number_of(&entry.file_name()))
            .collect();
        numbers.sort_unstable();
        let mut state = State::default();
        for number in numbers {
            state.load(directory, number);
        }
        // Offsets in a segment have 32 bits.
        let config = CacheConfig { segment_bytes: config.segment_bytes.min(1 << 30), ..config };
        let cache =
            Self { directory: directory.to_owned(), config, appending: Mutex::default(), state: Mutex::new(state) };
        cache.evict(&mut cache.state());
        Ok(cache)
    }

    /// The chunk, if it is here and whole.
    pub(super) fn get(&self, chunk: &ChunkRef) -> Option<Bytes> {
        let (segment, offset) = self.state().find(chunk.id)?;
        let bytes = segment.read(offset, chunk);
        if bytes.is_none() {
            self.state().places.remove(&chunk.id.short());
        }
        bytes
    }

    /// Whether the chunk is listed; does not touch the disk.
    pub(super) fn contains(&self, id: ChunkId) -> bool {
        self.state().find(id).is_some()
    }

    /// Appends chunks that hash to their ids; what is here already is passed over.
    pub(super) fn put(&self, chunks: &[(ChunkId, Bytes)]) -> io::Result<()> {
        let _appending = self.appending.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<_> = chunks.iter().filter(|(id, _)| !self.contains(*id)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let segment = self.writable()?;
        let mut offset = segment.len();
        let mut buffer = Vec::with_capacity(new.iter().map(|(_, bytes)| bytes.len() + segment::HEAD_BYTES).sum());
        let mut places = Vec::with_capacity(new.len());
        for (id, bytes) in new {
            places.push((id.short(), Place { segment: segment.number(), offset }));
            offset += segment::put_record(&mut buffer, *id, bytes);
        }
        segment.append(&buffer)?;
        let mut state = self.state();
        state.bytes += buffer.len() as u64;
        state.places.extend(places);
        self.evict(&mut state);
        Ok(())
    }

    /// Drops the oldest segments until `bytes` are freed or none is left; how much that was.
    pub(super) fn shrink(&self, bytes: u64) -> u64 {
        let _appending = self.appending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        let before = state.bytes;
        while before - state.bytes < bytes && self.drop_oldest(&mut state) {}
        before - state.bytes
    }

    fn writable(&self) -> io::Result<Arc<Segment>> {
        let last = self.state().segments.back().cloned();
        if let Some(last) = last.clone().filter(|last| u64::from(last.len()) < self.config.segment_bytes) {
            return Ok(last);
        }
        let number = last.map_or(0, |last| last.number() + 1);
        let segment = Arc::new(Segment::create(&self.directory, number)?);
        self.state().segments.push_back(segment.clone());
        Ok(segment)
    }

    fn evict(&self, state: &mut State) {
        while state.bytes > self.config.bytes || state.places.len() > limits::CONTEXT_CACHE_CHUNKS {
            if !self.drop_oldest(state) {
                return;
            }
        }
    }

    fn drop_oldest(&self, state: &mut State) -> bool {
        let Some(oldest) = state.segments.pop_front() else { return false };
        state.bytes -= u64::from(oldest.len());
        state.places.retain(|_, place| place.segment != oldest.number());
        if let Err(error) = oldest.remove(&self.directory) {
            tracing::warn!(%error, "cannot remove a segment of the context cache");
        }
        true
    }

    /// Nothing panics while it holds the lock, and the state is whole between any two statements.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, id: ChunkId) -> Option<(Arc<Segment>, u32)> {
        let place = self.places.get(&id.short())?;
        let index = self.segments.binary_search_by_key(&place.segment, |segment| segment.number()).ok()?;
        Some((self.segments[index].clone(), place.offset))
    }

    fn load(&mut self, directory: &Path, number: u64) {
        let loaded = Segment::load(directory, number, |id, offset| {
            self.places.insert(id.short(), Place { segment: number, offset });
        });
        match loaded {
            Ok(segment) => {
                self.bytes += u64::from(segment.len());
                self.segments.push_back(Arc::new(segment));
            }
            Err(error) => tracing::warn!(%error, number, "leaving out a segment of the context cache"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: CacheConfig = CacheConfig { bytes: 40_000, segment_bytes: 10_000 };

    fn chunk(seed: usize) -> (ChunkId, Bytes) {
        let bytes = Bytes::from(seed.to_le_bytes().repeat(125));
        (ChunkId::of(&bytes), bytes)
    }

    fn reference((id, bytes): &(ChunkId, Bytes)) -> ChunkRef {
        ChunkRef { id: *id, len: bytes.len() as u32 }
    }

    fn cache(directory: &Path) -> ChunkCache {
        ChunkCache::open(directory, SMALL).expect("opens")
    }

    fn bytes_on_disk(directory: &Path) -> u64 {
        fs::read_dir(directory)
            .expect("dir")
            .map(|entry| entry.expect("entry").metadata().expect("metadata").len())
            .sum()
    }

    #[test]
    fn what_was_put_is_there_after_a_restart() {
        let directory = tempfile::tempdir().expect("dir");
        let all: Vec<_> = (0..25).map(chunk).collect();
        cache(directory.path()).put(&all).expect("put");
        cache(directory.path()).put(&[chunk(25)]).expect("put");
        let reopened = cache(directory.path());
        for one in all.iter().chain([&chunk(25)]) {
            assert_eq!(reopened.get(&reference(one)).as_ref(), Some(&one.1));
        }
        assert!(reopened.get(&reference(&chunk(99))).is_none());
    }

    #[test]
    fn the_oldest_segment_goes_first_and_the_bound_holds() {
        let directory = tempfile::tempdir().expect("dir");
        let cache = cache(directory.path());
        for seed in 0..200 {
            cache.put(&[chunk(seed)]).expect("put");
            assert!(bytes_on_disk(directory.path()) <= SMALL.bytes);
        }
        assert!(cache.get(&reference(&chunk(0))).is_none());
        assert!(cache.get(&reference(&chunk(199))).is_some());
    }

    #[test]
    fn a_cache_that_must_shrink_gives_up_its_oldest_and_goes_on() {
        let directory = tempfile::tempdir().expect("dir");
        let cache = cache(directory.path());
        (0..30).for_each(|seed| cache.put(&[chunk(seed)]).expect("put"));
        let before = bytes_on_disk(directory.path());
        let freed = cache.shrink(1);
        assert_eq!(bytes_on_disk(directory.path()), before - freed);
        assert!(freed >= SMALL.segment_bytes && cache.get(&reference(&chunk(0))).is_none());
        assert!(cache.get(&reference(&chunk(29))).is_some());
        assert_eq!(cache.shrink(u64::MAX), before - freed, "all of it, and no more than there is");
        cache.put(&[chunk(0)]).expect("put");
        assert!(cache.get(&reference(&chunk(0))).is_some());
    }

    #[test]
    fn a_chunk_that_is_put_twice_is_kept_once() {
        let directory = tempfile::tempdir().expect("dir");
        let cache = cache(directory.path());
        cache.put(&[chunk(1)]).expect("put");
        let before = bytes_on_disk(directory.path());
        cache.put(&[chunk(1)]).expect("put");
        assert_eq!(bytes_on_disk(directory.path()), before);
    }

    #[test]
    fn a_torn_tail_costs_only_the_torn_record() {
        let directory = tempfile::tempdir().expect("dir");
        cache(directory.path()).put(&[chunk(1), chunk(2)]).expect("put");
        let path = segment::path(directory.path(), 0);
        let file = fs::OpenOptions::new().write(true).open(&path).expect("open");
        file.set_len(file.metadata().expect("metadata").len() - 10).expect("truncate");
        let cache = cache(directory.path());
        assert!(cache.get(&reference(&chunk(1))).is_some());
        assert!(cache.get(&reference(&chunk(2))).is_none());
        cache.put(&[chunk(3)]).expect("put");
        assert!(cache.get(&reference(&chunk(3))).is_some());
    }

    #[test]
    fn a_flipped_bit_makes_a_chunk_missing_and_putting_it_again_heals_it() {
        let directory = tempfile::tempdir().expect("dir");
        let cache = cache(directory.path());
        cache.put(&[chunk(1)]).expect("put");
        let path = segment::path(directory.path(), 0);
        let mut bytes = fs::read(&path).expect("read");
        bytes[500] ^= 1;
        fs::write(&path, bytes).expect("write");
        assert!(cache.get(&reference(&chunk(1))).is_none());
        cache.put(&[chunk(1)]).expect("put");
        assert!(cache.get(&reference(&chunk(1))).is_some());
    }

    #[test]
    fn foreign_and_garbage_files_do_no_harm() {
        let directory = tempfile::tempdir().expect("dir");
        fs::write(directory.path().join("notes.txt"), "hello").expect("write");
        fs::write(segment::path(directory.path(), 7), [0xff; 5000]).expect("write");
        let cache = cache(directory.path());
        cache.put(&[chunk(1)]).expect("put");
        assert!(cache.get(&reference(&chunk(1))).is_some());
        assert!(directory.path().join("notes.txt").exists());
    }
}
