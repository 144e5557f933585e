//! Small blobs on their way into a repository (distribution-spec, "Pushing a blob monolithically").

use bytes::Bytes;
use kiln_common::{Digest, Repository, limits};
use reqwest::{
    Method, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, LOCATION},
};

use super::{
    error::{Fault, RegistryError},
    registry::{Call, Session, check},
};

impl Session {
    /// Puts a blob into the repository, unless it is there.
    pub async fn put_blob(&self, repository: &Repository, digest: &Digest, bytes: &Bytes) -> Result<(), RegistryError> {
        self.retry(|| self.put_blob_once(repository, digest, bytes)).await
    }

    async fn put_blob_once(
        &self,
        repository: &Repository,
        digest: &Digest,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        if self.has_blob(repository, digest).await? {
            return Ok(());
        }
        let start =
            Call { method: Method::POST, repository, kind: "blobs", reference: "uploads/".to_owned(), body: None };
        let response = self.send(&start, "push to").await?;
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let nowhere = || {
            let message = format!("{} does not say where a blob goes", repository.host());
            RegistryError::new(Fault::Final, message)
        };
        let base = Url::parse(&self.url(&start)).map_err(|_| nowhere())?;
        let mut url = base.join(location.ok_or_else(nowhere)?).map_err(|_| nowhere())?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        // Another machine's upload address carries its own permission, and must not see this registry's.
        let is_own = url.origin() == base.origin();
        self.finish(repository, url, is_own, digest, bytes).await
    }

    async fn finish(
        &self,
        repository: &Repository,
        url: Url,
        is_own: bool,
        digest: &Digest,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let request = self.client(repository).put(url).timeout(limits::REGISTRY_CALL_TIMEOUT);
        let mut request = request.header(CONTENT_TYPE, "application/octet-stream").body(bytes.clone());
        if is_own && let Some(value) = self.authorization(repository).await {
            request = request.header(AUTHORIZATION, value);
        }
        let response = request.send().await.map_err(|error| RegistryError::connection(repository.host(), &error))?;
        let call = Call { method: Method::PUT, repository, kind: "blobs", reference: digest.to_string(), body: None };
        check(&call, "push to", response, self.credential(repository).is_some()).await.map(drop)
    }

    async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, RegistryError> {
        let call = Call { method: Method::HEAD, repository, kind: "blobs", reference: digest.to_string(), body: None };
        match self.send(&call, "pull from").await {
            Ok(_) => Ok(true),
            Err(error) if error.fault == Fault::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}
