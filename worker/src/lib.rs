//! The worker: runs one task next to one container engine.
//!
//! `kiln-worker` and `kiln up` call [`run`]. The way of an assignment: `session` receives it, `slots` admits it, `job`
//! runs it with `context` and `engine`, `logs` carries what it prints, `session` reports how it ended.

pub mod agent_tunnel;
pub mod builder;
pub mod config;
pub mod context;
pub mod disk;
pub mod doctor;
pub mod engine;
pub mod enroll;
pub mod job;
pub mod logs;
mod pause;
pub mod probe;
pub mod real_builder;
pub mod session;
pub mod slots;
pub mod smoke;
mod worker;

pub use config::{Args, Config};
pub use worker::{Worker, run};
