//! `moby.buildkit.secrets.v1.Secrets`: values for `RUN --mount=type=secret`, from memory.

use std::collections::BTreeMap;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::{
    GetSecretRequest, GetSecretResponse, secrets_server::Secrets,
};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

pub struct SecretStore(pub BTreeMap<String, Zeroizing<Vec<u8>>>);

#[tonic::async_trait]
impl Secrets for SecretStore {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = &request.get_ref().id;
        let missing = || Status::not_found(format!("secret {id} was not given to the build; pass --secret id={id}"));
        let value = self.0.get(id).ok_or_else(missing)?;
        Ok(Response::new(GetSecretResponse { data: value.to_vec() }))
    }
}
