//! A tree of one file, as a client makes it of a Dockerfile.

use super::{ChunkId, ChunkRef, ContextDigest, Entry, EntryKind, ManifestEncoder};

/// Chunks with their ids.
pub type Chunks = Vec<(ChunkId, Vec<u8>)>;

/// The tree's digest and every chunk of it. An empty text has no chunk and so no tree.
#[must_use]
pub fn single_file_tree(name: &str, text: &str) -> Option<(ContextDigest, Chunks)> {
    let chunk = ChunkRef { id: ChunkId::of(text.as_bytes()), len: u32::try_from(text.len()).ok()? };
    let kind = EntryKind::File(Box::new([chunk]));
    let entry = Entry { path: name.into(), kind, mode: 0o644, mtime_ns: 0 };
    let mut encoder = ManifestEncoder::default();
    let full = encoder.push(&entry).ok()?;
    let (last, root, digest) = encoder.finish().ok()?;
    let manifest = full.into_iter().chain(last).chain([root]).map(|chunk| (chunk.id, chunk.bytes));
    Some((digest, [(chunk.id, text.as_bytes().to_vec())].into_iter().chain(manifest).collect()))
}
