//! Unit tests of the scheduler's behaviour, one behaviour each.

mod loss;
mod missing;
mod placement;
mod sharing;
mod spine;
