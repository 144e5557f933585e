//! Which version of the session protocol a worker and a coordinator speak with each other.
//!
//! A program speaks the versions of its own release and of the one before, so that either side may be updated first.

use std::fmt;

use crate::v1::Hello;

/// The versions that this release speaks.
pub const SESSION_PROTOCOLS: Protocols = Protocols { oldest: 1, newest: 1 };

/// A range of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocols {
    pub oldest: u32,
    pub newest: u32,
}

/// Which side has to be updated before the two can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outdated {
    Worker,
    Coordinator,
}

impl Protocols {
    /// What a worker says that it speaks. One that names no oldest version also speaks the one before its newest.
    #[must_use]
    pub const fn of_worker(hello: &Hello) -> Self {
        let oldest = match hello.protocol_oldest {
            0 if hello.protocol > 1 => hello.protocol - 1,
            0 => hello.protocol,
            said => said,
        };
        Self { oldest, newest: hello.protocol }
    }

    /// The newest version that both speak; `self` is the coordinator's side.
    ///
    /// # Errors
    /// [`Outdated`] where there is none.
    pub const fn agree(self, worker: Self) -> Result<u32, Outdated> {
        if worker.newest < self.oldest {
            Err(Outdated::Worker)
        } else if worker.oldest > self.newest {
            Err(Outdated::Coordinator)
        } else if worker.newest < self.newest {
            Ok(worker.newest)
        } else {
            Ok(self.newest)
        }
    }

    #[must_use]
    pub const fn contains(self, version: u32) -> bool {
        self.oldest <= version && version <= self.newest
    }
}

impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "version {}", self.newest)
        } else {
            write!(f, "versions {} to {}", self.oldest, self.newest)
        }
    }
}

impl fmt::Display for Outdated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "update the worker",
            Self::Coordinator => "update the coordinator",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn speaks(oldest: u32, newest: u32) -> Protocols {
        Protocols { oldest, newest }
    }

    #[test]
    fn neighbours_agree_on_the_newest_that_both_speak() {
        assert_eq!(speaks(4, 5).agree(speaks(4, 5)), Ok(5));
        assert_eq!(speaks(4, 5).agree(speaks(3, 4)), Ok(4), "a worker of the release before");
        assert_eq!(speaks(4, 5).agree(speaks(5, 6)), Ok(5), "a worker of the next release");
    }

    #[test]
    fn who_is_two_releases_behind_is_told_to_be_updated() {
        assert_eq!(speaks(4, 5).agree(speaks(2, 3)), Err(Outdated::Worker));
        assert_eq!(speaks(4, 5).agree(speaks(6, 7)), Err(Outdated::Coordinator));
        assert_eq!(speaks(1, 1).agree(speaks(0, 0)), Err(Outdated::Worker), "no version at all");
    }

    #[test]
    fn a_worker_that_names_no_oldest_version_speaks_the_one_before() {
        let hello = |protocol, protocol_oldest| Hello { protocol, protocol_oldest, ..Hello::default() };
        assert_eq!(Protocols::of_worker(&hello(3, 0)), speaks(2, 3));
        assert_eq!(Protocols::of_worker(&hello(1, 0)), speaks(1, 1));
        assert_eq!(Protocols::of_worker(&hello(5, 2)), speaks(2, 5));
    }
}
