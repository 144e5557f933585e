//! The scheduler: pure and sans-IO. The driver hands in events and the time; it gives back effects as data.
//!
//! ```text
//! handle(event, now)   -> Vec<Effect>     something happened
//! poll_deadline()      -> Option<Timestamp>   when to call again although nothing happened
//! handle_deadline(now) -> Vec<Effect>     that moment has come
//! ```
//! It knows no clock, no randomness, no tokio, no wire and no store; two runs over the same events give the same effects.
//! `Effect::Put*` are the records to commit; the driver commits all of one turn before it acts on the others.

pub mod effect;
pub mod event;
pub mod record;

pub use effect::Effect;
pub use event::Event;
pub use record::{AttemptRecord, BuildRecord, BuildState, TaskRecord, TaskState, WorkerRecord};
