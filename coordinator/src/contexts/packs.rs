//! Packs as objects: written whole or not at all, read by range, listed to bring the index in line after a crash.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use futures_util::TryStreamExt;
use kiln_common::{Timestamp, context::ChunkRef};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path};

use super::{
    blocking,
    error::ContextsError,
    index::{Index, SealedPack},
    pack::{TAIL_BYTES, decode_table, table_bytes},
};

const PREFIX: &str = "packs";

#[derive(Debug, Clone)]
pub(super) struct Packs {
    objects: Arc<dyn ObjectStore>,
}

impl Packs {
    pub(super) fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects }
    }

    /// Durable once it returns.
    pub(super) async fn write(&self, number: u64, payload: PutPayload) -> Result<(), ContextsError> {
        self.objects.put(&path(number), payload).await?;
        Ok(())
    }

    pub(super) async fn read(&self, number: u64, range: std::ops::Range<u64>) -> Result<Bytes, ContextsError> {
        Ok(self.objects.get_range(&path(number), range).await?)
    }

    /// Removing what is gone already is no error.
    pub(super) async fn remove(&self, number: u64) -> Result<(), ContextsError> {
        match self.objects.delete(&path(number)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn list(&self) -> Result<Vec<Listed>, ContextsError> {
        let objects = self.objects.list(Some(&Path::from(PREFIX)));
        let listed = objects.try_filter_map(|object| async move {
            let number = number_of(&object.location);
            let made = u64::try_from(object.last_modified.timestamp_millis()).unwrap_or_default();
            Ok(number.map(|number| Listed { number, size: object.size, made: Timestamp::from_millis(made) }))
        });
        Ok(listed.try_collect().await?)
    }

    /// The table at a pack's end; `None` when it has none that is sound.
    async fn table(&self, pack: &Listed) -> Result<Option<Vec<ChunkRef>>, ContextsError> {
        let Some(tail_start) = pack.size.checked_sub(TAIL_BYTES) else { return Ok(None) };
        let tail = self.read(pack.number, tail_start..pack.size).await?;
        let data = table_bytes(&tail).and_then(|rows| tail_start.checked_sub(rows));
        let Some(data_bytes) = data else { return Ok(None) };
        let table = self.read(pack.number, data_bytes..pack.size).await?;
        Ok(decode_table(&table, data_bytes))
    }
}

struct Listed {
    number: u64,
    size: u64,
    made: Timestamp,
}

fn path(number: u64) -> Path {
    Path::from(format!("{PREFIX}/{number:016x}.pack"))
}

fn number_of(path: &Path) -> Option<u64> {
    u64::from_str_radix(path.filename()?.strip_suffix(".pack")?, 16).ok()
}

/// Brings index and packs in line after whatever happened; the number of the next pack.
pub(super) async fn reconcile(packs: &Packs, index: &Arc<Index>) -> Result<u64, ContextsError> {
    let objects = packs.list().await?;
    let listed: HashSet<u64> = index.packs()?.iter().map(|pack| pack.number).collect();
    let mut next = listed.iter().max().map_or(0, |last| last + 1);
    for object in &objects {
        next = next.max(object.number + 1);
        if listed.contains(&object.number) {
            continue;
        }
        match packs.table(object).await? {
            Some(table) => {
                let pack = SealedPack { number: object.number, made: object.made, table };
                let index = index.clone();
                blocking(move || index.add(&[pack])).await?;
            }
            None => {
                tracing::warn!(pack = object.number, "removing a pack of context chunks that has no sound table");
                packs.remove(object.number).await?;
            }
        }
    }
    let there: HashSet<u64> = objects.iter().map(|object| object.number).collect();
    let gone: HashSet<u64> = listed.difference(&there).copied().collect();
    if !gone.is_empty() {
        tracing::warn!(
            packs = gone.len(),
            "packs of context chunks are gone; clients will upload what was in them again"
        );
    }
    let index = index.clone();
    blocking(move || index.forget_packs(&gone)).await?;
    Ok(next)
}
