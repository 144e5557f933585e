//! The only conversions between the wire and the domain.
//!
//! Decoding checks everything once and names the field of every violation; encoding cannot fail. [`spec`] holds the
//! build spec, this file the small words that all messages share.

pub mod spec;

use std::time::Duration;

use kiln_common::{Grade, Platform, Timestamp, context::ChunkId, limits, spec::ImageDescriptor};

use crate::v1;

#[must_use]
pub const fn grade_to_wire(grade: Grade) -> v1::Grade {
    match grade {
        Grade::Native => v1::Grade::Native,
        Grade::Compat => v1::Grade::Compat,
        Grade::Emulated => v1::Grade::Emulated,
    }
}

/// `None` for the unspecified grade.
#[must_use]
pub const fn grade_from_wire(grade: v1::Grade) -> Option<Grade> {
    match grade {
        v1::Grade::Unspecified => None,
        v1::Grade::Native => Some(Grade::Native),
        v1::Grade::Compat => Some(Grade::Compat),
        v1::Grade::Emulated => Some(Grade::Emulated),
    }
}

#[must_use]
pub fn worker_platform_to_wire(platform: &Platform, grade: Grade) -> v1::WorkerPlatform {
    v1::WorkerPlatform { platform: platform.to_string(), grade: grade_to_wire(grade).into() }
}

/// # Errors
/// Says what is wrong with the platform or that its grade is missing.
pub fn worker_platform_from_wire(wire: &v1::WorkerPlatform) -> Result<(Platform, Grade), String> {
    let platform = wire.platform.parse::<Platform>().map_err(|error| error.to_string())?;
    let grade = grade_from_wire(wire.grade()).ok_or_else(|| format!("{platform} has no grade"))?;
    Ok((platform, grade))
}

#[must_use]
pub fn timestamp_to_wire(at: Timestamp) -> prost_types::Timestamp {
    let millis = at.as_millis();
    prost_types::Timestamp {
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1000 * 1_000_000).unwrap_or(0),
    }
}

/// Moments before 1970 count as 1970.
#[must_use]
pub fn timestamp_from_wire(wire: &prost_types::Timestamp) -> Timestamp {
    let seconds = u64::try_from(wire.seconds).unwrap_or(0);
    let millis = u64::try_from(wire.nanos / 1_000_000).unwrap_or(0);
    Timestamp::from_millis(seconds.saturating_mul(1000).saturating_add(millis))
}

#[must_use]
pub fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// `None` for negative durations.
#[must_use]
pub fn duration_from_wire(wire: &prost_types::Duration) -> Option<Duration> {
    Some(Duration::new(u64::try_from(wire.seconds).ok()?, u32::try_from(wire.nanos).ok()?))
}

/// Ids of 32 bytes each, joined.
#[must_use]
pub fn chunk_ids_to_wire(ids: &[ChunkId]) -> Vec<u8> {
    ids.iter().flat_map(|id| *id.as_bytes()).collect()
}

/// # Errors
/// Says so when the bytes are not whole ids or are more than `most` of them.
pub fn chunk_ids_from_wire(bytes: &[u8], most: usize) -> Result<Vec<ChunkId>, String> {
    let (ids, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() {
        return Err(format!("{} bytes are not a whole number of 32-byte ids", bytes.len()));
    }
    if ids.len() > most {
        return Err(format!("{} ids; at most {most} are allowed in one call", ids.len()));
    }
    Ok(ids.iter().map(|id| ChunkId::from_bytes(*id)).collect())
}

/// The image of a succeeded attempt.
///
/// # Errors
/// Says what is wrong with the digest, the media type or the size.
pub fn image_from_wire(wire: &v1::AttemptSucceeded) -> Result<ImageDescriptor, String> {
    let digest = wire.digest.parse().map_err(|error: kiln_common::digest::InvalidDigest| error.to_string())?;
    if wire.media_type.is_empty() || wire.media_type.len() > 255 || wire.size_bytes == 0 {
        return Err(format!("the descriptor of {digest} has no media type or no size"));
    }
    // They only explain; a malformed one is left out.
    let bases = wire.bases.iter().take(limits::BASE_IMAGES).filter_map(|text| text.parse().ok()).collect();
    Ok(ImageDescriptor { media_type: wire.media_type.clone(), digest, size: wire.size_bytes, bases })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_durations_read_back_to_the_millisecond() {
        let at = Timestamp::from_millis(1_700_000_000_123);
        assert_eq!(timestamp_from_wire(&timestamp_to_wire(at)), at);
        let before_the_epoch = prost_types::Timestamp { seconds: -5, nanos: 0 };
        assert_eq!(timestamp_from_wire(&before_the_epoch), Timestamp::default());
        let duration = Duration::from_millis(1_500);
        assert_eq!(duration_from_wire(&duration_to_wire(duration)), Some(duration));
        assert_eq!(duration_from_wire(&prost_types::Duration { seconds: -1, nanos: 0 }), None);
    }

    #[test]
    fn joined_chunk_ids_must_be_whole_and_few() {
        let ids = [ChunkId::of(b"a"), ChunkId::of(b"b")];
        let wire = chunk_ids_to_wire(&ids);
        assert_eq!(chunk_ids_from_wire(&wire, 2).as_deref(), Ok(&ids[..]));
        assert!(chunk_ids_from_wire(&wire[1..], 2).is_err());
        assert!(chunk_ids_from_wire(&wire, 1).is_err());
    }
}
