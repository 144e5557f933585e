//! Which chunk is where: an embedded database of its own that can be built anew from the packs. All of it blocks.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use kiln_common::{
    Timestamp,
    context::{ChunkId, ChunkRef, ContextDigest},
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{
    error::ContextsError,
    pack::{Place, places},
};

/// Chunk id: pack, offset, length.
const CHUNKS: TableDefinition<'_, &[u8; 32], (u64, u32, u32)> = TableDefinition::new("chunks");
/// Pack: when it was made (milliseconds), its bytes, whether it is only there for readers that have begun.
const PACKS: TableDefinition<'_, u64, (u64, u64, bool)> = TableDefinition::new("packs");
/// Root of a complete context: when it was last used (milliseconds).
const ROOTS: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("roots");

const MEMORY_BYTES: usize = 8 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Index {
    database: Database,
}

/// A pack that is durable, to be listed.
#[derive(Debug)]
pub(super) struct SealedPack {
    pub(super) number: u64,
    pub(super) made: Timestamp,
    pub(super) table: Vec<ChunkRef>,
}

/// A listed pack.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackRecord {
    pub(super) number: u64,
    pub(super) made: Timestamp,
    pub(super) bytes: u64,
    pub(super) retired: bool,
}

impl Index {
    /// Opens the index; one that cannot be read is put aside and begun anew.
    pub(super) fn open(directory: &Path) -> Result<Self, ContextsError> {
        fs::create_dir_all(directory)?;
        let path = directory.join("index.redb");
        Self::open_file(&path).or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "the index of contexts cannot be read; building it anew from the packs");
            let aside: PathBuf = path.with_extension("damaged");
            fs::rename(&path, aside)?;
            Self::open_file(&path)
        })
    }

    fn open_file(path: &Path) -> Result<Self, ContextsError> {
        let database = Database::builder().set_cache_size(MEMORY_BYTES).create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(CHUNKS)?;
        transaction.open_table(PACKS)?;
        transaction.open_table(ROOTS)?;
        transaction.commit()?;
        Ok(Self { database })
    }

    pub(super) fn missing(&self, ids: Vec<ChunkId>) -> Result<Vec<ChunkId>, ContextsError> {
        let chunks = self.database.begin_read()?.open_table(CHUNKS)?;
        let mut missing = Vec::new();
        for id in ids {
            if chunks.get(id.as_bytes())?.is_none() {
                missing.push(id);
            }
        }
        Ok(missing)
    }

    /// Where each chunk is; `None` for those that are not here.
    pub(super) fn places(&self, ids: &[ChunkId]) -> Result<Vec<Option<Place>>, ContextsError> {
        let chunks = self.database.begin_read()?.open_table(CHUNKS)?;
        let find = |id: &ChunkId| {
            let row = chunks.get(id.as_bytes())?.map(|row| row.value());
            Ok(row.map(|(pack, offset, len)| Place { pack, offset, len }))
        };
        ids.iter().map(find).collect()
    }

    /// Lists packs and their chunks; a chunk that is listed already stays where it is.
    pub(super) fn add(&self, packs: &[SealedPack]) -> Result<(), ContextsError> {
        let transaction = self.database.begin_write()?;
        {
            let mut chunks = transaction.open_table(CHUNKS)?;
            let mut listed = transaction.open_table(PACKS)?;
            for pack in packs {
                for (id, place) in places(pack.number, &pack.table) {
                    if chunks.get(id.as_bytes())?.is_none() {
                        chunks.insert(id.as_bytes(), (place.pack, place.offset, place.len))?;
                    }
                }
                listed.insert(pack.number, (pack.made.as_millis(), pack.bytes(), false))?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    pub(super) fn packs(&self) -> Result<Vec<PackRecord>, ContextsError> {
        let packs = self.database.begin_read()?.open_table(PACKS)?;
        let mut all = Vec::new();
        for row in packs.iter()? {
            let (number, record) = row?;
            let (made, bytes, retired) = record.value();
            all.push(PackRecord { number: number.value(), made: Timestamp::from_millis(made), bytes, retired });
        }
        Ok(all)
    }

    /// Forgets packs whose objects are gone, their chunks, and which roots were complete.
    pub(super) fn forget_packs(&self, gone: &HashSet<u64>) -> Result<(), ContextsError> {
        if gone.is_empty() {
            return Ok(());
        }
        let transaction = self.database.begin_write()?;
        transaction.open_table(CHUNKS)?.retain(|_, (pack, _, _)| !gone.contains(&pack))?;
        transaction.open_table(PACKS)?.retain(|pack, _| !gone.contains(&pack))?;
        transaction.open_table(ROOTS)?.retain(|_, _| false)?;
        transaction.commit()?;
        Ok(())
    }

    /// Forgets packs that were given up before, now that their objects are gone.
    pub(super) fn forget_retired(&self, gone: &HashSet<u64>) -> Result<(), ContextsError> {
        if gone.is_empty() {
            return Ok(());
        }
        let transaction = self.database.begin_write()?;
        transaction.open_table(PACKS)?.retain(|pack, _| !gone.contains(&pack))?;
        transaction.commit()?;
        Ok(())
    }

    /// Every chunk with its place.
    pub(super) fn each_chunk(&self, mut each: impl FnMut(ChunkId, Place)) -> Result<(), ContextsError> {
        let chunks = self.database.begin_read()?.open_table(CHUNKS)?;
        for row in chunks.iter()? {
            let (id, place) = row?;
            let (pack, offset, len) = place.value();
            each(ChunkId::from_bytes(*id.value()), Place { pack, offset, len });
        }
        Ok(())
    }

    /// When a complete root was last used.
    pub(super) fn root(&self, root: ContextDigest) -> Result<Option<Timestamp>, ContextsError> {
        let roots = self.database.begin_read()?.open_table(ROOTS)?;
        Ok(roots.get(root.0.as_bytes())?.map(|row| Timestamp::from_millis(row.value())))
    }

    /// Notes that a root is complete and in use.
    pub(super) fn touch_root(&self, root: ContextDigest, now: Timestamp) -> Result<(), ContextsError> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(ROOTS)?.insert(root.0.as_bytes(), now.as_millis())?;
        transaction.commit()?;
        Ok(())
    }

    pub(super) fn roots(&self) -> Result<Vec<(ContextDigest, Timestamp)>, ContextsError> {
        let roots = self.database.begin_read()?.open_table(ROOTS)?;
        let mut all = Vec::new();
        for row in roots.iter()? {
            let (root, used) = row?;
            all.push((ContextDigest(ChunkId::from_bytes(*root.value())), Timestamp::from_millis(used.value())));
        }
        Ok(all)
    }

    /// Applies a collection in one step, unless a root came into use since it decided: then nothing happens.
    pub(super) fn apply(&self, sweep: &Sweep) -> Result<bool, ContextsError> {
        let transaction = self.database.begin_write()?;
        {
            let mut roots = transaction.open_table(ROOTS)?;
            for row in roots.iter()? {
                let (root, used) = row?;
                let seen = sweep.seen_roots.get(&ContextDigest(ChunkId::from_bytes(*root.value())));
                if seen != Some(&Timestamp::from_millis(used.value())) {
                    return Ok(false);
                }
            }
            roots.retain(|root, _| sweep.live_roots.contains(&ContextDigest(ChunkId::from_bytes(*root))))?;
            let mut chunks = transaction.open_table(CHUNKS)?;
            chunks.retain(|_, (pack, _, _)| !sweep.retired.contains(&pack))?;
            let mut packs = transaction.open_table(PACKS)?;
            for pack in &sweep.rewritten {
                for (id, place) in places(pack.number, &pack.table) {
                    chunks.insert(id.as_bytes(), (place.pack, place.offset, place.len))?;
                }
                packs.insert(pack.number, (pack.made.as_millis(), pack.bytes(), false))?;
            }
            for number in &sweep.retired {
                let record = packs.get(number)?.map(|row| row.value());
                if let Some((made, bytes, _)) = record {
                    packs.insert(number, (made, bytes, true))?;
                }
            }
        }
        transaction.commit()?;
        Ok(true)
    }
}

impl SealedPack {
    pub(super) fn bytes(&self) -> u64 {
        self.table.iter().map(|chunk| u64::from(chunk.len)).sum()
    }
}

/// What a collection decided.
#[derive(Debug)]
pub(super) struct Sweep {
    /// What it knew when it decided.
    pub(super) seen_roots: HashMap<ContextDigest, Timestamp>,
    pub(super) live_roots: HashSet<ContextDigest>,
    /// Packs to give up; their objects stay until the next collection, for readers that have begun.
    pub(super) retired: HashSet<u64>,
    /// What of them was still in use, packed anew.
    pub(super) rewritten: Vec<SealedPack>,
}
