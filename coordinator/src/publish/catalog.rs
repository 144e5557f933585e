//! What a repository holds, and how things leave it: the parts of the distribution API that publishing itself does not use
//! (distribution-spec, "Listing Tags", "Deleting tags", "Deleting Manifests").

use std::collections::BTreeSet;

use kiln_common::{Repository, limits};
use reqwest::Method;
use serde::Deserialize;

use super::{
    error::{Fault, RegistryError},
    registry::{Call, Fetched, Pointer, Session, read_bounded},
};

/// Tags in one answer.
const PAGE: usize = 1000;

#[derive(Deserialize)]
struct Page {
    /// Some registries say null for none.
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl Session {
    /// All tags of the repository; none where it does not exist.
    pub async fn tags(&self, repository: &Repository) -> Result<BTreeSet<String>, RegistryError> {
        let mut all: BTreeSet<String> = BTreeSet::new();
        loop {
            let last = all.last().map(|last| format!("&last={last}")).unwrap_or_default();
            let page = self.retry(|| self.tags_page(repository, format!("list?n={PAGE}{last}"))).await?;
            let before = all.len();
            all.extend(page.into_iter().flatten());
            if all.len() > limits::TAGS_PER_REPOSITORY {
                let most = limits::TAGS_PER_REPOSITORY;
                return Err(RegistryError::new(Fault::Final, format!("{repository} has more than {most} tags")));
            }
            // A registry may give all tags at once, whatever was asked; one that has more gives a full page.
            if all.len() < before + PAGE {
                return Ok(all);
            }
        }
    }

    async fn tags_page(
        &self,
        repository: &Repository,
        reference: String,
    ) -> Result<Option<Vec<String>>, RegistryError> {
        let call = Call { method: Method::GET, repository, kind: "tags", reference, body: None };
        let response = match self.send(&call, "list the tags of").await {
            Err(error) if error.fault == Fault::NotFound => return Ok(None),
            response => response?,
        };
        let body = read_bounded(response, limits::MANIFEST_BYTES, repository.host()).await?;
        let page = read(&body).map_err(|error| {
            RegistryError::new(Fault::Final, format!("the tags of {repository} do not read: {error}"))
        })?;
        Ok(page)
    }

    /// A manifest, without waiting for "not found" to change.
    pub async fn find_manifest(
        &self,
        repository: &Repository,
        at: Pointer<'_>,
    ) -> Result<Option<Fetched>, RegistryError> {
        let found = self.retry(|| async {
            match self.manifest_once(repository, at).await {
                Err(error) if error.fault == Fault::NotFound => Ok(None),
                other => other.map(Some),
            }
        });
        found.await
    }

    /// Deletes a tag or a manifest; `false` where the registry does not do that. What is gone already is deleted.
    pub async fn delete(&self, repository: &Repository, at: Pointer<'_>) -> Result<bool, RegistryError> {
        let call =
            Call { method: Method::DELETE, repository, kind: "manifests", reference: at.to_string(), body: None };
        let deleted = self.retry(|| async {
            match self.send(&call, "delete from").await {
                Ok(_) => Ok(true),
                Err(error) if error.fault == Fault::NotFound => Ok(true),
                Err(error) if error.fault == Fault::Final => Ok(false),
                Err(error) => Err(error),
            }
        });
        deleted.await
    }
}

/// The tags of a page.
pub(super) fn read(body: &[u8]) -> Result<Option<Vec<String>>, serde_json::Error> {
    serde_json::from_slice::<Page>(body).map(|page| page.tags)
}
