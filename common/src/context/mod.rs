//! The build context as content-addressed chunks: what the client uploads once and every worker fetches what it lacks of.
//!
//! A context is a manifest (the sorted list of its files) cut into chunks, file contents cut into chunks, and one root
//! chunk that lists the manifest's chunks. The root's id names the whole context.

mod entry;
pub mod filter;
mod follow;
pub mod ignore;
mod manifest;
pub mod pattern;
mod single;
mod wire;

pub use entry::{ChunkRef, Entry, EntryKind, InvalidEntry, compare_paths};
pub use follow::{follow_links, without_nested};
pub use manifest::{InvalidManifest, Manifest, ManifestChunk, ManifestDecoder, ManifestEncoder, Root};
pub use single::single_file_tree;
pub use wire::Malformed;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::digest::decode_hex;

/// The BLAKE3 hash of a chunk's bytes, written as 64 lower-case hex digits. Kiln's own, never an OCI digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChunkId([u8; 32]);

/// The id of a context's root chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContextDigest(pub ChunkId);

/// The text or the bytes are not a chunk id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a chunk id; expected 64 lower-case hex digits")]
pub struct InvalidChunkId {
    pub text: String,
}

impl ChunkId {
    /// The id of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its first eight bytes: a key for tables in memory that check the rest elsewhere, or need not.
    #[must_use]
    pub const fn short(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl TryFrom<&[u8]> for ChunkId {
    type Error = InvalidChunkId;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidChunkId> {
        bytes.try_into().map(Self).map_err(|_| InvalidChunkId { text: format!("{} bytes", bytes.len()) })
    }
}

impl FromStr for ChunkId {
    type Err = InvalidChunkId;

    fn from_str(text: &str) -> Result<Self, InvalidChunkId> {
        decode_hex(text).map(Self).ok_or_else(|| InvalidChunkId { text: text.chars().take(72).collect() })
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for ChunkId {
    type Error = InvalidChunkId;

    fn try_from(text: String) -> Result<Self, InvalidChunkId> {
        text.parse()
    }
}

impl From<ChunkId> for String {
    fn from(id: ChunkId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for ContextDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ContextDigest {
    type Err = InvalidChunkId;

    fn from_str(text: &str) -> Result<Self, InvalidChunkId> {
        text.parse().map(Self)
    }
}
