//! A pack: some MiB of chunks back to back, then a table of them, so that the index can be built anew from packs alone.
//!
//! Layout: the chunks' bytes; for each chunk its id (32 bytes) and length (4, little-endian); the number of chunks (4),
//! the first half of the table's BLAKE3 (16), a mark (8). A pack without a sound table is no pack.

use bytes::Bytes;
use kiln_common::{
    context::{ChunkId, ChunkRef},
    limits,
};
use object_store::PutPayload;

/// A pack is closed once it has this much.
pub(super) const PACK_BYTES: usize = 8 * 1024 * 1024;
pub(super) const TAIL_BYTES: u64 = 28;
const MARK: &[u8; 8] = b"KILNPAK1";
const ROW_BYTES: usize = 36;
/// More chunks than this close a pack too: its table is read whole.
const PACK_CHUNKS: usize = 64 * 1024;

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pack: u64,
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// A pack that is being filled.
#[derive(Debug, Default)]
pub(super) struct PackBuilder {
    chunks: Vec<(ChunkId, Bytes)>,
    bytes: usize,
}

impl PackBuilder {
    pub(super) fn push(&mut self, id: ChunkId, bytes: Bytes) {
        self.bytes += bytes.len();
        self.chunks.push((id, bytes));
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) const fn is_full(&self) -> bool {
        self.bytes >= PACK_BYTES || self.chunks.len() >= PACK_CHUNKS
    }

    /// The object and its table.
    pub(super) fn seal(self) -> (PutPayload, Vec<ChunkRef>) {
        let table: Vec<ChunkRef> =
            self.chunks.iter().map(|(id, bytes)| ChunkRef { id: *id, len: bytes.len() as u32 }).collect();
        let tail = encode_table(&table);
        let payload = self.chunks.into_iter().map(|(_, bytes)| bytes).chain([Bytes::from(tail)]).collect();
        (payload, table)
    }
}

fn encode_table(table: &[ChunkRef]) -> Vec<u8> {
    let mut out = Vec::with_capacity(table.len() * ROW_BYTES + TAIL_BYTES as usize);
    for chunk in table {
        out.extend_from_slice(chunk.id.as_bytes());
        out.extend_from_slice(&chunk.len.to_le_bytes());
    }
    let hash = blake3::hash(&out);
    out.extend_from_slice(&(table.len() as u32).to_le_bytes());
    out.extend_from_slice(&hash.as_bytes()[..16]);
    out.extend_from_slice(MARK);
    out
}

/// How long the table before a pack's tail is; `None` when it is no tail.
pub(super) fn table_bytes(tail: &[u8]) -> Option<u64> {
    let count = tail.strip_suffix(MARK)?.first_chunk::<4>()?;
    Some(u64::from(u32::from_le_bytes(*count)) * ROW_BYTES as u64)
}

/// Reads table and tail; `None` when they are not sound or do not fit `data_bytes` of chunks.
pub(super) fn decode_table(table_and_tail: &[u8], data_bytes: u64) -> Option<Vec<ChunkRef>> {
    let rows = table_and_tail.len().checked_sub(TAIL_BYTES as usize)?;
    let (rows, tail) = table_and_tail.split_at(rows);
    let sound = table_bytes(tail)? == rows.len() as u64 && blake3::hash(rows).as_bytes()[..16] == tail[4..20];
    if !sound {
        return None;
    }
    let row = |row: &[u8]| {
        let id = ChunkId::try_from(&row[..32]).ok()?;
        let len = u32::from_le_bytes(row[32..].try_into().ok()?);
        (1..=limits::CHUNK_BYTES).contains(&(len as usize)).then_some(ChunkRef { id, len })
    };
    let table: Vec<ChunkRef> = rows.chunks_exact(ROW_BYTES).map(row).collect::<Option<_>>()?;
    (table.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>() == data_bytes).then_some(table)
}

/// Each chunk of a pack with its place.
pub(super) fn places(pack: u64, table: &[ChunkRef]) -> impl Iterator<Item = (ChunkId, Place)> + '_ {
    let mut offset = 0;
    table.iter().map(move |chunk| {
        let place = Place { pack, offset, len: chunk.len };
        offset += chunk.len;
        (chunk.id, place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_back_and_any_damage_shows() {
        let mut builder = PackBuilder::default();
        for seed in 0..50_u8 {
            let bytes = Bytes::from(vec![seed; 10 + usize::from(seed)]);
            builder.push(ChunkId::of(&bytes), bytes);
        }
        let (payload, table) = builder.seal();
        let object: Vec<u8> = payload.iter().flatten().copied().collect();
        let data: u64 = table.iter().map(|chunk| u64::from(chunk.len)).sum();
        let tail = &object[object.len() - TAIL_BYTES as usize..];
        let rows = table_bytes(tail).expect("tail");
        let whole = &object[object.len() - TAIL_BYTES as usize - rows as usize..];
        assert_eq!(decode_table(whole, data), Some(table));
        assert_eq!(decode_table(whole, data + 1), None);
        for place in (0..whole.len()).step_by(7) {
            let mut damaged = whole.to_vec();
            damaged[place] ^= 0x40;
            assert_eq!(decode_table(&damaged, data), None, "{place}");
        }
    }
}
