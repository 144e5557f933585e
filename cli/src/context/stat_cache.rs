//! Remembers, for one directory, which chunks its files had and which farms have them all.
//!
//! A file's chunks are believed while its size, times and inode are as they were; files that were changed within two
//! seconds before the scan are never recorded, since the clock of their file system may not tell a later change apart
//! (as git's index does). The file is replaced as a whole and sealed by a hash: any damage makes it as if it were not there.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use kiln_common::context::{ChunkId, ChunkRef, ContextDigest, compare_paths};

use super::scan::Stamp;

const MAGIC: &[u8; 16] = b"kiln-stat-cache1";
const RACY_NS: i64 = 2_000_000_000;
/// A longer cache is neither written nor read: some 500,000 files.
const FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Directories that are remembered; the one unused for longest goes first.
const DIRECTORIES: usize = 64;
/// Farms that are remembered of one directory.
const FARMS: usize = 8;

/// Where one directory's cache is kept.
#[derive(Debug, Clone)]
pub(super) struct StatCache {
    path: Option<PathBuf>,
    root: Box<str>,
}

/// A farm, by the hash of its name.
pub(super) type FarmId = [u8; 32];

pub(super) fn farm_id(name: &str) -> FarmId {
    *blake3::hash(name.as_bytes()).as_bytes()
}

/// What a cache holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remembered {
    /// Farms that have every chunk below.
    pub(super) farms: Vec<FarmId>,
    pub(super) root: Option<ContextDigest>,
    /// Chunks of the manifest.
    pub(super) manifest: Vec<ChunkId>,
    /// Sorted by path.
    pub(super) files: Vec<RememberedFile>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct RememberedFile {
    pub(super) path: Box<str>,
    pub(super) stamp: Stamp,
    pub(super) chunks: Box<[ChunkRef]>,
}

impl StatCache {
    /// The cache of `root`; with no directory for caches nothing is remembered.
    pub(super) fn open(cache_dir: Option<&Path>, root: &Path) -> Self {
        let root: Box<str> = root.to_string_lossy().into();
        let name = ChunkId::of(root.as_bytes()).to_string();
        let path = cache_dir.map(|directory| directory.join("contexts").join(&name[..32]));
        Self { path, root }
    }

    pub(super) fn load(&self) -> Remembered {
        let read = || {
            let path = self.path.as_ref()?;
            (fs::metadata(path).ok()?.len() <= FILE_BYTES).then(|| fs::read(path).ok())?
        };
        read().and_then(|bytes| self.decode(&bytes)).unwrap_or_default()
    }

    /// Replaces the cache. Not being able to is no error: the next build hashes again.
    pub(super) fn save(&self, remembered: &Remembered, scan_began_ns: i64) {
        let Some(path) = &self.path else { return };
        if let Err(error) = self.write(path, remembered, scan_began_ns) {
            tracing::debug!(%error, path = %path.display(), "cannot write the cache of the context");
        }
    }

    fn write(&self, path: &Path, remembered: &Remembered, scan_began_ns: i64) -> io::Result<()> {
        let bytes = self.encode(remembered, scan_began_ns);
        if bytes.len() as u64 > FILE_BYTES {
            return Ok(());
        }
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&bytes)?;
        file.persist(path)?;
        drop_oldest(directory)
    }

    fn encode(&self, remembered: &Remembered, scan_began_ns: i64) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 * (remembered.files.len() + 8));
        out.extend_from_slice(MAGIC);
        put_text(&mut out, &self.root);
        put_count(&mut out, remembered.farms.len().min(FARMS));
        remembered.farms.iter().take(FARMS).for_each(|farm| out.extend_from_slice(farm));
        out.extend_from_slice(remembered.root.map_or([0; 32], |root| *root.0.as_bytes()).as_slice());
        put_count(&mut out, remembered.manifest.len());
        remembered.manifest.iter().for_each(|id| out.extend_from_slice(id.as_bytes()));
        let settled = |file: &&RememberedFile| {
            file.stamp.mtime_ns.max(file.stamp.ctime_ns).saturating_add(RACY_NS) < scan_began_ns
        };
        for file in remembered.files.iter().filter(settled) {
            put_text(&mut out, &file.path);
            out.extend_from_slice(&file.stamp.size.to_le_bytes());
            out.extend_from_slice(&file.stamp.mtime_ns.to_le_bytes());
            out.extend_from_slice(&file.stamp.ctime_ns.to_le_bytes());
            out.extend_from_slice(&file.stamp.inode.to_le_bytes());
            put_count(&mut out, file.chunks.len());
            for chunk in &file.chunks {
                out.extend_from_slice(&chunk.len.to_le_bytes());
                out.extend_from_slice(chunk.id.as_bytes());
            }
        }
        let seal = blake3::hash(&out);
        out.extend_from_slice(seal.as_bytes());
        out
    }

    fn decode(&self, bytes: &[u8]) -> Option<Remembered> {
        let (body, seal) = bytes.split_last_chunk::<32>()?;
        let mut reader = Reader(body.strip_prefix(MAGIC)?);
        if blake3::hash(body).as_bytes() != seal || reader.text()? != &*self.root {
            return None;
        }
        let farms = (0..reader.count()?).map(|_| reader.array()).collect::<Option<Vec<FarmId>>>()?;
        let root = ContextDigest(ChunkId::from_bytes(reader.array()?));
        let manifest = (0..reader.count()?).map(|_| reader.array().map(ChunkId::from_bytes)).collect::<Option<_>>()?;
        let mut files: Vec<RememberedFile> = Vec::new();
        while !reader.0.is_empty() {
            files.push(reader.file()?);
        }
        let sorted = files.is_sorted_by(|left, right| compare_paths(&left.path, &right.path).is_lt());
        sorted.then_some(Remembered { farms, root: Some(root), manifest, files })
    }
}

