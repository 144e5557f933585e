//! The workers' side of the wire: enrolment, one session each, contexts, logs, ssh agents.
//!
//! [`service::Workers`] answers the calls; [`Sessions`] is the driver's [`Outbox`](crate::driver::Outbox). Invariant: a
//! call acts for the worker that its client certificate names and for no other; what a worker says of an attempt that is
//! not its own touches nothing.

pub mod agents;
mod decode;
mod enrol;
mod logs;
mod owner;
mod pace;
mod registry;
pub mod service;
mod session;

pub use agents::AgentRelay;
pub use registry::Sessions;
pub use service::Workers;
