//! Reading the trail: newest first, filtered, in pages.

use kiln_common::Timestamp;

use super::entry::{Action, Actor, Entry, Outcome};
use crate::store::{Store, StoreError, keys, records};

/// Entries that one page may look at; a filter that matches little ends its page early, with a key to go on from.
const LOOKED_AT: usize = 20_000;
const READ: usize = 500;

/// What to show; the default shows all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Not before.
    pub since: Option<Timestamp>,
    /// An actor's name or id, or its kind: `token`, `worker`, `farm`, `unknown`.
    pub actor: Option<String>,
    /// An action's code, or the part before its dot.
    pub action: Option<String>,
    pub outcome: Option<Outcome>,
}

/// Entries and the key after which the next ones are, where there may be more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<Entry>,
    pub next: Option<String>,
}

impl Filter {
    fn allows(&self, entry: &Entry) -> bool {
        self.actor.as_deref().is_none_or(|wanted| is_actor(&entry.actor, wanted))
            && self.action.as_deref().is_none_or(|wanted| is_action(entry.action, wanted))
            && self.outcome.is_none_or(|wanted| entry.outcome == wanted)
    }
}

fn is_actor(actor: &Actor, wanted: &str) -> bool {
    let is_it = match actor {
        Actor::Token { id, name, .. } => wanted == name || wanted == id.to_string(),
        Actor::Worker { id } => wanted == id.to_string(),
        Actor::Farm | Actor::Unknown => false,
    };
    is_it || wanted == actor.kind()
}

fn is_action(action: Action, wanted: &str) -> bool {
    let code = action.code();
    code == wanted || code.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('.'))
}

/// Whether the word names an action or a group of them.
#[must_use]
pub fn names_an_action(wanted: &str) -> bool {
    Action::ALL.iter().any(|action| is_action(*action, wanted))
}

/// At most `size` entries that the filter allows, all of them after the key `after`.
///
/// # Errors
/// What the store says.
pub async fn list(store: &dyn Store, filter: &Filter, after: Option<String>, size: usize) -> Result<Page, StoreError> {
    let mut page = Page { entries: Vec::new(), next: after };
    let mut looked_at = 0;
    loop {
        let read = store.range(keys::AUDIT, page.next.as_deref(), READ).await?;
        let is_last = read.len() < READ;
        for stored in read {
            if page.entries.len() == size || looked_at == LOOKED_AT {
                return Ok(page);
            }
            looked_at += 1;
            let entry: Entry = records::decode(&stored)?;
            if filter.since.is_some_and(|since| entry.at < since) {
                return Ok(Page { next: None, ..page });
            }
            page.next = Some(stored.key);
            page.entries.extend(Some(entry).filter(|entry| filter.allows(entry)));
        }
        if is_last {
            return Ok(Page { next: None, ..page });
        }
    }
}
