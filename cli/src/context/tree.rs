//! One tree of a context: what the scan found, what the cache remembers, and from both the manifest.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use kiln_common::context::{
    ChunkId, ChunkRef, ContextDigest, Entry, EntryKind, InvalidManifest, ManifestChunk, ManifestEncoder, compare_paths,
};

use super::{
    ContextError, Trust,
    hash::{self, Hashed, Job, Piece, PieceBytes},
    scan::{FoundKind, Scan, Stamp},
    stat_cache::{FarmId, Remembered, RememberedFile, StatCache},
};

#[derive(Debug)]
pub(super) struct Tree {
    scan: Scan,
    cache: Option<StatCache>,
    state: Mutex<State>,
}

/// What is known of the contents.
#[derive(Debug)]
struct State {
    /// One for each found entry; `None` for a file that has to be read and for what is no file.
    files: Vec<Option<Known>>,
    farms: Vec<FarmId>,
    root: Option<ContextDigest>,
    /// Manifest chunks of the last build.
    manifest: HashSet<ChunkId>,
}

#[derive(Debug, Clone)]
struct Known {
    chunks: Box<[ChunkRef]>,
    /// May be remembered for the next build.
    settled: bool,
    /// Was there before this build, so the farms that are listed have it.
    remembered: bool,
}

/// Where chunks go, and how far it is.
pub(super) struct Outlet<'a> {
    /// Takes pieces that the farm may lack.
    pub(super) give: &'a (dyn Fn(Vec<Piece>) -> Result<(), ContextError> + Sync),
    pub(super) farm: FarmId,
    pub(super) trust: Trust,
}

impl Tree {
    pub(super) fn new(scan: Scan) -> Self {
        Self::with(scan, None, Remembered::default())
    }

    pub(super) fn cached(scan: Scan, cache: StatCache) -> Self {
        let remembered = cache.load();
        Self::with(scan, Some(cache), remembered)
    }

    fn with(scan: Scan, cache: Option<StatCache>, remembered: Remembered) -> Self {
        let mut old = remembered.files.into_iter().peekable();
        let mut recall = |path: &str, stamp: &Stamp| {
            while old.next_if(|file| compare_paths(&file.path, path).is_lt()).is_some() {}
            let file = old.next_if(|file| &*file.path == path)?;
            (file.stamp == *stamp).then_some(Known { chunks: file.chunks, settled: true, remembered: true })
        };
        let files = scan.found.iter().map(|found| match &found.kind {
            FoundKind::File(stamp) => recall(&found.path, stamp),
            FoundKind::Directory | FoundKind::Symlink(_) | FoundKind::HardLink(_) => None,
        });
        let state = State {
            files: files.collect(),
            farms: remembered.farms,
            root: remembered.root,
            manifest: remembered.manifest.into_iter().collect(),
        };
        Self { scan, cache, state: Mutex::new(state) }
    }

    /// How many files there are and how many bytes they had.
    pub(super) fn size(&self) -> (u64, u64) {
        let sizes = self.scan.found.iter().filter_map(|found| match found.kind {
            FoundKind::File(stamp) => Some(stamp.size),
            FoundKind::Directory | FoundKind::Symlink(_) | FoundKind::HardLink(_) => None,
        });
        sizes.fold((0, 0), |(files, bytes), size| (files + 1, bytes + size))
    }

    /// Hashes what is not known, makes the manifest and hands on every chunk that the farm may lack.
    pub(super) fn produce(&self, outlet: &Outlet<'_>) -> Result<ContextDigest, ContextError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let in_farm = outlet.trust == Trust::EarlierUploads && state.farms.contains(&outlet.farm);
        if !in_farm {
            self.offer_known(&state, outlet)?;
        }
        self.read_unknown(&mut state, outlet)?;
        let (manifest, root) = self.encode(&state)?;
        let digest = ContextDigest(root.id);
        let ids = manifest.iter().map(|chunk| chunk.id).collect();
        let all = manifest.into_iter().chain([root]);
        let new: Vec<ManifestChunk> = all.filter(|chunk| !in_farm || !state.has(chunk.id)).collect();
        (outlet.give)(new.into_iter().map(piece).collect())?;
        state.manifest = ids;
        if state.root != Some(digest) {
            state.root = Some(digest);
            // What the other farms lack of it, nobody has asked.
            state.farms.clear();
        }
        Ok(digest)
    }

