//! An entry as fsutil's `Stat` has it: Go's file mode, everything owned by root.

use bollard_buildkit_proto::fsutil::types::{Packet, Stat, packet::PacketType};
use kiln_common::context::{ChunkRef, Entry, EntryKind, Manifest};

use super::selection::{Selected, contents};

// Go's io/fs.FileMode.
const GO_DIRECTORY: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_STICKY: u32 = 1 << 20;

/// The packet that tells the engine of one chosen entry.
pub(super) fn stat_packet(manifest: &Manifest, selected: &Selected, index: u32) -> Packet {
    let entry = &manifest.entries()[index as usize];
    let mut stat =
        Stat { path: entry.path.to_string(), mode: go_mode(entry), mod_time: entry.mtime_ns, ..Stat::default() };
    match &entry.kind {
        EntryKind::Directory => {}
        EntryKind::File(_) => stat.size = signed(entry.size()),
        EntryKind::Symlink(target) => {
            stat.size = signed(target.len() as u64);
            stat.linkname = target.to_string();
        }
        EntryKind::HardLink(target) => match selected.link_target(manifest, index, target) {
            Some(path) => stat.linkname = path.to_owned(),
            None => {
                let chunks: &[ChunkRef] = contents(manifest, entry).unwrap_or_default();
                stat.size = chunks.iter().map(|chunk| i64::from(chunk.len)).sum();
            }
        },
    }
    Packet { r#type: PacketType::PacketStat.into(), stat: Some(stat), ..Packet::default() }
}

fn go_mode(entry: &Entry) -> u32 {
    let mode = u32::from(entry.mode);
    let kind = match entry.kind {
        EntryKind::Directory => GO_DIRECTORY,
        EntryKind::Symlink(_) => GO_SYMLINK,
        EntryKind::File(_) | EntryKind::HardLink(_) => 0,
    };
    let special = [(0o4000, GO_SETUID), (0o2000, GO_SETGID), (0o1000, GO_STICKY)];
    let special = special.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, go)| go).sum::<u32>();
    kind | special | mode & 0o777
}

/// No file of a context comes near the sign: the limits see to it.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
