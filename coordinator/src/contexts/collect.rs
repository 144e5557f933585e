//! Gives back the space of chunks that no build needs: contexts that no open build refers to and that nobody used lately.
//!
//! A pack younger than the time to keep is left alone, so an upload in progress is never collected; one that is mostly
//! unused is packed anew. Objects go one collection after the index gave them up, so a reader that has begun can finish.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures_util::TryStreamExt;
use kiln_common::{
    Timestamp,
    context::{ChunkId, ContextDigest},
    limits,
};
use tokio::sync::mpsc;

use super::{
    Contexts, blocking,
    complete::{BATCHES, TOUCH_EVERY},
    error::ContextsError,
    index::{PackRecord, SealedPack, Sweep},
    pack::PackBuilder,
};

/// A collection begins anew when contexts came into use meanwhile; this often, then it waits for the next time.
const TRIES: usize = 5;

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Packs that were given up.
    pub packs: u64,
    /// Bytes of chunks that are no longer kept.
    pub bytes: u64,
}

/// Whether chunks of a pack are in use.
#[derive(Debug, Default)]
struct Use {
    live: Vec<ChunkId>,
    live_bytes: u64,
}

impl Contexts {
    /// Collects what neither `referenced` (the trees of builds that are not final) nor anything used within
    /// `keep_younger_than` needs. Less than two hours are taken as two: uses are noted by the hour.
    ///
    /// # Errors
    /// When the store fails; nothing that is in use is touched.
    pub async fn collect(
        &self,
        referenced: &[ContextDigest],
        now: Timestamp,
        keep_younger_than: Duration,
    ) -> Result<Collected, ContextsError> {
        let keep = keep_younger_than.max(2 * TOUCH_EVERY);
        let _alone = self.collecting.lock().await;
        self.remove_retired().await?;
        for _ in 0..TRIES {
            let (sweep, collected) = self.decide(referenced, now, keep).await?;
            if sweep.retired.is_empty() {
                return Ok(Collected::default());
            }
            let index = self.index.clone();
            let rewritten: Vec<u64> = sweep.rewritten.iter().map(|pack| pack.number).collect();
            let gate = self.gate.write().await;
            let applied = blocking(move || index.apply(&sweep)).await?;
            self.recent.clear();
            drop(gate);
            if applied {
                return Ok(collected);
            }
            for number in rewritten {
                self.packs.remove(number).await?;
            }
        }
        Ok(Collected::default())
    }

    /// Objects that the last collection gave up: nobody has read them since.
    async fn remove_retired(&self) -> Result<(), ContextsError> {
        let retired: Vec<PackRecord> = self.packs_listed().await?.into_iter().filter(|pack| pack.retired).collect();
        for pack in &retired {
            self.packs.remove(pack.number).await?;
        }
        let gone: HashSet<u64> = retired.iter().map(|pack| pack.number).collect();
        let index = self.index.clone();
        blocking(move || index.forget_retired(&gone)).await
    }

    async fn packs_listed(&self) -> Result<Vec<PackRecord>, ContextsError> {
        let index = self.index.clone();
        blocking(move || index.packs()).await
    }

    async fn decide(
        &self,
        referenced: &[ContextDigest],
        now: Timestamp,
        keep: Duration,
    ) -> Result<(Sweep, Collected), ContextsError> {
        let index = self.index.clone();
        let roots = blocking(move || index.roots()).await?;
        let recent = roots.iter().filter(|(_, used)| now.since(*used) < keep).map(|(root, _)| *root);
        let live_roots: HashSet<ContextDigest> = recent.chain(referenced.iter().copied()).collect();
        let live = self.mark(&live_roots).await?;
        let packs = self.packs_listed().await?;
        let old = packs.iter().filter(|pack| !pack.retired && now.since(pack.made) >= keep);
        let mut uses: HashMap<u64, (PackRecord, Use)> =
            old.map(|pack| (pack.number, (*pack, Use::default()))).collect();
        let index = self.index.clone();
        let uses = blocking(move || {
            index.each_chunk(|id, place| {
                if let Some((_, used)) = uses.get_mut(&place.pack).filter(|_| live.contains(&id)) {
                    used.live.push(id);
                    used.live_bytes += u64::from(place.len);
                }
            })?;
            Ok(uses)
        })
        .await?;
        let mut collected = Collected::default();
        let (mut retired, mut keep_chunks) = (HashSet::new(), Vec::new());
        for (number, (pack, used)) in uses {
            if used.live_bytes * 2 < pack.bytes {
                collected.packs += 1;
                collected.bytes += pack.bytes - used.live_bytes;
                retired.insert(number);
                keep_chunks.extend(used.live);
            }
        }
        let rewritten = self.rewrite(&keep_chunks).await?;
        let seen_roots = roots.into_iter().collect();
        Ok((Sweep { seen_roots, live_roots, retired, rewritten }, collected))
    }

    /// All chunks of the live contexts, as far as they are here.
    async fn mark(&self, roots: &HashSet<ContextDigest>) -> Result<HashSet<ChunkId>, ContextsError> {
        let mut live = HashSet::new();
        for root in roots {
            let (sender, mut batches) = mpsc::channel(BATCHES);
            let keep = async {
                while let Some(ids) = batches.recv().await {
                    live.extend(ids);
                }
            };
            let (walked, ()) = tokio::join!(self.walk(*root, sender), keep);
            match walked {
                Ok(()) | Err(ContextsError::Missing { .. } | ContextsError::Manifest(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(live)
    }

    async fn rewrite(&self, chunks: &[ChunkId]) -> Result<Vec<SealedPack>, ContextsError> {
        let (mut builder, mut rewritten) = (PackBuilder::default(), Vec::new());
        for ids in chunks.chunks(limits::CHUNK_IDS_PER_CALL) {
            let mut batches = Box::pin(self.read(ids.to_vec()).await?);
            while let Some(batch) = batches.try_next().await? {
                for (id, bytes) in batch {
                    // What is damaged is not carried on.
                    if ChunkId::of(&bytes) == id {
                        builder.push(id, bytes);
                    }
                    if builder.is_full() {
                        rewritten.push(self.write_pack(std::mem::take(&mut builder)).await?);
                    }
                }
            }
        }
        if !builder.is_empty() {
            rewritten.push(self.write_pack(builder).await?);
        }
        Ok(rewritten)
    }

    async fn write_pack(&self, builder: PackBuilder) -> Result<SealedPack, ContextsError> {
        let (payload, table) = builder.seal();
        let number = self.number_pack();
        self.packs.write(number, payload).await?;
        Ok(SealedPack { number, made: Timestamp::now(), table })
    }
}
