//! A manifest as chunks and back: the client encodes entry by entry, coordinator and worker decode chunk by chunk.
//!
//! Every manifest chunk can be decoded by itself. Where one ends is decided by the path of its last entry alone, so a
//! file that changes changes one manifest chunk and the root. One tree has one encoding, and so one digest.

use super::{
    ChunkId, ChunkRef, ContextDigest, Entry, EntryKind,
    entry::{Checker, InvalidEntry},
    wire::{Malformed, Reader, put_chunk, put_entry, put_number},
};
use crate::limits;

const MAGIC: &[u8] = b"kiln-context\x01";
/// One path of so many ends a manifest chunk: about 16 KiB for common paths.
const CUT_ONE_IN: u64 = 256;
/// A manifest chunk ends here at the latest, unless one entry alone is longer.
const CUT_AT_BYTES: usize = 256 * 1024;

/// Why a tree has no manifest, or bytes are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    #[error(transparent)]
    Entry(#[from] InvalidEntry),
    #[error("a context manifest is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("`{path}` has too many chunks for one manifest; the largest is {} bytes", limits::CHUNK_BYTES)]
    EntryTooLarge { path: String },
    #[error("the context's manifest is larger than {} bytes", limits::CONTEXT_MANIFEST_BYTES)]
    TooLarge,
    #[error("chunk {id} is no part of the manifest at this place")]
    UnexpectedChunk { id: ChunkId },
    #[error("the manifest is cut at another place than `{path}` asks for")]
    Cut { path: String },
    #[error("the root promises {promised} {what}, the manifest has {found}")]
    Sum { what: &'static str, promised: u64, found: u64 },
}

/// A finished chunk of a manifest, or the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestChunk {
    pub id: ChunkId,
    pub bytes: Vec<u8>,
}

impl ManifestChunk {
    fn new(bytes: Vec<u8>) -> Self {
        Self { id: ChunkId::of(&bytes), bytes }
    }
}

/// The root chunk: how much there is and where the manifest is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Root {
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// The manifest's chunks, in order.
    pub chunks: Vec<ChunkRef>,
}

impl Root {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_number(&mut out, self.entries);
        put_number(&mut out, self.bytes);
        put_number(&mut out, self.chunks.len() as u64);
        self.chunks.iter().for_each(|chunk| put_chunk(&mut out, chunk));
        out
    }

    /// # Errors
    /// When the bytes are not a root, or what it promises is over a limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidManifest> {
        let mut reader = Reader::new(bytes);
        if reader.take(MAGIC.len()) != Ok(MAGIC) {
            return Err(Malformed::Magic.into());
        }
        let root = Self { entries: reader.number()?, bytes: reader.number()?, chunks: reader.chunks()? };
        reader.end()?;
        if root.entries > limits::CONTEXT_FILES as u64 {
            return Err(InvalidEntry::TooMany.into());
        }
        if root.bytes > limits::CONTEXT_BYTES {
            return Err(InvalidEntry::TooLarge.into());
        }
        let wrong = root.chunks.iter().find(|chunk| chunk.len == 0 || chunk.len as usize > limits::CHUNK_BYTES);
        if let Some(chunk) = wrong {
            return Err(InvalidEntry::ChunkLength { path: String::new(), len: chunk.len.into() }.into());
        }
        if root.manifest_bytes() > limits::CONTEXT_MANIFEST_BYTES {
            return Err(InvalidManifest::TooLarge);
        }
        Ok(root)
    }

    /// Bytes of all manifest chunks.
    #[must_use]
    pub fn manifest_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.len)).sum()
    }
}

/// Takes sorted entries, gives manifest chunks as they fill and the root at the end.
#[derive(Debug, Default)]
pub struct ManifestEncoder {
    checker: Checker,
    buffer: Vec<u8>,
    previous: String,
    chunks: Vec<ChunkRef>,
    bytes: u64,
}

impl ManifestEncoder {
    /// Adds the next entry; the chunk that it completes, if it does.
    ///
    /// # Errors
    /// When the entry cannot stand there, or the manifest gets too large.
    pub fn push(&mut self, entry: &Entry) -> Result<Option<ManifestChunk>, InvalidManifest> {
        self.checker.check(entry)?;
        let start = self.buffer.len();
        put_entry(&mut self.buffer, &self.previous, entry);
        if self.buffer.len() - start > limits::CHUNK_BYTES - CUT_AT_BYTES {
            return Err(InvalidManifest::EntryTooLarge { path: entry.path.to_string() });
        }
        self.previous.clear();
        self.previous.push_str(&entry.path);
        let cut = ends_chunk(&entry.path) || self.buffer.len() >= CUT_AT_BYTES;
        if cut { self.cut().map(Some) } else { Ok(None) }
    }

    /// The last chunk, if one is open, and the root.
    ///
    /// # Errors
    /// When the manifest is too large.
    pub fn finish(mut self) -> Result<(Option<ManifestChunk>, ManifestChunk, ContextDigest), InvalidManifest> {
        let last = if self.buffer.is_empty() { None } else { Some(self.cut()?) };
        let root = Root { entries: self.checker.entries(), bytes: self.checker.bytes(), chunks: self.chunks };
        let root = ManifestChunk::new(root.encode());
        if root.bytes.len() > limits::CHUNK_BYTES {
            return Err(InvalidManifest::TooLarge);
        }
        let digest = ContextDigest(root.id);
        Ok((last, root, digest))
    }

