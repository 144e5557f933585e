//! The driver's time: the wall clock's, but it never goes back and never stands still.
//!
//! Read by the driver before each turn. A wall clock that is set back would otherwise hold up every lease and deadline until
//! it has caught up; instead time goes on at half speed meanwhile. One that is set forward is followed at once: workers whose
//! leases end by that have the whole grace period to return.

use std::time::{Duration, Instant};

use kiln_common::Timestamp;

#[derive(Debug)]
pub(super) struct Clock {
    now: Timestamp,
    /// When `now` was that.
    read_at: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { now: Timestamp::now(), read_at: Instant::now() }
    }

    pub(super) fn read(&mut self) -> Timestamp {
        self.read_as(Timestamp::now(), Instant::now())
    }

    /// The latest reading.
    pub(super) const fn last(&self) -> Timestamp {
        self.now
    }

    fn read_as(&mut self, wall: Timestamp, at: Instant) -> Timestamp {
        if wall >= self.now {
            (self.now, self.read_at) = (wall, at);
            return wall;
        }
        // Whole milliseconds alone count; what is less stays for the next reading.
        let steps = at.saturating_duration_since(self.read_at).as_millis() / 2;
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        let step = Duration::from_millis(u64::from(steps));
        self.now = self.now + step;
        self.read_at += 2 * step;
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_700_000_000_000;

    fn wall(ms: i64) -> Timestamp {
        Timestamp::from_millis(START.saturating_add_signed(ms))
    }

    /// Reads at so many milliseconds after the start while the wall clock says so many.
    fn readings<const N: usize>(at: [(u64, i64); N]) -> [i64; N] {
        let start = Instant::now();
        let mut clock = Clock { now: wall(0), read_at: start };
        at.map(|(after, says)| {
            let read = clock.read_as(wall(says), start + Duration::from_millis(after));
            i64::try_from(read.as_millis()).unwrap_or(0) - i64::try_from(START).unwrap_or(0)
        })
    }

    #[test]
    fn it_follows_a_wall_clock_that_goes_on_or_jumps_ahead() {
        assert_eq!(readings([(5, 5), (10, 3_600_000), (11, 3_600_001)]), [5, 3_600_000, 3_600_001]);
    }

    #[test]
    fn it_goes_on_at_half_speed_while_the_wall_clock_is_behind() {
        let read = readings([(0, -10_000), (1, -9_999), (2, -9_998), (10_000, 0), (20_000, 10_000), (20_001, 10_001)]);
        assert_eq!(read, [0, 0, 1, 5_000, 10_000, 10_001]);
    }
}
