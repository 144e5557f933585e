//! Pressure on a worker's machine (Linux, PSI) with hysteresis: above the high mark until below the low one, so that a figure
//! that hovers around one mark does not make the worker come and go.
//!
//! Memory that its tasks wait for is a reason to give a worker nothing new: one task more makes all of them slower, and the
//! next step is the OOM killer. CPU, input and output are what builds are made of: who is short of them is only the last to
//! be asked.

use std::fmt;

use crate::event::WorkerStats;

/// Percent of the last ten seconds in which some task waited.
#[derive(Debug, Clone, Copy)]
struct Marks {
    high: f64,
    low: f64,
}

const MEMORY: Marks = Marks { high: 30.0, low: 10.0 };
const CPU: Marks = Marks { high: 95.0, low: 75.0 };
const IO: Marks = Marks { high: 80.0, low: 50.0 };

/// What a worker is short of, by its heartbeats so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Strain {
    pub(crate) memory: bool,
    pub(crate) cpu: bool,
    pub(crate) io: bool,
}

/// What a worker is the last resort for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Strained {
    Throttled,
    Cpu(f64),
    Io(f64),
}

impl Strain {
    #[must_use]
    pub(crate) fn after(self, stats: &WorkerStats) -> Self {
        Self {
            memory: MEMORY.hold(self.memory, stats.memory_pressure),
            cpu: CPU.hold(self.cpu, stats.cpu_pressure),
            io: IO.hold(self.io, stats.io_pressure),
        }
    }

    /// Why the worker gets tasks only where no other takes them.
    pub(crate) fn last_resort(self, stats: &WorkerStats) -> Option<Strained> {
        let percent = |pressure: Option<f64>| pressure.unwrap_or_default();
        match self {
            _ if stats.throttled => Some(Strained::Throttled),
            Self { cpu: true, .. } => Some(Strained::Cpu(percent(stats.cpu_pressure))),
            Self { io: true, .. } => Some(Strained::Io(percent(stats.io_pressure))),
            Self { cpu: false, io: false, .. } => None,
        }
    }

    /// Below this the worker gets tasks again.
    pub(crate) const MEMORY_LOW: f64 = MEMORY.low;
}

impl Marks {
    /// A kernel that says nothing strains nobody.
    fn hold(self, was: bool, pressure: Option<f64>) -> bool {
        pressure.is_some_and(|pressure| pressure >= if was { self.low } else { self.high })
    }
}

impl Strained {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Cpu(_) => "CPU pressure",
            Self::Io(_) => "disk pressure",
        }
    }
}

impl fmt::Display for Strained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Throttled => f.write_str("throttled by heat or undervoltage"),
            Self::Cpu(percent) => write!(f, "its tasks wait for the CPU {percent:.0} % of the time"),
            Self::Io(percent) => write!(f, "its tasks wait for the disk {percent:.0} % of the time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(pressure: impl Into<Option<f64>>) -> WorkerStats {
        WorkerStats { memory_pressure: pressure.into(), ..WorkerStats::default() }
    }

    #[test]
    fn strain_lasts_from_the_high_mark_until_below_the_low_one() {
        let mut strain = Strain::default();
        let mut after = |pressure: f64| {
            strain = strain.after(&memory(pressure));
            strain.memory
        };
        assert_eq!(
            [0.0, 29.9, 30.0, 15.0, 10.0, 9.9, 29.0].map(&mut after),
            [false, false, true, true, true, false, false]
        );
    }

    #[test]
    fn a_worker_that_stops_saying_is_not_strained() {
        assert!(!Strain { memory: true, ..Strain::default() }.after(&memory(None)).memory);
    }

    #[test]
    fn cpu_and_disk_make_a_last_resort_and_memory_does_not() {
        let stats = WorkerStats { cpu_pressure: Some(99.0), memory_pressure: Some(99.0), ..WorkerStats::default() };
        let strain = Strain::default().after(&stats);
        assert_eq!(strain.last_resort(&stats), Some(Strained::Cpu(99.0)));
        assert_eq!(Strain { memory: true, ..Strain::default() }.last_resort(&memory(50.0)), None);
    }
}
