//! A layer's tar archive, walked entry by entry (POSIX.1-1988 ustar, POSIX.1-2001 pax, GNU's long names), as
//! a stream.
//!
//! The crate `tar` reads the headers; the walk is Kiln's own, because that crate holds long names and pax records of
//! any length in memory. Nothing is unpacked, so a path can do no harm here; it only names a file in a message.

use std::io::{self, Read};

use kiln_common::limits;
use tar::{Header, PaxExtensions};

const BLOCK: usize = 512;

/// Why an archive does not read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("its archive is damaged: {0}")]
    Damaged(&'static str),
    #[error("it has more than {} files", limits::LAYER_FILES)]
    TooManyFiles,
}

/// Calls `found` with the path, the size and the content of every regular file; what it leaves of the content is skipped.
///
/// # Errors
/// [`TarError`], and what `found` says.
pub fn walk<E: From<TarError>>(
    archive: &mut dyn Read,
    mut found: impl FnMut(&str, u64, &mut dyn Read) -> Result<(), E>,
) -> Result<(), E> {
    let mut pending = Pending::default();
    for _ in 0..limits::LAYER_FILES {
        let Some(header) = next_header(archive)? else { return Ok(()) };
        let size = pending.size.take().map_or_else(|| entry_size(&header), Ok)?;
        let kind = header.entry_type();
        if kind.is_pax_local_extensions() || kind.is_gnu_longname() {
            pending.read(&header, archive, size)?;
            continue;
        }
        if kind.is_gnu_longlink() {
            skip(archive, size)?;
            skip(archive, padding(size))?;
            continue;
        }
        if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            skip_sparse_map(&header, archive)?;
            let path = pending.path.take().unwrap_or_else(|| header.path_bytes().into_owned());
            let path = String::from_utf8_lossy(&path);
            let mut content = (&mut *archive).take(size);
            found(&path, size, &mut content)?;
            let left = content.limit();
            skip(archive, left)?;
        } else {
            skip(archive, size)?;
        }
        skip(archive, padding(size))?;
        pending = Pending::default();
    }
    Err(TarError::TooManyFiles.into())
}

