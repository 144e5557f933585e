//! The driver: the only loop that changes the farm's state.

pub mod publisher;

pub use publisher::{PublishOutcome, Publisher};
