//! How fast one stream may talk. A worker that floods is disconnected before it takes the driver's or the disk's time from
//! all others.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Pace {
    most: u32,
    since: Instant,
    messages: u32,
}

impl Pace {
    /// `most` messages within a second.
    pub(super) const fn new(most: u32, now: Instant) -> Self {
        Self { most, since: now, messages: 0 }
    }

    /// Counts one message; false once there are more within a second than a worker ever needs.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(self.most, now);
        }
        self.messages += 1;
        self.messages <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_noticed_and_a_new_second_starts_anew() {
        let start = Instant::now();
        let mut pace = Pace::new(100, start);
        assert!((0..100).all(|_| pace.allows(start)));
        assert!(!pace.allows(start));
        assert!(pace.allows(start + Duration::from_secs(1)));
    }
}