fn drop_oldest(directory: &Path) -> io::Result<()> {
    let mut caches = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        caches.push((entry.metadata()?.modified()?, entry.path()));
    }
    caches.sort();
    let too_many = caches.len().saturating_sub(DIRECTORIES);
    caches.iter().take(too_many).try_for_each(|(_, path)| fs::remove_file(path))
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn count(&mut self) -> Option<usize> {
        self.array().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.count()?;
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(head).ok()
    }

    fn file(&mut self) -> Option<RememberedFile> {
        let path = self.text()?.into();
        let stamp = Stamp {
            size: self.array().map(u64::from_le_bytes)?,
            mtime_ns: self.array().map(i64::from_le_bytes)?,
            ctime_ns: self.array().map(i64::from_le_bytes)?,
            inode: self.array().map(u64::from_le_bytes)?,
        };
        let chunk = |reader: &mut Self| {
            let len = reader.array().map(u32::from_le_bytes)?;
            Some(ChunkRef { len, id: ChunkId::from_bytes(reader.array()?) })
        };
        let chunks = (0..self.count()?).map(|_| chunk(self)).collect::<Option<_>>()?;
        Some(RememberedFile { path, stamp, chunks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_AGO: i64 = 1_000_000_000_000_000_000;
    const NOW: i64 = 1_700_000_000_000_000_000;

    fn file(path: &str, changed_ns: i64) -> RememberedFile {
        let stamp = Stamp { size: 3, mtime_ns: LONG_AGO, ctime_ns: changed_ns, inode: 7 };
        let chunks = Box::new([ChunkRef { id: ChunkId::of(path.as_bytes()), len: 3 }]);
        RememberedFile { path: path.into(), stamp, chunks }
    }

    fn remembered(files: Vec<RememberedFile>) -> Remembered {
        let root = Some(ContextDigest(ChunkId::of(b"root")));
        Remembered { farms: vec![farm_id("farm")], root, manifest: vec![ChunkId::of(b"m")], files }
    }

    #[test]
    fn what_was_saved_is_loaded_but_for_files_that_just_changed() {
        let directory = tempfile::tempdir().expect("dir");
        let cache = StatCache::open(Some(directory.path()), Path::new("/src"));
        assert_eq!(cache.load(), Remembered::default());
        cache.save(&remembered(vec![file("a", LONG_AGO), file("b", NOW - 1_000_000_000)]), NOW);
        assert_eq!(cache.load(), remembered(vec![file("a", LONG_AGO)]));
        assert_eq!(StatCache::open(Some(directory.path()), Path::new("/other")).load(), Remembered::default());
    }

    #[test]
    fn a_damaged_cache_is_as_none() {
        let directory = tempfile::tempdir().expect("dir");
        let cache = StatCache::open(Some(directory.path()), Path::new("/src"));
        cache.save(&remembered(vec![file("a", LONG_AGO)]), NOW);
        let path = cache.path.clone().expect("path");
        let whole = fs::read(&path).expect("reads");
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs::write(&path, &damaged).expect("writes");
            assert_eq!(cache.load(), Remembered::default(), "{place}");
            fs::write(&path, &whole[..place]).expect("writes");
            assert_eq!(cache.load(), Remembered::default(), "{place}");
        }
    }

    #[test]
    fn only_so_many_directories_are_remembered() {
        let directory = tempfile::tempdir().expect("dir");
        for index in 0..DIRECTORIES + 5 {
            StatCache::open(Some(directory.path()), Path::new(&format!("/{index}"))).save(&remembered(vec![]), NOW);
        }
        assert_eq!(fs::read_dir(directory.path().join("contexts")).expect("dir").count(), DIRECTORIES);
    }
}
