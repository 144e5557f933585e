//! The last step: every tag of the build, in every repository, comes to name the target; none earlier, none unsaid.

use futures_util::future::{join_all, try_join_all};
use kiln_common::{Digest, ImageReference};

use super::{
    error::{Fault, RegistryError},
    registry::{Pointer, Session},
    survey::Survey,
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

/// Moves all tags together. A registry whose tags never move again is recognised by the first one, before the others
/// have moved: where several tags of a repository are to move, one that names something already goes ahead.
pub(super) async fn move_all(session: &Session, tags: &[ImageReference], target: &Target, before: &Survey) -> Moved {
    let (ahead, rest) = pathfinders(tags, target, before);
    let mut moved = Moved::default();
    move_each(session, &ahead, target, before, &mut moved).await;
    match moved.failures.iter().find(|(_, error)| error.fault == Fault::Immutable) {
        None => move_each(session, &rest, target, before, &mut moved).await,
        Some((tag, _)) => {
            let message = format!("not tried, because `{tag}` cannot move");
            let left = rest.iter().map(|tag| (tag.to_string(), RegistryError::new(Fault::Final, message.clone())));
            let left: Vec<_> = left.collect();
            moved.failures.extend(left);
        }
    }
    let place = |name: &String| tags.iter().position(|tag| tag.to_string() == *name);
    moved.tags.sort_by_key(place);
    moved
}

/// Of each repository with several tags to move, the first that names something else now; and all the others.
fn pathfinders<'a>(
    tags: &'a [ImageReference],
    target: &Target,
    before: &Survey,
) -> (Vec<&'a ImageReference>, Vec<&'a ImageReference>) {
    let mut ahead: Vec<&ImageReference> = Vec::new();
    if tags.len() > 1 {
        for tag in tags {
            let is_new_ground = before.named(tag).is_some_and(|named| *named != target.digest);
            if is_new_ground && !ahead.iter().any(|known| known.repository() == tag.repository()) {
                ahead.push(tag);
            }
        }
    }
    let rest = tags.iter().filter(|tag| !ahead.contains(tag)).collect();
    (ahead, rest)
}

async fn move_each(session: &Session, tags: &[&ImageReference], target: &Target, before: &Survey, moved: &mut Moved) {
    let moves = tags.iter().map(|tag| async move { (tag.to_string(), move_one(session, tag, target, before).await) });
    for (tag, outcome) in join_all(moves).await {
        match outcome {
            Ok(()) => moved.tags.push(tag),
            Err(error) => moved.failures.push((tag, error)),
        }
    }
}

async fn move_one(
    session: &Session,
    tag: &ImageReference,
    target: &Target,
    before: &Survey,
) -> Result<(), RegistryError> {
    let Some(name) = tag.tag() else {
        return Err(RegistryError::new(Fault::Final, format!("`{tag}` has no tag")));
    };
    let (repository, at) = (tag.repository(), Pointer::Tag(name));
    // A publish that was interrupted may have moved it, and a registry may not let it move again.
    if before.named(tag) == Some(&target.digest) {
        return Ok(());
    }
    if let Err(error) = session.put_manifest(repository, at, &target.media_type, &target.bytes).await {
        // An answer may have been lost after the tag moved, and an immutable tag refuses even what it already names.
        let stands = session.find(repository, at).await.ok().flatten();
        return if stands.as_ref() == Some(&target.digest) { Ok(()) } else { Err(explain(tag, error, stands)) };
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

/// How registries say that a tag never moves again: ECR and Harbor, Artifact Registry, Nexus, ACR, Artifactory, GitLab.
const IMMUTABLE: [&str; 7] = [
    "immutable",
    "imagetagalreadyexists",
    "does not allow updating",
    "operation is disallowed on this",
    "is locked",
    "not have permission to overwrite",
    "protected tag",
];

fn explain(tag: &ImageReference, error: RegistryError, stands: Option<Digest>) -> RegistryError {
    let said = error.message.to_ascii_lowercase();
    let is_refusal = matches!(error.fault, Fault::Final | Fault::Denied);
    if !is_refusal || !IMMUTABLE.iter().any(|words| said.contains(words)) {
        return error;
    }
    let names = stands.map_or_else(String::new, |digest| format!(" and names {digest}"));
    let message = format!(
        "tags of {} are immutable: this one exists{names}; choose a new tag ({})",
        tag.repository(),
        error.message
    );
    RegistryError::new(Fault::Immutable, message)
}
