//! The store through its own doors: uploads, restarts, damage, collection.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use futures_util::TryStreamExt;
use kiln_common::{
    Timestamp,
    context::{ChunkRef, ContextDigest, Entry, EntryKind, ManifestEncoder},
};

use super::*;

const KEEP: Duration = Duration::from_secs(2 * 3600);

fn chunk(seed: &str, len: usize) -> (ChunkId, Bytes) {
    let bytes = Bytes::from(seed.as_bytes().iter().copied().cycle().take(len).collect::<Vec<u8>>());
    (ChunkId::of(&bytes), bytes)
}

/// A context of some files: its root and all its chunks.
fn context(name: &str, files: usize, len: usize) -> (ContextDigest, Vec<(ChunkId, Bytes)>) {
    let (mut encoder, mut chunks) = (ManifestEncoder::default(), Vec::new());
    for index in 0..files {
        let (id, bytes) = chunk(&format!("{name} {index} "), len);
        let kind = EntryKind::File(Box::new([ChunkRef { id, len: len as u32 }]));
        let entry = Entry { path: format!("f{index:06}").into(), kind, mode: 0o644, mtime_ns: 0 };
        chunks.push((id, bytes));
        chunks.extend(encoder.push(&entry).expect("valid").map(|chunk| (chunk.id, Bytes::from(chunk.bytes))));
    }
    let (last, root, digest) = encoder.finish().expect("small");
    chunks.extend(last.into_iter().chain([root]).map(|chunk| (chunk.id, Bytes::from(chunk.bytes))));
    (digest, chunks)
}

async fn open(directory: &tempfile::TempDir) -> Arc<Contexts> {
    Contexts::open_local(directory.path()).await.expect("opens")
}

async fn put(contexts: &Arc<Contexts>, chunks: &[(ChunkId, Bytes)]) -> Stored {
    let mut upload = contexts.upload();
    for part in chunks.chunks(100) {
        upload.push(part.to_vec()).await.expect("takes");
    }
    upload.finish().await.expect("stores")
}

async fn read(contexts: &Arc<Contexts>, ids: Vec<ChunkId>) -> Result<Vec<(ChunkId, Bytes)>, ContextsError> {
    let batches: Vec<_> = contexts.read(ids).await?.try_collect().await?;
    Ok(batches.concat())
}

fn ids(chunks: &[(ChunkId, Bytes)]) -> Vec<ChunkId> {
    chunks.iter().map(|(id, _)| *id).collect()
}

fn packs(directory: &tempfile::TempDir) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory.path().join("packs")) else { return Vec::new() };
    entries.map(|entry| entry.expect("entry").path()).collect()
}

fn later(hours: u64) -> Timestamp {
    Timestamp::now() + Duration::from_secs(hours * 3600)
}

#[tokio::test]
async fn what_was_uploaded_is_found_and_read_in_the_order_asked() {
    let directory = tempfile::tempdir().expect("dir");
    let contexts = open(&directory).await;
    let (root, chunks) = context("a", 500, 40_000);
    let stored = put(&contexts, &chunks).await;
    assert_eq!(stored.chunks, chunks.len() as u64);
    assert!(packs(&directory).len() <= 4, "{}", packs(&directory).len());
    assert_eq!(put(&contexts, &chunks).await, Stored::default());
    let absent = ChunkId::of(b"absent");
    let asked: Vec<_> = ids(&chunks).into_iter().chain([absent]).collect();
    assert_eq!(contexts.find_missing(asked).await.expect("asks"), [absent]);
    let backwards: Vec<_> = chunks.iter().rev().cloned().collect();
    assert_eq!(read(&contexts, ids(&backwards)).await.expect("reads"), backwards);
    assert!(matches!(read(&contexts, vec![absent]).await, Err(ContextsError::Missing { id }) if id == absent));
    assert_eq!(contexts.is_complete(root, Timestamp::now()).await.expect("asks"), Completeness::Complete);
}

#[tokio::test]
async fn a_context_with_holes_says_how_many() {
    let directory = tempfile::tempdir().expect("dir");
    let contexts = open(&directory).await;
    let (root, chunks) = context("a", 30, 100);
    let now = Timestamp::now();
    assert_eq!(contexts.is_complete(root, now).await.expect("asks"), Completeness::Missing(1));
    put(&contexts, &chunks[3..]).await;
    assert_eq!(contexts.is_complete(root, now).await.expect("asks"), Completeness::Missing(3));
    put(&contexts, &chunks).await;
    assert_eq!(contexts.is_complete(root, now).await.expect("asks"), Completeness::Complete);
    let (file, bytes) = chunk("no root", 50);
    put(&contexts, &[(file, bytes)]).await;
    assert!(matches!(contexts.is_complete(ContextDigest(file), now).await, Err(ContextsError::Manifest(_))));
}

#[tokio::test]
async fn bytes_that_do_not_match_their_id_end_the_upload() {
    let directory = tempfile::tempdir().expect("dir");
    let contexts = open(&directory).await;
    let ((id, _), (_, other)) = (chunk("a", 10), chunk("b", 10));
    let mut upload = contexts.upload();
    assert!(matches!(upload.push(vec![(id, other)]).await, Err(ContextsError::Mismatch { .. })));
    assert!(matches!(upload.push(vec![(id, Bytes::new())]).await, Err(ContextsError::Length { .. })));
    assert_eq!(upload.finish().await.expect("ends"), Stored::default());
    assert_eq!(contexts.find_missing(vec![id]).await.expect("asks"), [id]);
}

