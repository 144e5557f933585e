//! `kiln build`, from flags to the last words.

mod csv;
pub mod flags;
pub mod follow;
mod forward;
pub mod interrupt;
mod metadata;
pub mod options;
mod refuse;
pub mod run;
mod secrets;
mod source;
mod ssh;

pub use run::run;
