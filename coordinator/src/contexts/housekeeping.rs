//! Collects contexts now and then, for as long as the coordinator runs.

use std::sync::Arc;

use kiln_common::{Timestamp, context::ContextDigest, limits};
use kiln_scheduler::Scheduler;
use tokio_util::sync::CancellationToken;

use super::{Collected, Contexts};
use crate::driver::{Handle, Stopped};

/// Returns when the coordinator stops. A collection that fails is tried again at its next time.
pub async fn run(contexts: Arc<Contexts>, driver: Handle, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(limits::CONTEXT_COLLECT_EVERY) => {}
            () = stopping.cancelled() => return,
        }
        let Ok(referenced) = referenced(&driver).await else { return };
        match contexts.collect(&referenced, Timestamp::now(), limits::CONTEXT_KEEP).await {
            Ok(Collected { packs: 0, .. }) => {}
            Ok(Collected { packs, bytes }) => tracing::info!(packs, bytes, "collected contexts that nobody needs"),
            Err(error) => tracing::error!(%error, "cannot collect contexts; trying again later"),
        }
    }
}

/// The trees of all builds that are not final.
async fn referenced(driver: &Handle) -> Result<Vec<ContextDigest>, Stopped> {
    let trees = |scheduler: &Scheduler| {
        let open = scheduler.builds().filter(|build| !build.state.is_final());
        open.flat_map(|build| build.spec.trees().copied()).collect()
    };
    driver.query(move |scheduler, _| trees(scheduler)).await
}