#[tokio::test]
async fn two_clients_may_upload_the_same_at_once() {
    let directory = tempfile::tempdir().expect("dir");
    let contexts = open(&directory).await;
    let (root, chunks) = context("a", 200, 1000);
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (contexts, chunks) = (contexts.clone(), chunks.clone());
            tokio::spawn(async move { put(&contexts, &chunks).await })
        })
        .collect();
    for task in tasks {
        task.await.expect("joins");
    }
    assert_eq!(read(&contexts, ids(&chunks)).await.expect("reads"), chunks);
    assert_eq!(contexts.is_complete(root, Timestamp::now()).await.expect("asks"), Completeness::Complete);
}

#[tokio::test]
async fn everything_is_there_after_a_restart_with_or_without_the_index() {
    let directory = tempfile::tempdir().expect("dir");
    let (root, chunks) = context("a", 300, 5000);
    put(&open(&directory).await, &chunks).await;
    assert_eq!(read(&open(&directory).await, ids(&chunks)).await.expect("reads"), chunks);
    std::fs::remove_file(directory.path().join("index.redb")).expect("removes");
    let contexts = open(&directory).await;
    assert_eq!(contexts.is_complete(root, Timestamp::now()).await.expect("asks"), Completeness::Complete);
    drop(contexts);
    std::fs::write(directory.path().join("index.redb"), b"no database").expect("writes");
    assert_eq!(read(&open(&directory).await, ids(&chunks)).await.expect("reads"), chunks);
}

#[tokio::test]
async fn a_half_written_pack_is_removed_and_a_lost_one_is_uploaded_again() {
    let directory = tempfile::tempdir().expect("dir");
    let (root, chunks) = context("a", 300, 5000);
    let contexts = open(&directory).await;
    put(&contexts, &chunks).await;
    let now = Timestamp::now();
    assert_eq!(contexts.is_complete(root, now).await.expect("asks"), Completeness::Complete);
    drop(contexts);
    let pack = packs(&directory).remove(0);
    let half = std::fs::read(&pack).expect("reads");
    std::fs::write(pack.with_file_name("00000000000000ff.pack"), &half[..half.len() / 2]).expect("writes");
    std::fs::remove_file(pack).expect("removes");
    let contexts = open(&directory).await;
    assert!(packs(&directory).is_empty());
    assert_eq!(contexts.is_complete(root, now).await.expect("asks"), Completeness::Missing(1));
    put(&contexts, &chunks).await;
    assert_eq!(read(&contexts, ids(&chunks)).await.expect("reads"), chunks);
}

#[tokio::test]
async fn what_nobody_needs_is_collected_and_what_is_needed_stays() {
    let directory = tempfile::tempdir().expect("dir");
    let contexts = open(&directory).await;
    let (used, used_chunks) = context("used", 300, 1000);
    let (old, old_chunks) = context("old", 3000, 1000);
    let mut mixed = used_chunks.clone();
    mixed.extend(old_chunks.clone());
    put(&contexts, &mixed).await;
    for root in [used, old] {
        assert_eq!(contexts.is_complete(root, Timestamp::now()).await.expect("asks"), Completeness::Complete);
    }
    // Young packs and roots stay, whoever refers to them.
    assert_eq!(contexts.collect(&[], Timestamp::now(), KEEP).await.expect("collects"), Collected::default());
    let collected = contexts.collect(&[used], later(3), KEEP).await.expect("collects");
    assert!(collected.bytes > 2_900_000, "{collected:?}");
    assert_eq!(read(&contexts, ids(&used_chunks)).await.expect("reads"), used_chunks);
    assert!(contexts.find_missing(ids(&old_chunks)).await.expect("asks").len() > 2900);
    assert!(matches!(contexts.is_complete(old, later(3)).await.expect("asks"), Completeness::Missing(_)));
    // The objects go with the next collection; a restart in between changes nothing.
    let before = packs(&directory).len();
    drop(contexts);
    let contexts = open(&directory).await;
    contexts.collect(&[used], later(3), KEEP).await.expect("collects");
    assert!(packs(&directory).len() < before);
    assert_eq!(read(&contexts, ids(&used_chunks)).await.expect("reads"), used_chunks);
    put(&contexts, &old_chunks).await;
    assert_eq!(contexts.is_complete(old, later(3)).await.expect("asks"), Completeness::Complete);
}

#[tokio::test]
async fn a_use_within_the_time_to_keep_protects_a_context() {
    let directory = tempfile::tempdir().expect("dir");
    let contexts = open(&directory).await;
    let (root, chunks) = context("a", 50, 1000);
    put(&contexts, &chunks).await;
    assert_eq!(contexts.is_complete(root, Timestamp::now()).await.expect("asks"), Completeness::Complete);
    assert_eq!(contexts.is_complete(root, later(20)).await.expect("asks"), Completeness::Complete);
    assert_eq!(contexts.collect(&[], later(21), KEEP).await.expect("collects"), Collected::default());
    assert!(contexts.collect(&[], later(23), KEEP).await.expect("collects").bytes > 0);
    assert_eq!(contexts.find_missing(ids(&chunks)).await.expect("asks"), ids(&chunks));
}
