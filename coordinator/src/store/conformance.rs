//! What every store must do, run against each of them.

use std::sync::Arc;

use futures_util::StreamExt;

use super::{Change, Entry, MemoryStore, RedbStore, Store, StoreError, Txn};

/// Runs the whole suite on stores that `make` gives, each a new one.
async fn suite<S: Store>(make: impl Fn() -> S) {
    a_missing_key_is_none_and_a_written_one_reads_back(&make()).await;
    ranges_are_ordered_bounded_and_stay_under_their_prefix(&make()).await;
    a_failed_compare_changes_nothing(&make()).await;
    a_transaction_s_last_word_on_a_key_counts(&make()).await;
    of_many_racing_writers_exactly_one_wins_each_round(Arc::new(make())).await;
    a_watcher_sees_every_change_once_and_in_order(&make()).await;
    a_watcher_that_starts_too_late_is_told(&make()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_store_conforms() {
    suite(MemoryStore::default).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_conforms() {
    let directory = tempfile::tempdir().expect("a directory");
    let counter = std::sync::atomic::AtomicUsize::new(0);
    suite(|| {
        let number = counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        RedbStore::open(&directory.path().join(format!("{number}.redb"))).expect("opens")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_keeps_its_entries_and_revisions_when_opened_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kiln.redb");
    let revision = {
        let store = RedbStore::open(&path).expect("opens");
        put(&store, "a", "1").await;
        let revision = put(&store, "a", "2").await;
        assert!(matches!(RedbStore::open(&path), Err(StoreError::Failed { .. })), "a second process is refused");
        revision
    };
    let store = reopen(&path).await;
    assert_eq!(store.get("a").await.expect("reads"), Some(entry("a", "2", revision)));
    assert_eq!(store.revision().await.expect("reads"), revision);
    assert!(put(&store, "b", "1").await > revision);
}

/// The writer's thread lets go of the file a moment after the last handle is gone.
async fn reopen(path: &std::path::Path) -> RedbStore {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        match RedbStore::open(path) {
            Ok(store) => return store,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

async fn put(store: &dyn Store, key: &str, value: &str) -> u64 {
    let mut txn = Txn::new();
    txn.put(key, value.to_owned());
    store.commit(txn).await.expect("commits")
}

fn entry(key: &str, value: &str, revision: u64) -> Entry {
    Entry { key: key.to_owned(), value: value.to_owned().into(), revision }
}

async fn a_missing_key_is_none_and_a_written_one_reads_back(store: &dyn Store) {
    assert_eq!(store.get("a").await.expect("reads"), None);
    let revision = put(store, "a", "1").await;
    assert_eq!(store.get("a").await.expect("reads"), Some(entry("a", "1", revision)));
    let mut txn = Txn::new();
    txn.delete("a");
    store.commit(txn).await.expect("commits");
    assert_eq!(store.get("a").await.expect("reads"), None);
}

async fn ranges_are_ordered_bounded_and_stay_under_their_prefix(store: &dyn Store) {
    for key in ["b/3", "a/9", "b/1", "c", "b/2", "b", "b0"] {
        put(store, key, key).await;
    }
    let keys = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
    assert_eq!(keys(store.range("b/", None, 10).await.expect("reads")), ["b/1", "b/2", "b/3"]);
    assert_eq!(keys(store.range("b/", None, 2).await.expect("reads")), ["b/1", "b/2"]);
    assert_eq!(keys(store.range("b/", Some("b/1"), 10).await.expect("reads")), ["b/2", "b/3"]);
    assert_eq!(keys(store.range("b/", Some("b/15"), 10).await.expect("reads")), ["b/2", "b/3"]);
    assert_eq!(keys(store.range("b/", Some("a"), 1).await.expect("reads")), ["b/1"]);
    assert_eq!(keys(store.range("b/", Some("b/3"), 10).await.expect("reads")), Vec::<String>::new());
    assert_eq!(keys(store.range("", None, 100).await.expect("reads")).len(), 7);
    assert_eq!(super::scan(store, "b/").await.expect("reads").len(), 3);
}

async fn a_failed_compare_changes_nothing(store: &dyn Store) {
    let first = put(store, "a", "1").await;
    let mut stale = Txn::new();
    stale.compare("a", first).compare("b", 7).put("a", "2").put("c", "2");
    assert!(matches!(store.commit(stale).await, Err(StoreError::Conflict { key }) if key == "b"));
    assert_eq!(store.get("a").await.expect("reads"), Some(entry("a", "1", first)));
    assert_eq!(store.get("c").await.expect("reads"), None);
    let mut fresh = Txn::new();
    fresh.compare("a", first).compare("b", 0).put("a", "2");
    assert!(store.commit(fresh).await.expect("commits") > first);
}

async fn a_transaction_s_last_word_on_a_key_counts(store: &dyn Store) {
    let mut txn = Txn::new();
    txn.put("a", "1").delete("a").put("b", "1").put("b", "2").delete("missing");
    let revision = store.commit(txn).await.expect("commits");
    assert_eq!(store.range("", None, 10).await.expect("reads"), [entry("b", "2", revision)]);
}

async fn of_many_racing_writers_exactly_one_wins_each_round(store: Arc<dyn Store>) {
    for round in 0..5_u64 {
        let before = store.get("a").await.expect("reads").map_or(0, |entry| entry.revision);
        let racers: Vec<_> = (0..16)
            .map(|racer| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let mut txn = Txn::new();
                    txn.compare("a", before).put("a", format!("{round}/{racer}"));
                    store.commit(txn).await.is_ok()
                })
            })
            .collect();
        let mut winners = 0;
        for racer in racers {
            winners += usize::from(racer.await.expect("runs"));
        }
        assert_eq!(winners, 1);
    }
}

async fn a_watcher_sees_every_change_once_and_in_order(store: &dyn Store) {
    put(store, "w/0", "0").await;
    let from = store.revision().await.expect("reads") + 1;
    let mut early = store.watch("w/", from);
    let second = put(store, "w/1", "1").await;
    put(store, "other", "x").await;
    let mut txn = Txn::new();
    txn.put("w/2", "2").delete("w/0");
    let third = store.commit(txn).await.expect("commits");
    let mut late = store.watch("w/", from);
    for stream in [&mut early, &mut late] {
        let change = |key: &str, value: Option<&str>, revision| Change {
            key: key.to_owned(),
            value: value.map(|value| value.to_owned().into()),
            revision,
        };
        assert_eq!(stream.next().await.expect("goes on").expect("holds"), [change("w/1", Some("1"), second)]);
        let both = [change("w/0", None, third), change("w/2", Some("2"), third)];
        assert_eq!(stream.next().await.expect("goes on").expect("holds"), both);
    }
}

async fn a_watcher_that_starts_too_late_is_told(store: &dyn Store) {
    let puts = (0..1100).map(|number: u32| async move { put(store, "a", &number.to_string()).await });
    futures_util::future::join_all(puts).await;
    let mut stream = store.watch("a", 1);
    assert!(matches!(stream.next().await, Some(Err(StoreError::Compacted { .. }))));
    assert!(stream.next().await.is_none());
}
