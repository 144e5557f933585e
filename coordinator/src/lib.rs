//! The coordinator: takes builds in, keeps them, hands their legs to workers and publishes the result.

pub mod access;
pub mod contexts;
pub mod credentials;
pub mod driver;
pub mod http;
pub mod logs;
pub mod pki;
pub mod publish;
pub mod seal;
pub mod secrets;
pub mod server;
pub mod store;
