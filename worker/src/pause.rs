//! The wait between two tries of what goes on for ever: the shared backoff with this program's clock and randomness.

use std::time::Duration;

use kiln_common::runtime::{Backoff, BackoffPolicy};

const POLICY: BackoffPolicy =
    BackoffPolicy { base: Duration::from_millis(200), cap: Duration::from_secs(10), budget: None };

/// Waits longer after each failure, up to ten seconds, with full jitter.
#[derive(Debug)]
pub struct Pause(Backoff);

impl Default for Pause {
    fn default() -> Self {
        Self(Backoff::new(POLICY))
    }
}

impl Pause {
    pub async fn wait(&mut self) {
        self.wait_at_least(Duration::ZERO).await;
    }

    /// The same, honouring what the other side asked for.
    pub async fn wait_at_least(&mut self, least: Duration) {
        let wait = self.0.next(Duration::ZERO, rand::random(), Some(least)).unwrap_or(POLICY.cap);
        tokio::time::sleep(wait).await;
    }

    /// After a success.
    pub const fn reset(&mut self) {
        self.0.reset();
    }
}
