//! The driver: the only loop that changes the farm's state.
//!
//! ```text
//! drain up to DRIVER_BATCH commands -> scheduler.handle(event, now) -> one transaction -> act on the effects, in order
//! ```
//! While a transaction is on its way, the next turn's commands are taken up; it is given to the store once that one stands.
//! `api`, `sessions` and `publish` reach it through [`Handle`]. Invariant: nobody is told anything, and nothing is sent
//! anywhere, before what it rests on is committed. When a commit fails, the loop ends with an error and the process
//! with it: what was in memory is not what the store holds any more, and a restart recovers.

mod clock;
mod handle;
mod hub;
mod ledger;
mod outbox;
pub mod publisher;
mod publishing;
mod recovery;
mod speakers;
mod staging;
mod turn;

pub use handle::{Accepted, BuildWatch, Handle, Stopped, Submission, SubmitError, Submitted, WatchError, WorkerWatch};
pub use hub::WatchEnd;
pub use ledger::{Ledger, LiveAttempt};
pub use outbox::{Order, Outbox};
pub use publisher::{PublishOutcome, Publisher, Removed};
pub use speakers::SessionId;
pub use turn::{Driver, Parts, Queue, StopCause};

/// A build with its tasks, as committed.
pub use crate::store::records::BuildView as BuildSnapshot;

#[cfg(test)]
mod tests;
