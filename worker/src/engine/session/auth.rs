//! `moby.filesync.v1.Auth`: how the registries of this build know the user.
//!
//! Identity tokens go out as containerd takes them, a secret without a user name (`remotes/docker/auth`, "refresh
//! token"); the engine then fetches access tokens itself.

use std::{collections::BTreeMap, sync::Arc};

use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse, auth_server::Auth,
};
use kiln_common::reference::DOCKER_HUB;
use tonic::{Request, Response, Status};

use super::served::Builds;
use crate::engine::job::RegistryCredential;

pub struct Credentials(pub Arc<Builds>);

#[tonic::async_trait]
impl Auth for Credentials {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        Ok(Response::new(of(&self.0.served()?.credentials, &request.get_ref().host)))
    }

    async fn fetch_token(&self, _: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        Err(Status::unimplemented("the engine fetches tokens itself"))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("the engine fetches tokens itself"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("the engine fetches tokens itself"))
    }
}

/// Empty for a registry that nobody logged in to: BuildKit then goes on without.
fn of(credentials: &BTreeMap<String, RegistryCredential>, host: &str) -> CredentialsResponse {
    let host = match host {
        "registry-1.docker.io" | "index.docker.io" | "registry.docker.io" => DOCKER_HUB,
        other => other,
    };
    match credentials.get(host) {
        Some(RegistryCredential::Password { username, password }) => {
            CredentialsResponse { username: username.clone(), secret: password.to_string() }
        }
        Some(RegistryCredential::IdentityToken(token)) => {
            CredentialsResponse { username: String::new(), secret: token.to_string() }
        }
        None => CredentialsResponse::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_is_known_by_all_its_names_and_strangers_get_nothing() {
        let password = RegistryCredential::Password { username: "me".into(), password: "secret".to_owned().into() };
        let token = RegistryCredential::IdentityToken("token".to_owned().into());
        let credentials = BTreeMap::from([(DOCKER_HUB.to_owned(), password), ("r.example".to_owned(), token)]);
        assert_eq!(of(&credentials, "registry-1.docker.io").username, "me");
        assert_eq!(of(&credentials, "docker.io").secret, "secret");
        let identity = of(&credentials, "r.example");
        assert_eq!((identity.username.as_str(), identity.secret.as_str()), ("", "token"));
        assert_eq!(of(&credentials, "elsewhere.example"), CredentialsResponse::default());
    }
}
