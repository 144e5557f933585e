//! What can go wrong with the chunk store, and the one map to refusals.

use kiln_common::{
    Reason,
    context::{ChunkId, InvalidManifest},
    limits,
};
use kiln_proto::status::Refused;

#[derive(Debug, thiserror::Error)]
pub enum ContextsError {
    #[error("the farm's store for contexts is full; free space where it keeps its objects, or let it collect old ones")]
    Full,
    #[error("cannot read or write the objects of contexts: {0}")]
    Objects(#[source] object_store::Error),
    #[error("cannot read or write the index of contexts: {0}")]
    Index(#[source] Box<redb::Error>),
    #[error("cannot use the directory of contexts: {0}")]
    Directory(#[source] std::io::Error),
    #[error("chunk {id} has other bytes than its id says; was the upload damaged on its way?")]
    Mismatch { id: ChunkId },
    #[error("chunk {id} has {len} bytes; expected 1 to {}", limits::CHUNK_BYTES)]
    Length { id: ChunkId, len: usize },
    #[error(
        "{length} bytes are no list of chunk ids; expected 32 for each, at most {} ids",
        limits::CHUNK_IDS_PER_CALL
    )]
    Ids { length: usize },
    #[error("the farm has no chunk {id}; submit the build again so that its context is uploaded anew")]
    Missing { id: ChunkId },
    #[error("the context is not sound: {0}")]
    Manifest(#[from] InvalidManifest),
    #[error("the coordinator is stopping")]
    Interrupted,
}

impl From<ContextsError> for Refused {
    fn from(error: ContextsError) -> Self {
        let reason = match &error {
            ContextsError::Full => Reason::Overloaded,
            ContextsError::Objects(_)
            | ContextsError::Index(_)
            | ContextsError::Directory(_)
            | ContextsError::Interrupted => Reason::Unavailable,
            ContextsError::Mismatch { .. }
            | ContextsError::Length { .. }
            | ContextsError::Ids { .. }
            | ContextsError::Manifest(_) => Reason::InvalidArgument,
            ContextsError::Missing { .. } => Reason::NotFound,
        };
        Self::new(reason, error.to_string())
    }
}

impl From<object_store::Error> for ContextsError {
    fn from(error: object_store::Error) -> Self {
        if is_full(&error) { Self::Full } else { Self::Objects(error) }
    }
}

impl From<std::io::Error> for ContextsError {
    fn from(error: std::io::Error) -> Self {
        if is_full(&error) { Self::Full } else { Self::Directory(error) }
    }
}

/// redb has an error type for each step; all of them convert to its own sum of them.
macro_rules! from_redb {
    ($($kind:ty),+) => {$(
        impl From<$kind> for ContextsError {
            fn from(error: $kind) -> Self {
                let error = redb::Error::from(error);
                if is_full(&error) { Self::Full } else { Self::Index(Box::new(error)) }
            }
        }
    )+};
}

from_redb!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError, redb::DatabaseError);

/// Whether `ENOSPC` or a quota is at the bottom.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| match error.downcast_ref::<redb::Error>() {
            Some(redb::Error::Io(io)) => Some(io),
            _ => error.downcast_ref::<std::io::Error>(),
        })
        .any(|io| matches!(io.kind(), StorageFull | QuotaExceeded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_as_such() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let objects = object_store::Error::Generic { store: "local", source: Box::new(full()) };
        assert!(matches!(ContextsError::from(objects), ContextsError::Full));
        assert!(matches!(ContextsError::from(redb::StorageError::Io(full())), ContextsError::Full));
        assert_eq!(Refused::from(ContextsError::from(full())).reason, Reason::Overloaded);
    }
}
