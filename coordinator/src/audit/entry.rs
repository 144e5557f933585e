//! One entry, as the store keeps it (JSON). The codes of actions never change once released: people filter by them.

use std::{fmt, net::IpAddr};

use kiln_common::{
    AttemptId, BuildId, Timestamp, WorkerId,
    id::{AuditId, TokenId},
    limits,
};
use serde::{Deserialize, Serialize};

use crate::access::{Caller, Role, caller_of};

/// One thing that someone did or was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Orders the entries.
    pub id: AuditId,
    pub at: Timestamp,
    pub actor: Actor,
    /// Where it came from; `None` for what the farm does by itself.
    pub source: Option<IpAddr>,
    pub action: Action,
    pub object: Object,
    pub outcome: Outcome,
    /// For people: what was changed, or why it was refused.
    pub detail: String,
    /// This many more of the same kind followed and were counted instead of written.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeats: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Done,
    Refused,
}

/// Who did it, as far as the farm knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// The holder of an API token.
    Token {
        id: TokenId,
        name: String,
        role: Role,
    },
    Worker {
        id: WorkerId,
    },
    /// The coordinator by itself.
    Farm,
    /// Nobody that the farm knows.
    Unknown,
}

impl Actor {
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Token { .. } => "token",
            Self::Worker { .. } => "worker",
            Self::Farm => "farm",
            Self::Unknown => "unknown",
        }
    }
}

impl From<&Caller> for Actor {
    fn from(caller: &Caller) -> Self {
        match caller {
            Caller::Token { id, name, role } => Self::Token { id: *id, name: name.clone(), role: *role },
            Caller::Worker(id) => Self::Worker { id: *id },
            Caller::Anonymous => Self::Unknown,
        }
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)+) => {
        /// What was done or tried.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Action {
            $($(#[$doc])* #[serde(rename = $code)] $name,)+
        }

        impl Action {
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }
        }
    };
}

actions! {
    /// A connection whose client certificate was not accepted.
    Connect = "connection.open";
    /// A call that the gate in front of all services refused.
    Call = "call.admit";
    BuildSubmit = "build.submit";
    BuildCancel = "build.cancel";
    BuildRetry = "build.retry";
    BuildBackfill = "build.backfill";
    TagMove = "tag.move";
    TagRemove = "tag.remove";
    WorkerJoin = "worker.join";
    WorkerRenew = "worker.renew";
    WorkerRemove = "worker.remove";
    WorkerCordon = "worker.cordon";
    WorkerUncordon = "worker.uncordon";
    WorkerDrain = "worker.drain";
    WorkerUpdate = "worker.update";
    /// A worker's session was refused or cut off.
    WorkerSession = "worker.session";
    /// A worker announced or reported what is not its own, or does not read.
    WorkerReport = "worker.report";
    /// A worker sent log entries that it may not.
    WorkerLog = "worker.log";
    /// A worker asked for a context or an agent that is not its attempt's.
    WorkerFetch = "worker.fetch";
    JoinTokenCreate = "join-token.create";
    JoinTokenRevoke = "join-token.revoke";
    TokenCreate = "token.create";
    TokenRevoke = "token.revoke";
}

/// What it was done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    Farm,
    Build(BuildId),
    Attempt(AttemptId),
    Worker(WorkerId),
    Token(TokenId),
    /// By its public id.
    JoinToken(String),
    /// A full image reference.
    Tag(String),
    /// A gRPC method's path.
    Method(String),
    /// As the caller named it, where that names nothing.
    Named(String),
}

impl Object {
    #[must_use]
    pub fn method(path: &str) -> Self {
        Self::Method(bounded(path))
    }

    /// What a caller named; nothing names the farm.
    #[must_use]
    pub fn named(text: &str) -> Self {
        if text.is_empty() { Self::Farm } else { Self::Named(bounded(text)) }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Farm => f.write_str("farm"),
            Self::Build(id) => write!(f, "build {id}"),
            Self::Attempt(id) => write!(f, "attempt {id}"),
            Self::Worker(id) => write!(f, "worker {id}"),
            Self::Token(id) => write!(f, "token {id}"),
            Self::JoinToken(id) => write!(f, "join token {id}"),
            Self::Tag(reference) => write!(f, "tag {reference}"),
            Self::Method(path) => write!(f, "method {path}"),
            Self::Named(text) => write!(f, "`{text}`"),
        }
    }
}

/// Who acts, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    pub actor: Actor,
    pub source: Option<IpAddr>,
}

impl Who {
    /// The caller that the gate admitted, and its address.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        let source = request.remote_addr().map(|address| address.ip().to_canonical());
        Self { actor: (&caller_of(request)).into(), source }
    }

    /// The coordinator by itself.
    #[must_use]
    pub const fn farm() -> Self {
        Self { actor: Actor::Farm, source: None }
    }

    #[must_use]
    pub fn did(&self, action: Action, object: Object, detail: impl Into<String>) -> Entry {
        self.entry(action, object, Outcome::Done, detail.into())
    }

    #[must_use]
    pub fn was_refused(&self, action: Action, object: Object, why: impl Into<String>) -> Entry {
        self.entry(action, object, Outcome::Refused, why.into())
    }

    fn entry(&self, action: Action, object: Object, outcome: Outcome, detail: String) -> Entry {
        Entry {
            id: AuditId::generate(),
            at: Timestamp::now(),
            actor: self.actor.clone(),
            source: self.source,
            action,
            object,
            outcome,
            detail: bounded(&detail),
            repeats: 0,
        }
    }
}

/// What outsiders chose goes in short and without control characters.
fn bounded(text: &str) -> String {
    let mut clean: String = text.chars().filter(|c| !c.is_control()).take(limits::AUDIT_TEXT_BYTES).collect();
    clean.truncate(clean.floor_char_boundary(limits::AUDIT_TEXT_BYTES));
    clean
}
