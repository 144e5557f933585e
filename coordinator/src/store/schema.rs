//! The version of the key layout, kept in the store itself. Called once at the start.

use super::{Store, StoreError, Txn, keys, records};

/// The layout that this program writes.
pub const VERSION: u32 = 1;

/// Marks a new store with this layout's version; refuses one that a newer program wrote.
///
/// # Errors
/// [`StoreError::NewerSchema`], or what the store says.
pub async fn check(store: &dyn Store) -> Result<(), StoreError> {
    match store.get(keys::SCHEMA).await? {
        Some(entry) => {
            let found: u32 = records::decode(&entry)?;
            if found > VERSION { Err(StoreError::NewerSchema { found, known: VERSION }) } else { Ok(()) }
        }
        None => {
            let mut txn = Txn::new();
            txn.compare(keys::SCHEMA, 0).put(keys::SCHEMA, records::encode(keys::SCHEMA, &VERSION)?);
            store.commit(txn).await.map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn a_store_of_a_newer_program_is_refused() {
        let store = MemoryStore::default();
        check(&store).await.expect("a new store");
        check(&store).await.expect("the same version");
        let mut txn = Txn::new();
        txn.put(keys::SCHEMA, "2");
        store.commit(txn).await.expect("commits");
        assert!(matches!(check(&store).await, Err(StoreError::NewerSchema { found: 2, known: VERSION })));
    }
}
