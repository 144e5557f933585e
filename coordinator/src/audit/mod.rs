//! The audit trail: who did what to which object, from where, and with what result. Entries are appended, never changed.
//!
//! `api`, `access`, `server`, `sessions` and `publish`'s caller write through [`Trail`]; `FarmService.ListAudit` reads
//! through [`list`]. Invariants: an act is answered once its entry is durable; refusals never wait, and however many there
//! are, they neither fill the store nor push out what others did, because [`damper`] counts most of them instead.

mod damper;
mod entry;
mod retention;
mod trail;
mod view;

pub use entry::{Action, Actor, Entry, Object, Outcome, Who};
pub use trail::{Trail, Writer};
pub use view::{Filter, Page, list, names_an_action};

#[cfg(test)]
mod tests;
