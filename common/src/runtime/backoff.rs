//! Exponential backoff with full jitter and a budget. Pure: the caller measures the time and brings the randomness.

use std::time::Duration;

/// How retries spread out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// Upper bound of the first wait; it doubles with every retry.
    pub base: Duration,
    /// No wait is longer.
    pub cap: Duration,
    /// From the first try to the start of the last one. `None`: retry for ever.
    pub budget: Option<Duration>,
}

/// The state of one retried operation.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: BackoffPolicy,
    retries: u32,
}

impl Backoff {
    #[must_use]
    pub const fn new(policy: BackoffPolicy) -> Self {
        Self { policy, retries: 0 }
    }

    /// How long to wait before the next try, `None` when that would overrun the budget.
    ///
    /// `elapsed` is the time since the first try began, `random` is uniform over all of `u64`, and `at_least` is what
    /// the other side asked for (`Retry-After`), honoured even beyond the cap.
    #[must_use]
    pub fn next(&mut self, elapsed: Duration, random: u64, at_least: Option<Duration>) -> Option<Duration> {
        let doubled = self.policy.base.saturating_mul(1_u32.checked_shl(self.retries).unwrap_or(u32::MAX));
        let bound = doubled.min(self.policy.cap);
        self.retries = self.retries.saturating_add(1);
        let wait = scale(bound, random).max(at_least.unwrap_or_default());
        match self.policy.budget {
            Some(budget) if elapsed.saturating_add(wait) > budget => None,
            Some(_) | None => Some(wait),
        }
    }

    /// How often [`Self::next`] was asked.
    #[must_use]
    pub const fn retries(&self) -> u32 {
        self.retries
    }

    /// After a success: the next failure waits as the first one did.
    pub const fn reset(&mut self) {
        self.retries = 0;
    }
}

/// `bound * random / 2^64`.
fn scale(bound: Duration, random: u64) -> Duration {
    let nanos = bound.as_nanos().min(u128::from(u64::MAX));
    Duration::from_nanos(u64::try_from((nanos * u128::from(random)) >> 64).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BackoffPolicy = BackoffPolicy {
        base: Duration::from_millis(100),
        cap: Duration::from_secs(2),
        budget: Some(Duration::from_secs(10)),
    };

    #[test]
    fn waits_double_up_to_the_cap() {
        let mut backoff = Backoff::new(POLICY);
        let waits: Vec<u128> = (0..7)
            .filter_map(|_| backoff.next(Duration::ZERO, u64::MAX, None))
            .map(|wait| wait.as_millis() + 1)
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[test]
    fn jitter_covers_the_whole_range() {
        let wait = |random| Backoff::new(POLICY).next(Duration::ZERO, random, None).expect("within the budget");
        assert_eq!(wait(0), Duration::ZERO);
        assert_eq!(wait(u64::MAX / 2).as_millis(), 49);
    }

    #[test]
    fn the_budget_ends_it_and_a_servers_wish_is_kept() {
        let mut backoff = Backoff::new(POLICY);
        let wish = Some(Duration::from_secs(5));
        assert_eq!(backoff.next(Duration::from_secs(1), 0, wish), wish);
        assert_eq!(backoff.next(Duration::from_secs(6), 0, wish), None);
    }

    #[test]
    fn retries_without_end_do_not_overflow() {
        let mut backoff = Backoff::new(BackoffPolicy { budget: None, ..POLICY });
        for _ in 0..100 {
            assert!(backoff.next(Duration::MAX, u64::MAX, None).expect("no budget") <= POLICY.cap);
        }
    }
}
