//! The token calls of `FarmService`: join tokens for workers, API tokens for people and CI.

use kiln_common::{Reason, Timestamp, limits, spec::Violation};
use kiln_proto::{
    convert::{duration_from_wire, timestamp_to_wire},
    status::Refused,
    v1,
};

use super::{Api, store_failed};
use crate::{
    access::{ApiToken, Role, TokenError},
    pki::JoinRejected,
};

impl Api {
    pub(super) async fn make_join_token(
        &self,
        request: v1::CreateJoinTokenRequest,
    ) -> Result<v1::CreateJoinTokenResponse, Refused> {
        let ttl = lifetime(request.ttl.as_ref())?.unwrap_or(limits::JOIN_TOKEN_TTL_DEFAULT);
        let labels = request.labels.into_iter().collect();
        let made = self.join_tokens.create(ttl, request.uses, labels, Timestamp::now()).await;
        let (token, expires_at) = made.map_err(join_refused)?;
        Ok(v1::CreateJoinTokenResponse {
            token: token.to_string(),
            expires_at: Some(timestamp_to_wire(expires_at)),
            coordinator: self.join_tokens.coordinators().join(","),
        })
    }

    pub(super) async fn make_api_token(
        &self,
        request: v1::CreateApiTokenRequest,
    ) -> Result<v1::CreateApiTokenResponse, Refused> {
        let role = match request.role() {
            v1::Role::Unspecified | v1::Role::Viewer => Role::Viewer,
            v1::Role::Submitter => Role::Submitter,
            v1::Role::Admin => Role::Admin,
        };
        let ttl = lifetime(request.ttl.as_ref())?;
        let made = self.api_tokens.create(&request.name, role, ttl, Timestamp::now()).await;
        let made = made.map_err(token_refused)?;
        Ok(v1::CreateApiTokenResponse { secret: made.secret.to_string(), token: Some(to_wire(&made.token)) })
    }

    pub(super) fn list_tokens(&self) -> v1::ListApiTokensResponse {
        v1::ListApiTokensResponse { tokens: self.api_tokens.list().iter().map(to_wire).collect() }
    }

    pub(super) async fn revoke_token(&self, id: &str) -> Result<(), Refused> {
        let id = id.parse().map_err(|error| Refused::invalid(vec![Violation::new("id", error)]))?;
        self.api_tokens.revoke(id).await.map_err(token_refused)
    }
}

fn join_refused(error: JoinRejected) -> Refused {
    match error {
        JoinRejected::NotValid => Refused::new(Reason::JoinTokenRejected, error.to_string()),
        JoinRejected::TooLong => Refused::invalid(vec![Violation::new("ttl", error)]),
        JoinRejected::TooMany => Refused::new(Reason::Overloaded, error.to_string()),
        JoinRejected::Store(error) => store_failed(&error),
    }
}

fn token_refused(error: TokenError) -> Refused {
    match error {
        TokenError::Name => Refused::invalid(vec![Violation::new("name", error)]),
        TokenError::TooMany => Refused::new(Reason::Overloaded, error.to_string()),
        TokenError::Unknown { .. } => Refused::new(Reason::NotFound, error.to_string()),
        TokenError::Store(error) => store_failed(&error),
    }
}

fn lifetime(wire: Option<&prost_types::Duration>) -> Result<Option<std::time::Duration>, Refused> {
    let Some(wire) = wire else { return Ok(None) };
    match duration_from_wire(wire) {
        Some(ttl) if !ttl.is_zero() => Ok(Some(ttl)),
        Some(_) | None => Err(Refused::invalid(vec![Violation::new("ttl", "must be more than nothing")])),
    }
}

fn to_wire(token: &ApiToken) -> v1::ApiToken {
    let role = match token.role {
        Role::Viewer => v1::Role::Viewer,
        Role::Submitter => v1::Role::Submitter,
        Role::Admin => v1::Role::Admin,
    };
    v1::ApiToken {
        id: token.id.to_string(),
        name: token.name.clone(),
        role: role.into(),
        created_at: Some(timestamp_to_wire(token.created_at)),
        expires_at: token.expires_at.map(timestamp_to_wire),
    }
}
