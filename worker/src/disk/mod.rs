//! A disk that never fills: marks of what stays free, and the keeper that prunes when a mark is passed.
//!
//! `worker` runs one [`Keeper`] for as long as the program lives. Invariant: nothing is pruned while enough is free, and
//! nothing that a running build uses is pruned at all.

mod full;
mod keeper;
mod policy;

pub use full::{blame, is_full, says_full};
pub use keeper::Keeper;
pub use policy::{Amount, DiskPolicy, InvalidAmount, Marks};
