//! How fast one session may talk. A worker that floods is disconnected before it fills the driver's queue for all others.

use std::time::{Duration, Instant};

use kiln_common::limits;

#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    messages: u32,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self { since: now, messages: 0 }
    }

    /// Counts one message; false once there are more within a second than a worker ever needs.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        self.messages += 1;
        self.messages <= limits::SESSION_MESSAGES_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_noticed_and_a_new_second_starts_anew() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!((0..limits::SESSION_MESSAGES_PER_SECOND).all(|_| pace.allows(start)));
        assert!(!pace.allows(start));
        assert!(pace.allows(start + Duration::from_secs(1)));
    }
}
