//! Whose an attempt is or was: from the ledger while it is live, from the store afterwards.

use kiln_common::{AttemptId, WorkerId};

use crate::{
    driver::{Handle, Ledger},
    store::{StoreError, records},
};

/// `None` when there is no such attempt.
///
/// # Errors
/// What the store says.
pub(super) async fn owner(
    ledger: &Ledger,
    driver: &Handle,
    attempt: AttemptId,
) -> Result<Option<WorkerId>, StoreError> {
    match ledger.get(attempt) {
        Some(live) => Ok(Some(live.worker)),
        None => Ok(records::attempt(&**driver.store(), attempt).await?.map(|known| known.worker)),
    }
}
