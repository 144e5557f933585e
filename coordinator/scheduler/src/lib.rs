//! The scheduler: pure and sans-IO. The driver hands in events and the time; it gives back effects as data.
//!
//! ```text
//! handle(event, now)   -> Vec<Effect>     something happened
//! poll_deadline()      -> Option<Timestamp>   when to call again although nothing happened
//! handle_deadline(now) -> Vec<Effect>     that moment has come
//! ```
//! It knows no clock, no randomness, no tokio, no wire and no store; two runs over the same events give the same effects.
//! `Effect::Put*` are the records to commit; the driver commits all of one turn before it acts on the others.
//!
//! What the driver keeps to:
//! - `now` never goes back; `poll_deadline` is asked after every call, and may be due at once.
//! - A worker is enrolled before it connects. When a new session replaces one that was not seen to end, the driver says
//!   `WorkerDisconnected` first.
//! - A dispatch that cannot be delivered means that the session ended.
//! - [`Scheduler::build`] answers `None` for builds that were final long enough ago: the store has them, and `Event::Recall`
//!   brings one back for a retry or a backfill.
//! - `Effect::CloseSession` ends a session whose lease ran out, so that the worker connects again and says what it has.
//!
//! | where | what |
//! |---|---|
//! | `submit`, `builds` | what is refused; a build from its first leg to its end, and again |
//! | `attempts`, `workers`, `quarantine` | reports and the fence; sessions and their loss; who is trusted |
//! | `sharing` | identical legs of different builds, which run once |
//! | `missing` | images that are not in the registry, though their workers said so |
//! | `waiting`, `queue`, `place`, `emulation` | what waits, in what order, and where it goes |
//! | `farm`, `history` | indices over workers; what past attempts taught |
//! | `restore`, `query`, `explain` | a restart; what the API asks |
//! | `invariants`, `mutation` | the rules as named checks, and known defects that the simulation must find |

mod attempts;
mod builds;
pub mod config;
pub mod effect;
mod emulation;
mod entity;
pub mod event;
pub mod explain;
mod farm;
mod history;
mod ids;
pub mod invariants;
mod legs;
mod missing;
#[doc(hidden)]
pub mod mutation;
mod place;
mod quarantine;
pub mod query;
mod queue;
pub mod record;
mod restore;
mod rng;
mod scheduler;
mod sharing;
mod slab;
mod submit;
mod timers;
mod waiting;
mod workers;

pub use config::Config;
pub use effect::Effect;
pub use event::Event;
pub use record::{AttemptRecord, BuildRecord, BuildState, CredentialsMark, TaskRecord, TaskState, WorkerRecord};
pub use scheduler::Scheduler;
pub use sharing::alike::are_alike;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
