//! The last step: every tag of the build, in every repository, comes to name the target; none earlier, none unsaid.

use futures_util::future::{join_all, try_join_all};
use kiln_common::ImageReference;

use super::{
    error::{Fault, RegistryError},
    registry::{Pointer, Session},
    target::Target,
};

/// Puts the target by digest into every repository and reads it back.
pub(super) async fn push(session: &Session, tags: &[ImageReference], target: &Target) -> Result<(), RegistryError> {
    let mut repositories: Vec<_> = tags.iter().map(ImageReference::repository).collect();
    repositories.sort();
    repositories.dedup();
    let pushes = repositories.into_iter().map(|repository| async move {
        let at = Pointer::Digest(&target.digest);
        session.put_manifest(repository, at, &target.media_type, &target.bytes).await?;
        session.manifest(repository, at).await.map(drop)
    });
    try_join_all(pushes).await.map(drop)
}

/// Which tags name the target now, and why the others do not.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub tags: Vec<String>,
    pub failures: Vec<(String, RegistryError)>,
}

/// Moves all tags together. `is_retry`: some may have moved before, and a registry may not let them move again.
pub(super) async fn move_all(session: &Session, tags: &[ImageReference], target: &Target, is_retry: bool) -> Moved {
    let moves = tags.iter().map(|tag| async move { (tag.to_string(), move_one(session, tag, target, is_retry).await) });
    let mut moved = Moved::default();
    for (tag, outcome) in join_all(moves).await {
        match outcome {
            Ok(()) => moved.tags.push(tag),
            Err(error) => moved.failures.push((tag, error)),
        }
    }
    moved
}

async fn move_one(
    session: &Session,
    tag: &ImageReference,
    target: &Target,
    is_retry: bool,
) -> Result<(), RegistryError> {
    let Some(name) = tag.tag() else {
        return Err(RegistryError::new(Fault::Final, format!("`{tag}` has no tag")));
    };
    let (repository, at) = (tag.repository(), Pointer::Tag(name));
    if is_retry && session.find(repository, at).await?.as_ref() == Some(&target.digest) {
        return Ok(());
    }
    if let Err(error) = session.put_manifest(repository, at, &target.media_type, &target.bytes).await {
        // An answer may have been lost after the tag moved, and an immutable tag refuses even what it already names.
        let stands = session.find(repository, at).await.ok().flatten();
        return if stands.as_ref() == Some(&target.digest) { Ok(()) } else { Err(explain(tag, error)) };
    }
    let found = session.digest_of(repository, at).await?;
    if found == target.digest {
        return Ok(());
    }
    Err(RegistryError::new(
        Fault::Final,
        format!("after the push it names {found}, not {}; someone else moved it meanwhile", target.digest),
    ))
}

fn explain(tag: &ImageReference, error: RegistryError) -> RegistryError {
    let says_immutable = error.message.to_ascii_lowercase().contains("immutable");
    if error.fault == Fault::Final && says_immutable {
        let message = format!("{} (tags of {} are immutable; choose a new one)", error.message, tag.repository());
        return RegistryError { message, ..error };
    }
    error
}
