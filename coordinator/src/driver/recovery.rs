//! What a start reads from the store, and the event that hands it to the scheduler.

use kiln_scheduler::Event;
use tracing::info;

use super::ledger::Ledger;
use crate::store::{Store, StoreError, records};

/// Every open build and every worker. Live attempts go into the ledger: their workers may return.
pub(super) async fn restore(store: &dyn Store, ledger: &Ledger) -> Result<Event, StoreError> {
    let views = records::open_builds(store).await?;
    let workers = records::workers(store).await?;
    info!(builds = views.len(), workers = workers.len(), "state read");
    views.iter().for_each(|view| ledger.restore(view));
    Ok(Event::Restore { builds: views.into_iter().map(|view| (view.build, view.tasks)).collect(), workers })
}