    /// Remembers that `farm` now has everything.
    pub(super) fn sent_to(&self, farm: FarmId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.farms.contains(&farm);
        if !known {
            state.farms.insert(0, farm);
        }
        let Some(cache) = &self.cache else { return };
        if known && state.all_remembered() {
            return;
        }
        cache.save(&self.remembered(&state), self.scan.began_ns);
        for file in state.files.iter_mut().flatten() {
            file.remembered = true;
        }
    }

    fn remembered(&self, state: &State) -> Remembered {
        let files = self.scan.found.iter().zip(&state.files).filter_map(|(found, known)| match (&found.kind, known) {
            (FoundKind::File(stamp), Some(known)) if known.settled => {
                Some(RememberedFile { path: found.path.clone(), stamp: *stamp, chunks: known.chunks.clone() })
            }
            _ => None,
        });
        Remembered {
            farms: state.farms.clone(),
            root: state.root,
            manifest: state.manifest.iter().copied().collect(),
            files: files.collect(),
        }
    }

    /// Chunks of files that were hashed before, without their bytes.
    fn offer_known(&self, state: &State, outlet: &Outlet<'_>) -> Result<(), ContextError> {
        let mut pieces = Vec::new();
        for (found, known) in self.scan.found.iter().zip(&state.files) {
            let mut offset = 0;
            for chunk in known.iter().flat_map(|known| &known.chunks) {
                let path = self.scan.root.join(&*found.path);
                pieces.push(Piece { chunk: *chunk, bytes: PieceBytes::InFile { path, offset } });
                offset += u64::from(chunk.len);
            }
            if pieces.len() >= 1024 {
                (outlet.give)(std::mem::take(&mut pieces))?;
            }
        }
        (outlet.give)(pieces)
    }

    fn read_unknown(&self, state: &mut State, outlet: &Outlet<'_>) -> Result<(), ContextError> {
        let mut places = Vec::new();
        let mut jobs = Vec::new();
        for (index, (found, known)) in self.scan.found.iter().zip(&state.files).enumerate() {
            if let (FoundKind::File(stamp), None) = (&found.kind, known) {
                places.push(index);
                jobs.push(Job { path: &found.path, stamp: *stamp });
            }
        }
        let hashed = hash::read_files(&self.scan.root, &jobs, outlet.give)?;
        for (index, Hashed { chunks, settled }) in places.into_iter().zip(hashed) {
            state.files[index] = Some(Known { chunks, settled, remembered: false });
        }
        Ok(())
    }

    fn encode(&self, state: &State) -> Result<(Vec<ManifestChunk>, ManifestChunk), InvalidManifest> {
        let (mut encoder, mut chunks) = (ManifestEncoder::default(), Vec::new());
        for (found, known) in self.scan.found.iter().zip(&state.files) {
            let kind = match &found.kind {
                FoundKind::Directory => EntryKind::Directory,
                FoundKind::File(_) => {
                    EntryKind::File(known.as_ref().map(|known| known.chunks.clone()).unwrap_or_default())
                }
                FoundKind::Symlink(target) => EntryKind::Symlink(target.clone()),
                FoundKind::HardLink(first) => EntryKind::HardLink(first.clone()),
            };
            let entry = Entry { path: found.path.clone(), kind, mode: found.mode, mtime_ns: found.mtime_ns };
            chunks.extend(encoder.push(&entry)?);
        }
        let (last, root, _) = encoder.finish()?;
        chunks.extend(last);
        Ok((chunks, root))
    }
}

impl State {
    fn has(&self, id: ChunkId) -> bool {
        self.manifest.contains(&id) || self.root == Some(ContextDigest(id))
    }

    fn all_remembered(&self) -> bool {
        self.files.iter().flatten().all(|file| file.remembered || !file.settled)
    }
}

fn piece(chunk: ManifestChunk) -> Piece {
    let len = chunk.bytes.len() as u32;
    Piece { chunk: ChunkRef { id: chunk.id, len }, bytes: PieceBytes::Here(Bytes::from(chunk.bytes)) }
}
