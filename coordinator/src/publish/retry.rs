//! How long a registry is tried again: what can pass is retried with backoff, within a budget that is shown.
//!
//! The budget is for trouble, not for work: whatever takes its time without being anyone's fault, such as reading a layer
//! of gigabytes, gives the publish its whole budget back.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kiln_common::{
    limits,
    runtime::{Backoff, BackoffPolicy},
};
use tokio::time::Instant;

use super::{
    error::{Fault, RegistryError},
    registry::Session,
};

/// How much of it is used.
#[derive(Debug)]
pub(super) struct Budget(Mutex<Use>);

#[derive(Debug)]
struct Use {
    since: Instant,
    /// Of the time since then, what was no trouble.
    excused: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self(Mutex::new(Use::new()))
    }
}

impl Use {
    fn new() -> Self {
        Self { since: Instant::now(), excused: Duration::ZERO }
    }
}

impl Budget {
    /// Begins anew.
    pub fn renew(&self) {
        *self.lock() = Use::new();
    }

    /// This much of the time passed with work that went well.
    pub fn excuse(&self, time: Duration) {
        self.lock().excused += time;
    }

    /// As if this much were used.
    #[cfg(test)]
    pub fn spend(&self, time: Duration) {
        self.lock().since -= time;
    }

    fn used(&self) -> Duration {
        let used = self.lock();
        used.since.elapsed().saturating_sub(used.excused)
    }

    fn lock(&self) -> MutexGuard<'_, Use> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Tries until it succeeds, cannot succeed any more, or the publish's budget is used up.
    pub async fn retry<T, F: Future<Output = Result<T, RegistryError>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, RegistryError> {
        self.retry_within(&self.budget, call).await
    }

    /// The same with a budget of its own, for work that has no other bound on its time.
    pub async fn retry_within<T, F: Future<Output = Result<T, RegistryError>>>(
        &self,
        budget: &Budget,
        call: impl Fn() -> F,
    ) -> Result<T, RegistryError> {
        let began = Instant::now();
        let mut backoff = Backoff::new(BackoffPolicy {
            base: limits::REGISTRY_BACKOFF_BASE,
            cap: limits::REGISTRY_BACKOFF_CAP,
            budget: Some(limits::PUBLISH_BUDGET),
        });
        loop {
            if self.abandoned.is_cancelled() {
                return Err(RegistryError::abandoned());
            }
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let at_least = match &error.fault {
                Fault::Transient { retry_after } => *retry_after,
                Fault::NotFound if began.elapsed() < limits::READ_AFTER_WRITE => None,
                Fault::NotFound
                | Fault::Denied
                | Fault::Foreign
                | Fault::Immutable
                | Fault::Final
                | Fault::Abandoned => {
                    return Err(error);
                }
            };
            let Some(wait) = backoff.next(budget.used(), rand::random(), at_least) else {
                return Err(out_of_budget(error, budget.used(), at_least));
            };
            tracing::debug!(%error, ?wait, "retrying a registry call");
            metrics::counter!(crate::http::metrics::REGISTRY_RETRIES).increment(1);
            if self.abandoned.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return Err(RegistryError::abandoned());
            }
        }
    }
}

fn out_of_budget(error: RegistryError, used: Duration, retry_after: Option<Duration>) -> RegistryError {
    let wish = retry_after.map(|after| format!("; it asks to wait {}s", after.as_secs())).unwrap_or_default();
    let message = format!(
        "{} (gave up after {}s of at most {}s{wish}; retry the build later, nothing is rebuilt)",
        error.message,
        used.as_secs(),
        limits::PUBLISH_BUDGET.as_secs()
    );
    RegistryError { message, ..error }
}
