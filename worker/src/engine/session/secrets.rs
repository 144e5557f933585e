//! `moby.buildkit.secrets.v1.Secrets`: values for `RUN --mount=type=secret`, from memory.

use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::{
    GetSecretRequest, GetSecretResponse, secrets_server::Secrets,
};
use tonic::{Request, Response, Status};

use super::served::Builds;

pub struct SecretStore(pub Arc<Builds>);

#[tonic::async_trait]
impl Secrets for SecretStore {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = &request.get_ref().id;
        let missing = || Status::not_found(format!("secret {id} was not given to the build; pass --secret id={id}"));
        let served = self.0.served()?;
        let value = served.secrets.get(id).ok_or_else(missing)?;
        Ok(Response::new(GetSecretResponse { data: value.to_vec() }))
    }
}