/// What an extended header said of the entry that follows it.
#[derive(Debug, Default)]
struct Pending {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Pending {
    fn read(&mut self, header: &Header, archive: &mut dyn Read, size: u64) -> Result<(), TarError> {
        let length = usize::try_from(size).ok().filter(|length| *length <= limits::LAYER_HEADER_BYTES);
        let mut bytes = vec![0; length.ok_or(TarError::Damaged("an extended header is too long"))?];
        archive.read_exact(&mut bytes)?;
        skip(archive, padding(size))?;
        if header.entry_type().is_gnu_longname() {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            self.path = Some(bytes[..end.min(limits::PATH_BYTES)].to_vec());
            return Ok(());
        }
        for record in PaxExtensions::new(&bytes) {
            let record = record.map_err(|_| TarError::Damaged("a pax record is malformed"))?;
            match record.key_bytes() {
                b"path" => {
                    let path = record.value_bytes();
                    self.path = Some(path[..path.len().min(limits::PATH_BYTES)].to_vec());
                }
                b"size" => {
                    let size = record.value().ok().and_then(|text| text.parse().ok());
                    self.size = Some(size.ok_or(TarError::Damaged("a pax size is not a number"))?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// `None` at the end: a block of zeros, or where the stream ends between two entries.
fn next_header(archive: &mut dyn Read) -> Result<Option<Header>, TarError> {
    let mut header = Header::new_old();
    let block = header.as_mut_bytes();
    let mut filled = 0;
    while filled < BLOCK {
        match archive.read(&mut block[filled..])? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(TarError::Damaged("it ends within a header")),
            count => filled += count,
        }
    }
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    // POSIX: the sum of all bytes, those of the sum itself taken as spaces.
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    match header.cksum() {
        Ok(stored) if stored == sum => Ok(Some(header)),
        _ => Err(TarError::Damaged("a header's checksum is wrong")),
    }
}

/// Links and the like have no content, whatever their size says.
fn entry_size(header: &Header) -> Result<u64, TarError> {
    let kind = header.entry_type();
    let is_special = kind.is_block_special() || kind.is_character_special() || kind.is_fifo();
    if kind.is_hard_link() || kind.is_symlink() || kind.is_dir() || is_special {
        return Ok(0);
    }
    header.entry_size().map_err(|_| TarError::Damaged("a size is not a number"))
}

/// The blocks between a sparse file's header and its content.
fn skip_sparse_map(header: &Header, archive: &mut dyn Read) -> Result<(), TarError> {
    let mut goes_on = header.entry_type().is_gnu_sparse() && header.as_gnu().is_some_and(|gnu| gnu.is_extended());
    for _ in 0..limits::LAYER_FILES {
        if !goes_on {
            return Ok(());
        }
        let mut block = [0; BLOCK];
        archive.read_exact(&mut block)?;
        // GNU tar: 21 entries of 24 bytes, then the flag.
        goes_on = block[504] != 0;
    }
    Err(TarError::Damaged("a sparse file has no end of pieces"))
}

const fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn skip(archive: &mut dyn Read, bytes: u64) -> Result<(), TarError> {
    let skipped = io::copy(&mut archive.take(bytes), &mut io::sink())?;
    if skipped == bytes { Ok(()) } else { Err(TarError::Damaged("it ends within a file")) }
}

#[cfg(test)]
mod tests {
    use tar::EntryType;

    use super::*;

    fn files(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>, TarError> {
        let mut all = Vec::new();
        walk::<TarError>(&mut &archive[..], |path, _, content| {
            let mut bytes = Vec::new();
            content.take(3).read_to_end(&mut bytes)?;
            all.push((path.to_owned(), bytes));
            Ok(())
        })?;
        Ok(all)
    }

    fn archive(paths: &[&str]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for path in paths {
            let mut header = Header::new_gnu();
            header.set_size(5);
            builder.append_data(&mut header, path, &b"12345"[..]).expect("appended");
        }
        builder.into_inner().expect("an archive")
    }

    #[test]
    fn files_are_found_with_short_and_long_names_and_what_is_left_is_skipped() {
        let long = format!("{}/end", "folder/".repeat(40));
        let found = files(&archive(&["bin/a", &long, "b"])).expect("reads");
        let paths: Vec<_> = found.iter().map(|(path, _)| path.replace("//", "/")).collect();
        assert_eq!(paths, ["bin/a", &long.replace("//", "/"), "b"]);
        assert!(found.iter().all(|(_, bytes)| bytes == b"123"));
    }

    #[test]
    fn pax_records_name_and_measure_the_next_entry() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("path", &b"from/pax"[..]), ("size", b"5")]).expect("appended");
        let mut header = Header::new_ustar();
        header.set_size(5);
        header.set_path("short").expect("path");
        header.set_cksum();
        builder.append(&header, &b"12345"[..]).expect("appended");
        let found = files(&builder.into_inner().expect("an archive")).expect("reads");
        assert_eq!(found, [("from/pax".to_owned(), b"123".to_vec())]);
    }

    #[test]
    fn damage_is_told_and_costs_nothing() {
        let whole = archive(&["a", "b"]);
        for end in 1..whole.len() - 1024 {
            let _ = files(&whole[..end]);
        }
        assert!(matches!(files(&whole[..700]), Err(TarError::Damaged("it ends within a file"))));
        let mut broken = whole.clone();
        broken[0] ^= 1;
        assert!(matches!(files(&broken), Err(TarError::Damaged("a header's checksum is wrong"))));
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(u64::MAX / 2);
        header.set_cksum();
        assert!(matches!(files(header.as_bytes()), Err(TarError::Damaged("an extended header is too long"))));
    }
}
