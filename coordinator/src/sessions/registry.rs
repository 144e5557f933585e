//! Which worker has a session, and the way orders take into it.
//!
//! Invariant: a worker has at most one session here; a second one replaces the first, whose end is then nobody's news.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kiln_common::{WorkerId, limits};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::driver::{Order, Outbox, SessionId};

#[derive(Debug, Default)]
pub struct Sessions {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    numbered: u64,
    of_worker: HashMap<WorkerId, Line>,
}

#[derive(Debug)]
struct Line {
    number: u64,
    orders: mpsc::Sender<Order>,
    end: Arc<End>,
}

/// Ends one session from outside, with a reason for the worker.
#[derive(Debug, Default)]
pub(super) struct End {
    pub(super) token: CancellationToken,
    reason: Mutex<String>,
}

impl End {
    fn with(&self, reason: &str) {
        let mut known = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.token.is_cancelled() {
            reason.clone_into(&mut known);
            self.token.cancel();
        }
    }

    pub(super) fn reason(&self) -> String {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A session's place in the registry.
pub(super) struct Place {
    pub(super) session: SessionId,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) end: Arc<End>,
    /// An earlier session of the worker was still here.
    pub(super) replaced: bool,
}

impl Sessions {
    /// Makes room for a session of the worker; one that it had ends.
    pub(super) fn enter(&self, worker: WorkerId) -> Place {
        let (orders, receiver) = mpsc::channel(limits::SESSION_QUEUE);
        let end = Arc::new(End::default());
        let mut open = self.open();
        open.numbered += 1;
        let number = open.numbered;
        let earlier = open.of_worker.insert(worker, Line { number, orders, end: Arc::clone(&end) });
        drop(open);
        if let Some(earlier) = &earlier {
            earlier.end.with("the worker opened another session");
        }
        Place { session: SessionId { worker, number }, orders: receiver, end, replaced: earlier.is_some() }
    }

    /// Forgets the session, unless a later one has taken its place.
    pub(super) fn leave(&self, session: SessionId) {
        let mut open = self.open();
        if open.of_worker.get(&session.worker).is_some_and(|line| line.number == session.number) {
            open.of_worker.remove(&session.worker);
        }
    }

    /// Workers with a session.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open().of_worker.len()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outbox for Sessions {
    fn send(&self, session: SessionId, order: Order) {
        let SessionId { worker, number } = session;
        let open = self.open();
        let Some(line) = open.of_worker.get(&worker).filter(|line| line.number == number) else { return };
        match order {
            Order::Close { reason } => line.end.with(&reason),
            order @ (Order::Adopted { .. }
            | Order::Settings { .. }
            | Order::Assign(_)
            | Order::Cancel { .. }
            | Order::Acknowledge { .. }) => {
                match line.orders.try_send(order) {
                    // A session that is over has told the driver so.
                    Ok(()) | Err(TrySendError::Closed(_)) => {}
                    Err(TrySendError::Full(_)) => {
                        warn!(%worker, waiting = limits::SESSION_QUEUE, "worker does not take its orders; session ended");
                        line.end.with("the worker does not take its orders");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledge() -> Order {
        Order::Acknowledge { attempt: kiln_common::AttemptId::generate() }
    }

    #[test]
    fn a_second_session_ends_the_first_and_alone_counts() {
        let sessions = Sessions::default();
        let worker = WorkerId::generate();
        let first = sessions.enter(worker);
        let second = sessions.enter(worker);
        assert!(!first.replaced && second.replaced);
        assert!(first.end.token.is_cancelled() && !second.end.token.is_cancelled());
        sessions.leave(first.session);
        assert_eq!(sessions.count(), 1, "the first one's end is nobody's news");
        sessions.leave(second.session);
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn an_order_for_the_first_session_never_reaches_the_second() {
        let sessions = Sessions::default();
        let worker = WorkerId::generate();
        let first = sessions.enter(worker).session;
        let mut second = sessions.enter(worker);
        sessions.send(first, acknowledge());
        sessions.send(first, Order::Close { reason: "for the first".into() });
        assert!(second.orders.try_recv().is_err() && !second.end.token.is_cancelled());
        sessions.send(second.session, acknowledge());
        assert!(second.orders.try_recv().is_ok());
    }

    #[test]
    fn a_worker_that_does_not_take_its_orders_is_disconnected() {
        let sessions = Sessions::default();
        let place = sessions.enter(WorkerId::generate());
        for _ in 0..limits::SESSION_QUEUE {
            sessions.send(place.session, acknowledge());
        }
        assert!(!place.end.token.is_cancelled());
        sessions.send(place.session, acknowledge());
        assert!(place.end.token.is_cancelled());
        assert!(place.end.reason().contains("does not take its orders"));
    }
}
