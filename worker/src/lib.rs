//! The worker: runs one task next to one container engine.

pub mod context;
pub mod engine;
