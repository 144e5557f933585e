//! What the driver sends to workers. `sessions` carries it; tests collect it.

use kiln_common::AttemptId;
use kiln_scheduler::effect::Dispatch;

use super::SessionId;

/// One thing that a worker is to know or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Its registration is committed; of the attempts that it announced, these go on.
    Adopted { attempts: Vec<AttemptId> },
    /// What an operator set for it; 0 slots: as it said itself.
    Settings { slots: u32 },
    /// Run this.
    Assign(Box<Dispatch>),
    /// Stop this.
    Cancel { attempt: AttemptId, reason: String },
    /// Its final report is committed.
    Acknowledge { attempt: AttemptId },
    /// End the session.
    Close { reason: String },
}

/// Takes orders for sessions and never waits: an order for one that is over is dropped, for the scheduler hears of the
/// worker's absence anyway.
pub trait Outbox: Send + Sync + 'static {
    fn send(&self, session: SessionId, order: Order);
}
