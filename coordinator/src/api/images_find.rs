//! One version of a repository by its tag or digest, two of them compared, and one taken out.

use std::collections::BTreeSet;

use kiln_common::{Digest, ImageReference, Reason, Repository, limits, spec::Violation};
use kiln_proto::{status::Refused, v1};

use super::{Api, images::version, store_failed};
use crate::{
    credentials::BuildSecrets,
    store::{Txn, keys, records::BuildView},
};

/// Builds of one repository that are looked at for a version.
const BUILDS_LOOKED_AT: usize = 10_000;

/// A build's version of a repository.
struct Found {
    records: BuildView,
    version: v1::ImageVersion,
}

impl Api {
    pub(super) async fn compare_images(
        &self,
        request: v1::DiffImagesRequest,
    ) -> Result<v1::DiffImagesResponse, Refused> {
        let (from, to) = (parse("from", &request.from)?, parse("to", &request.to)?);
        let (from, to) = (self.find_version(&from).await?, self.find_version(&to).await?);
        let platforms = platforms(&from.version, &to.version);
        let build = options(&from.records, &to.records);
        Ok(v1::DiffImagesResponse { from: Some(from.version), to: Some(to.version), platforms, build })
    }

    /// The newest build that published the tag, or the digest.
    async fn find_version(&self, reference: &ImageReference) -> Result<Found, Refused> {
        let wanted = |version: &v1::ImageVersion| match reference.digest() {
            Some(digest) => version.digest == digest.to_string(),
            None => version.tags.iter().any(|tag| tag == reference.tag().unwrap_or("latest")),
        };
        let mut found = None;
        self.each_version(reference.repository(), |records, version| {
            let is_it = wanted(&version);
            if is_it {
                found = Some(Found { records, version });
            }
            !is_it
        })
        .await?;
        found.ok_or_else(|| {
            Refused::new(
                Reason::NotFound,
                format!(
                    "this farm published no `{reference}`; `kiln images {}` lists what it did",
                    reference.repository()
                ),
            )
        })
    }

    /// Shows every version, newest first, until `goes_on` says no.
    async fn each_version(
        &self,
        repository: &Repository,
        mut goes_on: impl FnMut(BuildView, v1::ImageVersion) -> bool,
    ) -> Result<(), Refused> {
        let prefix = keys::images(repository);
        let (mut after, mut seen) = (None, 0);
        while seen < BUILDS_LOOKED_AT {
            let page = self.driver.store().range(&prefix, after.as_deref(), limits::PAGE_SIZE_MAX).await;
            let page = page.map_err(|error| store_failed(&error))?;
            for id in page.iter().filter_map(|entry| keys::build_of(&entry.key)) {
                let records = self.records(id).await?;
                if let Some(version) = version(repository, &records)
                    && !goes_on(records, version)
                {
                    return Ok(());
                }
            }
            seen += page.len();
            match page.into_iter().next_back() {
                Some(entry) => after = Some(entry.key),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    pub(super) async fn remove_version(
        &self,
        request: v1::RemoveImageRequest,
    ) -> Result<v1::RemoveImageResponse, Refused> {
        let reference = parse("reference", &request.reference)?;
        let secrets = BuildSecrets::from_wire([], request.credentials).map_err(Refused::invalid)?;
        let mut versions: BTreeSet<Digest> = BTreeSet::new();
        let mut builds = Vec::new();
        self.each_version(reference.repository(), |records, version| {
            versions.extend(records.build.published.as_ref().map(|published| published.digest.clone()));
            builds.push((records.build.id, version.digest));
            true
        })
        .await?;
        let removed = self.publisher.remove(&reference, versions, secrets.credentials, request.dry_run).await;
        let removed = removed.map_err(|message| Refused::new(Reason::WrongState, message))?;
        if !request.dry_run {
            let gone = |digest: &String| removed.deleted.iter().any(|deleted| deleted.to_string() == *digest);
            let mut txn = Txn::new();
            for (build, _) in builds.iter().filter(|(_, digest)| gone(digest)) {
                txn.delete(keys::image(reference.repository(), *build));
            }
            if !txn.is_empty() {
                self.driver.store().commit(txn).await.map_err(|error| store_failed(&error))?;
            }
        }
        Ok(v1::RemoveImageResponse {
            untagged: removed.tag.unwrap_or_default(),
            deleted: removed.deleted.iter().map(ToString::to_string).collect(),
            kept: removed
                .kept
                .into_iter()
                .map(|(digest, reason)| v1::KeptManifest { digest: digest.to_string(), reason })
                .collect(),
        })
    }
}

fn parse(field: &str, text: &str) -> Result<ImageReference, Refused> {
    text.parse().map_err(|error| Refused::invalid(vec![Violation::new(field, error)]))
}

/// Every platform of either version, those of `from` first.
fn platforms(from: &v1::ImageVersion, to: &v1::ImageVersion) -> Vec<v1::PlatformDifference> {
    let named =
        |version: &v1::ImageVersion, name: &str| version.platforms.iter().find(|one| one.platform == name).cloned();
    let mut names: Vec<&String> = from.platforms.iter().chain(&to.platforms).map(|one| &one.platform).collect();
    let mut known = BTreeSet::new();
    names.retain(|name| known.insert(*name));
    let difference =
        |name: &String| v1::PlatformDifference { platform: name.clone(), from: named(from, name), to: named(to, name) };
    names.into_iter().map(difference).collect()
}

/// What the two builds were asked for differently.
fn options(from: &BuildView, to: &BuildView) -> Vec<v1::BuildDifference> {
    let mut all = Vec::new();
    let (from, to) = (&from.build.spec, &to.build.spec);
    let mut compare = |option: String, from: Option<&String>, to: Option<&String>| {
        if from != to {
            let text = |value: Option<&String>| value.cloned().unwrap_or_default();
            all.push(v1::BuildDifference { option, from: text(from), to: text(to) });
        }
    };
    compare("source".to_owned(), Some(&from.source), Some(&to.source));
    compare("--target".to_owned(), from.target.as_ref(), to.target.as_ref());
    for (flag, from, to) in [("--build-arg", &from.build_args, &to.build_args), ("--label", &from.labels, &to.labels)] {
        let keys: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
        for key in keys {
            compare(format!("{flag} {key}"), from.get(key), to.get(key));
        }
    }
    all
}
