//! How many refusals of one kind are written; the rest are counted, and the count is written when their minute is over.
//!
//! Invariant: however many refusals come, at most `AUDIT_REFUSALS_PER_MINUTE` and one more entry a minute are written for
//! each kind and source, and the memory for them is bounded.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use kiln_common::limits;

use super::entry::{Action, Actor, Entry};

const MINUTE: Duration = Duration::from_secs(60);

/// Sources that are told apart; those that come when there are as many share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Known(Actor, Option<IpAddr>),
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Damper {
    windows: HashMap<(Action, Source), Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    written: u32,
    /// The last one that was counted instead of written, with the number of those before it.
    held: Option<Entry>,
}

impl Damper {
    /// The entry, when it is to be written now.
    pub(super) fn admit(&mut self, entry: Entry, now: Instant) -> Option<Entry> {
        let known = (entry.action, Source::Known(entry.actor.clone(), entry.source));
        let is_room = self.windows.len() < limits::AUDIT_SOURCES || self.windows.contains_key(&known);
        let key = if is_room { known } else { (entry.action, Source::Other) };
        let fresh = || Window { since: now, written: 0, held: None };
        let window = self.windows.entry(key).or_insert_with(fresh);
        if window.written < limits::AUDIT_REFUSALS_PER_MINUTE {
            window.written += 1;
            return Some(entry);
        }
        let repeats = window.held.take().map_or(0, |held| held.repeats + 1);
        window.held = Some(Entry { repeats, ..entry });
        None
    }

    /// Ends the minutes that are over; what was counted in them is to be written.
    pub(super) fn over(&mut self, now: Instant) -> Vec<Entry> {
        let ended = |_: &(Action, Source), window: &mut Window| now.duration_since(window.since) >= MINUTE;
        self.windows.extract_if(ended).filter_map(|(_, window)| window.held).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Object, Who};

    fn refusal(source: u32) -> Entry {
        let source = Some(IpAddr::from(source.to_be_bytes()));
        Who { actor: Actor::Unknown, source }.was_refused(Action::Call, Object::Farm, "no token")
    }

    #[test]
    fn a_flood_is_written_a_few_times_and_then_counted() {
        let (mut damper, start) = (Damper::default(), Instant::now());
        let written = (0..10_000).filter(|_| damper.admit(refusal(1), start).is_some()).count();
        assert_eq!(written, limits::AUDIT_REFUSALS_PER_MINUTE as usize);
        assert!(damper.admit(refusal(2), start).is_some(), "others are told apart");
        assert!(damper.over(start + MINUTE / 2).is_empty());
        let counted = damper.over(start + MINUTE);
        assert_eq!(counted.len(), 1, "a source that was not damped has nothing to add");
        assert_eq!(written as u64 + counted[0].repeats + 1, 10_000);
        assert!(damper.admit(refusal(1), start + MINUTE).is_some(), "a new minute");
    }

    #[test]
    fn the_memory_for_sources_is_bounded() {
        let (mut damper, start) = (Damper::default(), Instant::now());
        let sources = u32::try_from(limits::AUDIT_SOURCES).expect("small");
        let written = (0..2 * sources).filter(|source| damper.admit(refusal(*source), start).is_some()).count();
        assert_eq!(damper.windows.len(), limits::AUDIT_SOURCES + 1);
        assert_eq!(written, limits::AUDIT_SOURCES + limits::AUDIT_REFUSALS_PER_MINUTE as usize);
    }
}
