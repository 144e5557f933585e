//! Which session speaks for each worker, as the driver has heard it.
//!
//! A worker whose connection broke may be back before its earlier session was seen to end, and what two sessions say may
//! reach the queue in any order. Invariants: the scheduler hears of a worker's sessions one after the other, each from its
//! `WorkerConnected` to its `WorkerDisconnected`; of a session that was replaced it hears nothing more.

use std::collections::HashMap;

use kiln_common::WorkerId;
use kiln_scheduler::Event;

/// One session of one worker. Of two, the later one has the higher number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId {
    pub worker: WorkerId,
    pub number: u64,
}

#[derive(Debug, Default)]
pub(super) struct Speakers {
    current: HashMap<WorkerId, u64>,
}

impl Speakers {
    /// The session that orders for the worker are meant for.
    pub(super) fn current(&self, worker: WorkerId) -> Option<SessionId> {
        self.current.get(&worker).map(|number| SessionId { worker, number: *number })
    }

    /// What the scheduler is to hear of this, in order.
    pub(super) fn hear(&mut self, session: SessionId, event: Event) -> impl Iterator<Item = Event> + use<> {
        let SessionId { worker, number } = session;
        let current = self.current.get(&worker).copied();
        let is_connect = matches!(event, Event::WorkerConnected { .. });
        let is_disconnect = matches!(event, Event::WorkerDisconnected { .. });
        let is_heard = if is_connect { current.is_none_or(|known| known <= number) } else { current == Some(number) };
        let replaces = is_heard && current.is_some_and(|known| known != number);
        if is_heard && is_disconnect {
            self.current.remove(&worker);
        } else if is_heard {
            self.current.insert(worker, number);
        }
        let end = replaces.then_some(Event::WorkerDisconnected { worker });
        end.into_iter().chain(is_heard.then_some(event))
    }
}

#[cfg(test)]
mod tests {
    use kiln_scheduler::event::WorkerStats;

    use super::*;

    fn connected(worker: WorkerId) -> Event {
        let facts = kiln_scheduler::record::WorkerFacts {
            platforms: Default::default(),
            slots: 1,
            labels: Default::default(),
            features: Default::default(),
            engine: Default::default(),
            machine: Default::default(),
        };
        Event::WorkerConnected { worker, facts: Box::new(facts), attempts: Vec::new() }
    }

    /// `c` connected, `d` disconnected, `h` heartbeat.
    fn hear(speakers: &mut Speakers, session: SessionId, what: char) -> String {
        let worker = session.worker;
        let event = match what {
            'c' => connected(worker),
            'd' => Event::WorkerDisconnected { worker },
            _ => Event::WorkerHeartbeat { worker, stats: WorkerStats::default() },
        };
        let name = |event: Event| {
            let is_connect = matches!(event, Event::WorkerConnected { .. });
            let is_disconnect = matches!(event, Event::WorkerDisconnected { .. });
            if is_connect {
                'c'
            } else if is_disconnect {
                'd'
            } else {
                'h'
            }
        };
        speakers.hear(session, event).map(name).collect()
    }

    #[test]
    fn one_session_after_the_other_is_heard_from_its_start_to_its_end() {
        let worker = WorkerId::generate();
        let [first, second] = [1, 2].map(|number| SessionId { worker, number });
        let mut speakers = Speakers::default();
        assert_eq!(hear(&mut speakers, first, 'h'), "", "nothing before the start");
        assert_eq!(hear(&mut speakers, first, 'c'), "c");
        assert_eq!(hear(&mut speakers, first, 'c'), "c", "a Hello may be said again");
        assert_eq!(hear(&mut speakers, second, 'c'), "dc", "the first one's end was not seen");
        assert_eq!(speakers.current(worker), Some(second));
        for late in ['c', 'h', 'd'] {
            assert_eq!(hear(&mut speakers, first, late), "", "{late} of a session that was replaced");
        }
        assert_eq!(hear(&mut speakers, second, 'h'), "h");
        assert_eq!(hear(&mut speakers, second, 'd'), "d");
        assert_eq!(speakers.current(worker), None);
    }
}
