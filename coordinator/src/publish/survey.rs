//! What the tags of a build name before any of them moves, and whether they may move from there.
//!
//! Taken while the legs are checked, so that it costs no time of its own.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use kiln_common::{Digest, ImageReference};
use kiln_scheduler::effect::PublishJob;

use super::{
    error::{Fault, RegistryError},
    registry::{Pointer, Session},
};

/// What each tag names; an error where the registry does not say.
#[derive(Debug)]
pub(super) struct Survey(BTreeMap<ImageReference, Result<Option<Digest>, RegistryError>>);

impl Survey {
    pub async fn take(session: &Session, tags: &[ImageReference]) -> Self {
        let looks = tags.iter().map(|tag| async move { (tag.clone(), look(session, tag).await) });
        Self(join_all(looks).await.into_iter().collect())
    }

    /// What the tag names, as far as that is known.
    pub fn named(&self, tag: &ImageReference) -> Option<&Digest> {
        self.0.get(tag)?.as_ref().ok()?.as_ref()
    }

    /// All of them, for a build that is to leave alone what someone else moves meanwhile.
    ///
    /// # Errors
    /// The first registry that does not say.
    pub fn complete(self) -> Result<BTreeMap<ImageReference, Option<Digest>>, RegistryError> {
        self.0.into_iter().map(|(tag, named)| named.map(|named| (tag, named))).collect()
    }

    /// Whether all tags may come to name `target`: those that this build moved before still name what it left there, and
    /// with `--if-unchanged` the others what they named when it began.
    ///
    /// # Errors
    /// The first tag that someone else moved.
    pub fn allows(&self, job: &PublishJob, target: &Digest) -> Result<(), RegistryError> {
        job.spec.tags.iter().try_for_each(|tag| self.allows_tag(job, tag, target))
    }

    fn allows_tag(&self, job: &PublishJob, tag: &ImageReference, target: &Digest) -> Result<(), RegistryError> {
        let left = job.earlier.as_ref().filter(|earlier| earlier.tags.contains(&tag.to_string()));
        let (expected, since) = match (left, job.spec.expected_tags.get(tag)) {
            (Some(earlier), _) => (Some(&earlier.digest), "what this build left there"),
            (None, Some(expected)) => (expected.as_ref(), "what it named when the build began"),
            (None, None) => return Ok(()),
        };
        let named = match self.0.get(tag) {
            Some(Ok(named)) => named.as_ref(),
            Some(Err(error)) => return Err(error.clone()),
            None => None,
        };
        if named == expected || named == Some(target) {
            return Ok(());
        }
        let tell = |digest: Option<&Digest>| digest.map_or_else(|| "nothing".to_owned(), ToString::to_string);
        let message = format!(
            "`{tag}` names {}, not {since} ({}): someone else moved it; no tag was moved, a new build starts from there",
            tell(named),
            tell(expected)
        );
        Err(RegistryError::new(Fault::Final, message))
    }
}

async fn look(session: &Session, tag: &ImageReference) -> Result<Option<Digest>, RegistryError> {
    match tag.tag() {
        Some(name) => session.find(tag.repository(), Pointer::Tag(name)).await,
        None => Ok(None),
    }
}
