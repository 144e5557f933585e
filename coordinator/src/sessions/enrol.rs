//! A worker joins with a token, or renews the certificate that it has.
//!
//! Invariant: a certificate is handed out once the worker is durable; a token's use is taken only for a sound request.

use std::{collections::HashSet, sync::Arc};

use kiln_common::{Reason, Timestamp, WorkerId, limits};
use kiln_proto::{convert, status::Refused, v1};
use kiln_scheduler::{Event, WorkerRecord};
use tokio::sync::Mutex;
use tracing::{error, info};

use crate::{
    audit::{Action, Actor, Object, Trail, Who},
    driver::Handle,
    pki::{Issued, JoinRejected, JoinTokens, Pki, PkiError},
};

/// A worker that was let in, by the join token with this public id.
struct Joined {
    id: WorkerId,
    token: String,
    response: v1::EnrollResponse,
}

pub(super) struct Enrolment {
    pki: Arc<Pki>,
    tokens: Arc<JoinTokens>,
    driver: Handle,
    trail: Trail,
    /// One at a time, so that a name is given once.
    gate: Mutex<()>,
}

impl Enrolment {
    pub(super) fn new(pki: Arc<Pki>, tokens: Arc<JoinTokens>, driver: Handle, trail: Trail) -> Self {
        Self { pki, tokens, driver, trail, gate: Mutex::new(()) }
    }

    pub(super) async fn join(&self, who: &Who, request: v1::EnrollRequest) -> Result<v1::EnrollResponse, Refused> {
        match self.admit(request).await {
            Ok(Joined { id, token, response }) => {
                let who = Who { actor: Actor::Worker { id }, source: who.source };
                let detail = format!("joined as `{}` with the join token {token}", response.name);
                self.trail.record(who.did(Action::WorkerJoin, Object::Worker(id), detail)).await?;
                Ok(response)
            }
            Err((refused, object)) => {
                self.trail.refuse(who.was_refused(Action::WorkerJoin, object, refused.message.as_str()));
                Err(refused)
            }
        }
    }

    /// Lets a worker in; a refusal comes with what was refused.
    async fn admit(&self, request: v1::EnrollRequest) -> Result<Joined, (Refused, Object)> {
        let _one_at_a_time = self.gate.lock().await;
        let now = Timestamp::now();
        let id = WorkerId::generate();
        let on_farm = |refused| (refused, Object::Farm);
        let issued = self.pki.issue_worker(id, &request.csr_der, now).map_err(refused_request).map_err(on_farm)?;
        let grant = self.tokens.redeem(&request.join_token, now).await.map_err(refused_token)?;
        let name = self.unique_name(&request.name).await.map_err(on_farm)?;
        let worker = WorkerRecord {
            id,
            name: name.as_str().into(),
            joined_at: now,
            facts: None,
            labels: grant.labels,
            slots: None,
            cordon: None,
            quarantine: None,
        };
        let sent = self.driver.send(Event::WorkerEnrolled { worker }).await;
        sent.map_err(stopped).map_err(on_farm)?;
        info!(worker = %id, name, "worker joined");
        Ok(Joined { id, token: grant.id, response: self.response(id, name, issued) })
    }

    pub(super) async fn renew(
        &self,
        worker: WorkerId,
        who: &Who,
        request: v1::EnrollRequest,
    ) -> Result<v1::EnrollResponse, Refused> {
        let renewed = self.issue_again(worker, request).await;
        let object = Object::Worker(worker);
        match &renewed {
            Ok(_) => self.trail.record(who.did(Action::WorkerRenew, object, "")).await?,
            Err(refused) => {
                self.trail.refuse(who.was_refused(Action::WorkerRenew, object, refused.message.as_str()));
            }
        }
        renewed
    }

    async fn issue_again(&self, worker: WorkerId, request: v1::EnrollRequest) -> Result<v1::EnrollResponse, Refused> {
        let known =
            self.driver.query(move |scheduler, _| scheduler.worker(worker).map(|view| view.record.name.to_string()));
        let name = known.await.map_err(stopped)?.ok_or_else(|| {
            Refused::new(Reason::Unauthenticated, "this worker was removed from the farm; join it anew with a token")
        })?;
        let issued = self.pki.issue_worker(worker, &request.csr_der, Timestamp::now()).map_err(refused_request)?;
        info!(%worker, name, "worker's certificate renewed");
        Ok(self.response(worker, name, issued))
    }

    fn response(&self, worker: WorkerId, name: String, issued: Issued) -> v1::EnrollResponse {
        v1::EnrollResponse {
            worker_id: worker.to_string(),
            name,
            certificate_pem: issued.chain_pem,
            ca_pem: self.pki.ca_pem().to_owned(),
            renew_after: Some(convert::duration_to_wire(issued.renew_after)),
        }
    }

    /// The name that it would like, with a number where another worker has it.
    async fn unique_name(&self, wish: &str) -> Result<String, Refused> {
        let base = sound_name(wish);
        let taken = self.driver.query(move |scheduler, _| {
            let alike = |name: &&str| name.starts_with(&base);
            let taken: HashSet<&str> = scheduler.workers().map(|view| &*view.record.name).filter(alike).collect();
            let numbered = (2..).map(|number: u64| format!("{base}-{number}"));
            let name = std::iter::once(base.clone()).chain(numbered).find(|name| !taken.contains(name.as_str()));
            (name.unwrap_or_default(), scheduler.workers().count())
        });
        let (name, count) = taken.await.map_err(stopped)?;
        if count >= limits::WORKERS {
            return Err(Refused::new(
                Reason::Overloaded,
                format!("the farm has {count} workers, the most it may have"),
            ));
        }
        Ok(name)
    }
}

fn sound_name(wish: &str) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = wish.chars().filter(allowed).take(limits::WORKER_NAME_BYTES - 8).collect();
    if name.is_empty() { "worker".to_owned() } else { name }
}

pub(super) fn stopped(error: crate::driver::Stopped) -> Refused {
    Refused::new(Reason::Unavailable, error.to_string())
}

fn refused_request(error: PkiError) -> Refused {
    match error {
        PkiError::Request { .. } => Refused::new(Reason::InvalidArgument, error.to_string()),
        PkiError::File(_)
        | PkiError::HalfAuthority { .. }
        | PkiError::Authority { .. }
        | PkiError::Host { .. }
        | PkiError::Issue { .. } => {
            error!(%error, "a certificate cannot be made");
            Refused::new(Reason::Internal, "the farm cannot make a certificate; see its log")
        }
    }
}

fn refused_token(error: JoinRejected) -> (Refused, Object) {
    let message = error.to_string();
    match error {
        JoinRejected::NotValid { id, .. } => {
            (Refused::new(Reason::JoinTokenRejected, message), id.map_or(Object::Farm, Object::JoinToken))
        }
        JoinRejected::NoSuchToken { .. }
        | JoinRejected::Ambiguous { .. }
        | JoinRejected::TooLong
        | JoinRejected::TooMany => (Refused::new(Reason::JoinTokenRejected, message), Object::Farm),
        JoinRejected::Store(error) => {
            error!(%error, "the store failed a join");
            (Refused::new(Reason::Unavailable, "the farm's store does not answer; try again"), Object::Farm)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_only_what_a_listing_can_show() {
        assert_eq!(sound_name("pi 4\n<b>"), "pi4b");
        assert_eq!(sound_name("\u{7}"), "worker");
        assert_eq!(sound_name(&"x".repeat(500)).len(), limits::WORKER_NAME_BYTES - 8);
    }
}
