//! Builds in pages, newest first.
//!
//! A page token is the store's key of the last build of the page before, so a page neither skips nor repeats when new
//! builds come in between.

use kiln_common::{Reason, limits, spec::Violation};
use kiln_proto::{status::Refused, v1};

use super::{Api, store_failed};
use crate::store::{
    Entry, keys, records,
    records::{Phase, Summary},
};

/// Keys that one page may look at; a filter that matches little ends its page early, with a token to go on.
const KEYS_PER_PAGE: usize = 20_000;

impl Api {
    pub(super) async fn list_builds(&self, request: v1::ListBuildsRequest) -> Result<v1::ListBuildsResponse, Refused> {
        let filter = Filter::from_wire(&request)?;
        let size = page_size(request.page_size)?;
        let mut after = page_key(keys::NEWEST, &request.page_token)?;
        let (mut builds, mut seen) = (Vec::new(), 0);
        loop {
            let page = self.driver.store().range(keys::NEWEST, after.as_deref(), limits::PAGE_SIZE_MAX).await;
            let page = page.map_err(|error| store_failed(&error))?;
            let is_last = page.len() < limits::PAGE_SIZE_MAX;
            for entry in page {
                if builds.len() == size || seen == KEYS_PER_PAGE {
                    return Ok(v1::ListBuildsResponse { builds, next_page_token: token_of(after) });
                }
                seen += 1;
                if let Some(id) = keys::build_of(&entry.key).filter(|_| filter.allows(&entry)) {
                    let records = self.records(id).await?;
                    builds.push(self.show_records(records).await?);
                }
                after = Some(entry.key);
            }
            if is_last {
                return Ok(v1::ListBuildsResponse { builds, next_page_token: String::new() });
            }
        }
    }
}

struct Filter {
    phases: Vec<Phase>,
    project: String,
    repository: Option<kiln_common::Repository>,
}

impl Filter {
    fn from_wire(request: &v1::ListBuildsRequest) -> Result<Self, Refused> {
        let repository = match request.repository.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error| Refused::invalid(vec![Violation::new("repository", error)]))?),
        };
        Ok(Self { phases: request.states().filter_map(phase).collect(), project: request.project.clone(), repository })
    }

    fn allows(&self, entry: &Entry) -> bool {
        let Ok(summary) = records::decode::<Summary>(entry) else { return false };
        (self.phases.is_empty() || self.phases.contains(&summary.state))
            && (self.project.is_empty() || self.project == summary.project)
            && self.repository.as_ref().is_none_or(|repository| summary.repositories.contains(repository))
    }
}

const fn phase(state: v1::BuildState) -> Option<Phase> {
    match state {
        v1::BuildState::Unspecified => None,
        v1::BuildState::Queued => Some(Phase::Queued),
        v1::BuildState::Running => Some(Phase::Running),
        v1::BuildState::Publishing => Some(Phase::Publishing),
        v1::BuildState::Succeeded => Some(Phase::Succeeded),
        v1::BuildState::Incomplete => Some(Phase::Incomplete),
        v1::BuildState::Failed => Some(Phase::Failed),
        v1::BuildState::Cancelled => Some(Phase::Cancelled),
    }
}

pub(super) fn page_size(asked: u32) -> Result<usize, Refused> {
    match usize::try_from(asked).unwrap_or(usize::MAX) {
        0 => Ok(limits::PAGE_SIZE_DEFAULT),
        size if size <= limits::PAGE_SIZE_MAX => Ok(size),
        size => {
            let problem = format!("{size}; at most {} are allowed", limits::PAGE_SIZE_MAX);
            Err(Refused::invalid(vec![Violation::new("page_size", problem)]))
        }
    }
}

/// A page token is what follows the prefix in a key.
pub(super) fn page_key(prefix: &str, token: &str) -> Result<Option<String>, Refused> {
    let is_sound = token.len() <= 64 && token.bytes().all(|b| b.is_ascii_hexdigit());
    match (token.is_empty(), is_sound) {
        (true, _) => Ok(None),
        (false, true) => Ok(Some(format!("{prefix}{token}"))),
        (false, false) => Err(Refused::new(Reason::InvalidArgument, "the page token is not one of this listing")),
    }
}

pub(super) fn token_of(key: Option<String>) -> String {
    key.and_then(|key| key.rsplit(['/', '@']).next().map(str::to_owned)).unwrap_or_default()
}
