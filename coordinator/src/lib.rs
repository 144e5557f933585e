//! The coordinator: takes builds in, keeps them, hands their legs to workers and publishes the result.
//!
//! [`start`] opens everything and serves. Each module below owns one part and says so in its header.

pub mod access;
pub mod api;
pub mod audit;
pub mod config;
pub mod contexts;
pub mod credentials;
pub mod driver;
pub mod http;
mod lock;
pub mod logs;
pub mod pki;
pub mod publish;
mod run;
pub mod seal;
pub mod secrets;
pub mod server;
pub mod sessions;
pub mod store;

pub use config::Config;
pub use kiln_scheduler::query::WorkerState;
pub use run::{Running, start, start_with};
