//! The audit trail on the wire, and the one way in which the services of this folder write it.

use kiln_common::spec::Violation;
use kiln_proto::{
    convert::{timestamp_from_wire, timestamp_to_wire},
    status::Refused,
    v1,
};

use super::{
    Api,
    listing::{page_key, page_size, token_of},
    store_failed,
    tokens::role_to_wire,
};
use crate::{
    audit::{self, Action, Actor, Entry, Filter, Object, Outcome, Page, Who},
    store::keys,
};

impl Api {
    /// Writes what became of an act, and gives it on once that is durable. `named` is what the caller called the object;
    /// `done` says what it was and what changed.
    pub(super) async fn audited<T>(
        &self,
        who: &Who,
        action: Action,
        named: &str,
        outcome: Result<T, Refused>,
        done: impl FnOnce(&T) -> (Object, String),
    ) -> Result<T, Refused> {
        let answer = self.or_refused(who, action, named, outcome)?;
        let (object, detail) = done(&answer);
        self.trail.record(who.did(action, object, detail)).await?;
        Ok(answer)
    }

    /// The same for an act whose entry is written by whoever does it.
    pub(super) fn or_refused<T>(
        &self,
        who: &Who,
        action: Action,
        named: &str,
        outcome: Result<T, Refused>,
    ) -> Result<T, Refused> {
        outcome.inspect_err(|refused| {
            self.trail.refuse(who.was_refused(action, Object::named(named), refused.message.as_str()));
        })
    }

    pub(super) async fn list_audit_entries(
        &self,
        request: v1::ListAuditRequest,
    ) -> Result<v1::ListAuditResponse, Refused> {
        let size = page_size(request.page_size)?;
        let after = page_key(keys::AUDIT, &request.page_token)?;
        let filter = filter(request)?;
        let page = audit::list(self.driver.store().as_ref(), &filter, after, size).await;
        let Page { entries, next } = page.map_err(|error| store_failed(&error))?;
        Ok(v1::ListAuditResponse { entries: entries.iter().map(to_wire).collect(), next_page_token: token_of(next) })
    }
}

fn filter(request: v1::ListAuditRequest) -> Result<Filter, Refused> {
    let outcome = match request.outcome() {
        v1::AuditOutcome::Unspecified => None,
        v1::AuditOutcome::Done => Some(Outcome::Done),
        v1::AuditOutcome::Refused => Some(Outcome::Refused),
    };
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let action = given(request.action);
    if let Some(action) = action.as_deref().filter(|action| !audit::names_an_action(action)) {
        let known: Vec<_> = Action::ALL.iter().map(|action| action.code()).collect();
        let problem = format!("`{action}` is no action; there are {}", known.join(", "));
        return Err(Refused::invalid(vec![Violation::new("action", problem)]));
    }
    let since = request.since.as_ref().map(timestamp_from_wire);
    Ok(Filter { since, actor: given(request.actor), action, outcome })
}

fn to_wire(entry: &Entry) -> v1::AuditEntry {
    let outcome = match entry.outcome {
        Outcome::Done => v1::AuditOutcome::Done,
        Outcome::Refused => v1::AuditOutcome::Refused,
    };
    v1::AuditEntry {
        id: entry.id.to_string(),
        at: Some(timestamp_to_wire(entry.at)),
        actor: Some(actor_to_wire(&entry.actor)),
        source: entry.source.map(|address| address.to_string()).unwrap_or_default(),
        action: entry.action.code().to_owned(),
        object: Some(object_to_wire(&entry.object)),
        outcome: outcome.into(),
        detail: entry.detail.clone(),
        repeats: entry.repeats,
    }
}

fn actor_to_wire(actor: &Actor) -> v1::AuditActor {
    let kind = actor.kind().to_owned();
    match actor {
        Actor::Token { id, name, role } => {
            v1::AuditActor { kind, id: id.to_string(), name: name.clone(), role: role_to_wire(*role).into() }
        }
        Actor::Worker { id } => v1::AuditActor { kind, id: id.to_string(), ..Default::default() },
        Actor::Farm | Actor::Unknown => v1::AuditActor { kind, ..Default::default() },
    }
}

fn object_to_wire(object: &Object) -> v1::AuditObject {
    let (kind, id) = match object {
        Object::Farm => ("farm", String::new()),
        Object::Build(id) => ("build", id.to_string()),
        Object::Attempt(id) => ("attempt", id.to_string()),
        Object::Worker(id) => ("worker", id.to_string()),
        Object::Token(id) => ("token", id.to_string()),
        Object::JoinToken(id) => ("join-token", id.clone()),
        Object::Tag(reference) => ("tag", reference.clone()),
        Object::Method(path) => ("method", path.clone()),
        Object::Named(text) => ("named", text.clone()),
    };
    v1::AuditObject { kind: kind.to_owned(), id }
}