    fn cut(&mut self) -> Result<ManifestChunk, InvalidManifest> {
        self.previous.clear();
        let chunk = ManifestChunk::new(std::mem::take(&mut self.buffer));
        let len = u32::try_from(chunk.bytes.len()).map_err(|_| InvalidManifest::TooLarge)?;
        self.chunks.push(ChunkRef { id: chunk.id, len });
        self.bytes += u64::from(len);
        if self.bytes > limits::CONTEXT_MANIFEST_BYTES {
            return Err(InvalidManifest::TooLarge);
        }
        Ok(chunk)
    }
}

/// FNV-1a with a final mix: part of the format, since it decides the digest.
fn ends_chunk(path: &str) -> bool {
    let hash = path
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48 & (CUT_ONE_IN - 1) == 0
}

/// Takes the root and then the manifest's chunks in order; strict, since both come from outside.
#[derive(Debug)]
pub struct ManifestDecoder {
    root: Root,
    checker: Checker,
    next: usize,
}

impl ManifestDecoder {
    /// # Errors
    /// When the bytes are not a root.
    pub fn new(root: &[u8]) -> Result<Self, InvalidManifest> {
        Ok(Self { root: Root::decode(root)?, checker: Checker::default(), next: 0 })
    }

    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// Decodes the next manifest chunk and hands its entries to `each`.
    ///
    /// # Errors
    /// When it is not the chunk that the root lists next, or an entry is malformed or cannot stand there.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Entry)) -> Result<(), InvalidManifest> {
        let id = ChunkId::of(bytes);
        let expected = self.root.chunks.get(self.next);
        if expected.is_none_or(|chunk| chunk.id != id || chunk.len as usize != bytes.len()) {
            return Err(InvalidManifest::UnexpectedChunk { id });
        }
        self.next += 1;
        let last = self.next == self.root.chunks.len();
        let mut reader = Reader::new(bytes);
        let mut previous = String::new();
        let mut complete = false;
        while !reader.is_empty() {
            if complete {
                return Err(InvalidManifest::Cut { path: previous });
            }
            let entry = reader.entry(&previous)?;
            self.checker.check(&entry)?;
            previous.clear();
            previous.push_str(&entry.path);
            complete = ends_chunk(&entry.path) || bytes.len() - reader.remaining() >= CUT_AT_BYTES;
            each(entry);
        }
        // Cut elsewhere, the same tree would have a second digest.
        if complete || last { Ok(()) } else { Err(InvalidManifest::Cut { path: previous }) }
    }

    /// # Errors
    /// When chunks are missing, or the root's sums are not those of the entries.
    pub fn finish(self) -> Result<Root, InvalidManifest> {
        for (what, promised, found) in [
            ("manifest chunks", self.root.chunks.len() as u64, self.next as u64),
            ("entries", self.root.entries, self.checker.entries()),
            ("bytes", self.root.bytes, self.checker.bytes()),
        ] {
            if promised != found {
                return Err(InvalidManifest::Sum { what, promised, found });
            }
        }
        Ok(self.root)
    }
}

/// A whole manifest in memory, sorted, checked, hard links included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<Entry>,
}

impl Manifest {
    /// Takes entries as a [`ManifestDecoder`] gives them.
    ///
    /// # Errors
    /// When a hard link points to what is no file.
    pub fn new(entries: Vec<Entry>) -> Result<Self, InvalidManifest> {
        let manifest = Self { entries };
        for entry in &manifest.entries {
            if let EntryKind::HardLink(target) = &entry.kind {
                let found = manifest.get(target).map(|target| &target.kind);
                if !matches!(found, Some(EntryKind::File(_))) {
                    let (path, target) = (entry.path.to_string(), target.to_string());
                    return Err(InvalidEntry::HardLink { path, target }.into());
                }
            }
        }
        Ok(manifest)
    }

    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.position(path).map(|index| &self.entries[index])
    }

    fn position(&self, path: &str) -> Option<usize> {
        self.entries.binary_search_by(|entry| super::compare_paths(&entry.path, path)).ok()
    }

    /// What is directly in a directory; the empty path is the root. `None` when it is no directory.
    pub fn children<'a>(&'a self, directory: &'a str) -> Option<impl Iterator<Item = &'a Entry>> {
        let start = match directory {
            "" => 0,
            path => self.position(path).filter(|index| self.entries[*index].is_directory())? + 1,
        };
        let skip = if directory.is_empty() { 0 } else { directory.len() + 1 };
        let inside = move |entry: &&Entry| {
            skip == 0 || entry.path.starts_with(directory) && entry.path.as_bytes().get(skip - 1) == Some(&b'/')
        };
        Some(self.entries[start..].iter().take_while(inside).filter(move |entry| !entry.path[skip..].contains('/')))
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
