//! The trail on a store in memory.

use std::sync::Arc;

use kiln_common::{BuildId, Timestamp, id::TokenId, limits};
use tokio_util::sync::CancellationToken;

use super::{Action, Actor, Entry, Filter, Object, Outcome, Trail, Who, list, retention::Retention};
use crate::{
    access::Role,
    store::{MemoryStore, Store, keys, scan},
};

fn admin() -> Who {
    let actor = Actor::Token { id: TokenId::generate(), name: "ann".into(), role: Role::Admin };
    Who { actor, source: Some("192.0.2.7".parse().expect("an address")) }
}

fn submit(who: &Who) -> Entry {
    who.did(Action::BuildSubmit, Object::Build(BuildId::generate()), "")
}

struct Bench {
    store: Arc<MemoryStore>,
    trail: Trail,
    _stop: tokio_util::sync::DropGuard,
}

async fn bench() -> Bench {
    let store = Arc::new(MemoryStore::default());
    let (trail, writer) = Trail::open(Arc::clone(&store) as _).await.expect("opened");
    let stop = CancellationToken::new();
    tokio::spawn(writer.run(stop.clone()));
    Bench { store, trail, _stop: stop.drop_guard() }
}

async fn all(store: &dyn Store, filter: &Filter) -> Vec<Entry> {
    list(store, filter, None, 1000).await.expect("listed").entries
}

#[tokio::test]
async fn what_was_recorded_is_there_newest_first_and_filtered() {
    let Bench { store, trail, _stop } = bench().await;
    let who = admin();
    let entries = [
        submit(&who),
        who.did(Action::WorkerCordon, Object::Farm, "noisy"),
        Who::farm().did(Action::TagMove, Object::Tag("r.example/app:1".into()), ""),
    ];
    for entry in &entries {
        trail.record(entry.clone()).await.expect("written");
    }
    let newest_first: Vec<_> = entries.iter().rev().cloned().collect();
    assert_eq!(all(&*store, &Filter::default()).await, newest_first);
    let by = |actor: &str, action: &str| Filter {
        actor: Some(actor.to_owned()).filter(|text| !text.is_empty()),
        action: Some(action.to_owned()).filter(|text| !text.is_empty()),
        ..Filter::default()
    };
    for (filter, wanted) in [
        (by("ann", ""), vec![1, 0]),
        (by("token", "worker"), vec![1]),
        (by("farm", ""), vec![2]),
        (by("", "build.submit"), vec![0]),
        (by("", "build.sub"), vec![]),
        (Filter { outcome: Some(Outcome::Refused), ..Filter::default() }, vec![]),
        (Filter { since: Some(Timestamp::from_millis(u64::MAX)), ..Filter::default() }, vec![]),
    ] {
        let found = all(&*store, &filter).await;
        assert_eq!(found, wanted.into_iter().map(|at: usize| entries[at].clone()).collect::<Vec<_>>(), "{filter:?}");
    }
}

#[tokio::test]
async fn pages_neither_skip_nor_repeat() {
    let Bench { store, trail, _stop } = bench().await;
    let who = admin();
    for _ in 0..25 {
        trail.record(submit(&who)).await.expect("written");
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = list(&*store, &Filter::default(), after, 10).await.expect("listed");
        seen.extend(page.entries.iter().map(|entry| entry.id));
        // What comes in meanwhile is newer than any page that follows.
        trail.record(submit(&who)).await.expect("written");
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen.len(), 25);
    assert!(seen.is_sorted_by(|a, b| a > b));
}

#[tokio::test]
async fn a_flood_of_refusals_leaves_room_for_what_was_done() {
    let Bench { store, trail, _stop } = bench().await;
    let stranger = Who { actor: Actor::Unknown, source: None };
    for _ in 0..10_000 {
        trail.refuse(stranger.was_refused(Action::Call, Object::method(&"/x".repeat(500)), "no\ntoken"));
    }
    trail.record(submit(&admin())).await.expect("written");
    let entries = all(&*store, &Filter::default()).await;
    assert_eq!(entries.len(), 1 + limits::AUDIT_REFUSALS_PER_MINUTE as usize);
    assert_eq!(entries[1].detail, "notoken");
    assert!(matches!(&entries[1].object, Object::Method(path) if path.len() <= limits::AUDIT_TEXT_BYTES));
}

#[tokio::test]
async fn the_oldest_entries_go_when_there_are_too_many_also_after_a_restart() {
    let store = MemoryStore::default();
    let mut retention = Retention::load(&store, 3000).await.expect("empty");
    let mut newest = None;
    for _ in 0..9 {
        let entries: Vec<_> = (0..1000).map(|_| submit(&admin())).collect();
        let mut txn = crate::store::Txn::new();
        for entry in &entries {
            txn.put(keys::audit(entry.id), serde_json::to_vec(entry).expect("JSON"));
        }
        store.commit(txn).await.expect("committed");
        retention.wrote(&store, entries.iter().map(|entry| entry.id)).await.expect("pruned");
        newest = entries.last().map(|entry| entry.id);
        retention = Retention::load(&store, 3000).await.expect("counted");
    }
    let kept = scan(&store, keys::AUDIT).await.expect("scanned");
    assert!((3000..=5000).contains(&kept.len()), "{}", kept.len());
    assert_eq!(keys::audit_of(&kept[0].key), newest);
}
