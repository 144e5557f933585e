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
    audit::{Action, Object, Who},
    pki::{JoinRejected, JoinTokenView, NewJoinToken},
};

impl Api {
    pub(super) async fn make_join_token(
        &self,
        who: &Who,
        request: v1::CreateJoinTokenRequest,
    ) -> Result<v1::CreateJoinTokenResponse, Refused> {
        let made = self.create_join_token(request).await;
        let tell = |made: &v1::CreateJoinTokenResponse| (Object::JoinToken(made.id.clone()), String::new());
        self.audited(who, Action::JoinTokenCreate, "", made, tell).await
    }

    async fn create_join_token(
        &self,
        request: v1::CreateJoinTokenRequest,
    ) -> Result<v1::CreateJoinTokenResponse, Refused> {
        let ttl = lifetime(request.ttl.as_ref())?.unwrap_or(limits::JOIN_TOKEN_TTL_DEFAULT);
        let labels = request.labels.into_iter().collect();
        let made = self.join_tokens.create(ttl, request.uses, labels, Timestamp::now()).await;
        let NewJoinToken { token, id, expires_at } = made.map_err(join_refused)?;
        Ok(v1::CreateJoinTokenResponse {
            token: token.to_string(),
            expires_at: Some(timestamp_to_wire(expires_at)),
            coordinator: self.join_tokens.coordinators().join(","),
            id,
        })
    }

    pub(super) async fn list_join(&self) -> Result<v1::ListJoinTokensResponse, Refused> {
        let all = self.join_tokens.list(Timestamp::now()).await.map_err(|error| store_failed(&error))?;
        Ok(v1::ListJoinTokensResponse { tokens: all.into_iter().map(join_to_wire).collect() })
    }

    pub(super) async fn revoke_join(&self, who: &Who, id: &str) -> Result<(), Refused> {
        let revoked = self.join_tokens.revoke(id, Timestamp::now()).await.map_err(join_refused);
        let tell = |id: &String| (Object::JoinToken(id.clone()), String::new());
        self.audited(who, Action::JoinTokenRevoke, id, revoked, tell).await.map(drop)
    }

    pub(super) async fn make_api_token(
        &self,
        who: &Who,
        request: v1::CreateApiTokenRequest,
    ) -> Result<v1::CreateApiTokenResponse, Refused> {
        let name = request.name.clone();
        let made = self.create_token(request).await;
        let tell = |(token, _): &(ApiToken, _)| (Object::Token(token.id), format!("{} `{}`", token.role, token.name));
        let (_, response) = self.audited(who, Action::TokenCreate, &name, made, tell).await?;
        Ok(response)
    }

    async fn create_token(
        &self,
        request: v1::CreateApiTokenRequest,
    ) -> Result<(ApiToken, v1::CreateApiTokenResponse), Refused> {
        let role = match request.role() {
            v1::Role::Unspecified | v1::Role::Viewer => Role::Viewer,
            v1::Role::Submitter => Role::Submitter,
            v1::Role::Admin => Role::Admin,
        };
        let ttl = lifetime(request.ttl.as_ref())?;
        let made = self.api_tokens.create(&request.name, role, ttl, Timestamp::now()).await;
        let made = made.map_err(token_refused)?;
        let token = Some(to_wire(&made.token));
        Ok((made.token, v1::CreateApiTokenResponse { secret: made.secret.to_string(), token }))
    }

    pub(super) fn list_tokens(&self) -> v1::ListApiTokensResponse {
        v1::ListApiTokensResponse { tokens: self.api_tokens.list().iter().map(to_wire).collect() }
    }

    pub(super) async fn revoke_token(&self, who: &Who, text: &str) -> Result<(), Refused> {
        let parsed = text.parse().map_err(|error| Refused::invalid(vec![Violation::new("id", error)]));
        let revoked = match parsed {
            Ok(id) => self.api_tokens.revoke(id).await.map_err(token_refused),
            Err(refused) => Err(refused),
        };
        let tell = |token: &ApiToken| (Object::Token(token.id), format!("{} `{}`", token.role, token.name));
        self.audited(who, Action::TokenRevoke, text, revoked, tell).await.map(drop)
    }
}

fn join_refused(error: JoinRejected) -> Refused {
    match error {
        JoinRejected::NotValid { .. } => Refused::new(Reason::JoinTokenRejected, error.to_string()),
        JoinRejected::NoSuchToken { .. } => Refused::new(Reason::NotFound, error.to_string()),
        JoinRejected::Ambiguous { .. } => Refused::invalid(vec![Violation::new("id", error)]),
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

pub(super) const fn role_to_wire(role: Role) -> v1::Role {
    match role {
        Role::Viewer => v1::Role::Viewer,
        Role::Submitter => v1::Role::Submitter,
        Role::Admin => v1::Role::Admin,
    }
}

fn join_to_wire(token: JoinTokenView) -> v1::JoinToken {
    v1::JoinToken {
        id: token.id,
        created_at: Some(timestamp_to_wire(token.created_at)),
        expires_at: Some(timestamp_to_wire(token.expires_at)),
        uses_left: token.uses_left,
        labels: token.labels.into_iter().collect(),
        ended: token.fault.map(|fault| fault.to_string()).unwrap_or_default(),
    }
}

fn to_wire(token: &ApiToken) -> v1::ApiToken {
    v1::ApiToken {
        id: token.id.to_string(),
        name: token.name.clone(),
        role: role_to_wire(token.role).into(),
        created_at: Some(timestamp_to_wire(token.created_at)),
        expires_at: token.expires_at.map(timestamp_to_wire),
    }
}
