//! The program `kiln` as a process against a farm that only pretends: exit codes, outputs, files, interrupts.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which fail where they stand")]

mod build;
mod connect;
mod fake;
mod input;
mod kiln;
mod listings;
