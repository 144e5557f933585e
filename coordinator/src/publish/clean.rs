//! Taking a version out of a repository, with the children that nothing else needs.
//!
//! Invariants: a manifest that any other tag names, or that any other index refers to, stays; an index goes before its
//! children, so that none stands without them. What cannot be read for sure stops the removal before it begins.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use kiln_common::{Digest, ImageReference, Repository, limits};

use super::{
    error::{Fault, RegistryError},
    manifest::{self, Index},
    referrers,
    registry::{Pointer, Session},
    sign,
};
use crate::driver::publisher::Removed;

/// Manifests that are read at once.
const CONCURRENT: usize = 8;

/// What refers to what in a repository.
#[derive(Debug, Default)]
struct Inventory {
    tags: BTreeMap<String, Digest>,
    /// Children by index, of everything that may be pulled.
    children: BTreeMap<Digest, Vec<Digest>>,
}

/// What goes and what stays.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    tag: Option<String>,
    /// In this order.
    delete: Vec<Digest>,
    /// And why.
    keep: Vec<(Digest, String)>,
}

/// Removes the tag or the digest that `reference` names. `versions` are other indexes and manifests of the repository that
/// somebody may pull by digest.
pub(super) async fn remove(
    session: &Session,
    reference: &ImageReference,
    versions: &BTreeSet<Digest>,
    dry_run: bool,
) -> Result<Removed, RegistryError> {
    let repository = reference.repository();
    let inventory = Inventory::take(session, repository, reference, versions).await?;
    let plan = plan(&inventory, reference)?;
    if !dry_run {
        carry_out(session, repository, &inventory, &plan).await?;
    }
    Ok(Removed { tag: plan.tag, deleted: plan.delete, kept: plan.keep })
}

impl Inventory {
    async fn take(
        session: &Session,
        repository: &Repository,
        reference: &ImageReference,
        versions: &BTreeSet<Digest>,
    ) -> Result<Self, RegistryError> {
        let tags = session.tags(repository).await?;
        let named = stream::iter(tags).map(|tag| async move {
            let found = session.find(repository, Pointer::Tag(&tag)).await?;
            Ok::<_, RegistryError>(found.map(|digest| (tag, digest)))
        });
        let tags: Vec<Option<(String, Digest)>> = named.buffer_unordered(CONCURRENT).try_collect().await?;
        let tags: BTreeMap<String, Digest> = tags.into_iter().flatten().collect();
        let roots: BTreeSet<Digest> = tags.values().chain(versions).chain(reference.digest()).cloned().collect();
        let read = stream::iter(roots).map(|digest| async move {
            let children = children(session, repository, &digest).await?;
            Ok::<_, RegistryError>(children.map(|children| (digest, children)))
        });
        let children: Vec<Option<(Digest, Vec<Digest>)>> = read.buffer_unordered(CONCURRENT).try_collect().await?;
        Ok(Self { tags, children: children.into_iter().flatten().collect() })
    }

    /// What names or refers to the digest, other than the tag and the index that are to go.
    fn holder(&self, digest: &Digest, tag: Option<&str>, root: &Digest) -> Option<String> {
        let named = self.tags.iter().find(|(name, named)| Some(name.as_str()) != tag && *named == digest);
        if let Some((name, _)) = named {
            return Some(format!("the tag `{name}` names it"));
        }
        let index = self.children.iter().find(|(index, children)| *index != root && children.contains(digest));
        index.map(|(index, _)| format!("the index {index} refers to it"))
    }
}

/// What an index refers to; nothing for other manifests, `None` for what is not there.
async fn children(
    session: &Session,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<Vec<Digest>>, RegistryError> {
    let Some(fetched) = session.find_manifest(repository, Pointer::Digest(digest)).await? else { return Ok(None) };
    if !manifest::is_index(&fetched.content_type) {
        return Ok(Some(Vec::new()));
    }
    let index: Index = serde_json::from_slice(&fetched.bytes)
        .map_err(|error| RegistryError::new(Fault::Final, format!("{repository}@{digest} is not an index: {error}")))?;
    if index.manifests.len() > limits::INDEX_ENTRIES {
        return Err(RegistryError::new(Fault::Final, format!("{repository}@{digest} has too many entries")));
    }
    Ok(Some(index.manifests.into_iter().map(|child| child.digest).collect()))
}

fn plan(inventory: &Inventory, reference: &ImageReference) -> Result<Plan, RegistryError> {
    let refuse = |message: String| Err(RegistryError::new(Fault::Final, message));
    let tag = if reference.digest().is_some() { None } else { Some(reference.tag().unwrap_or("latest")) };
    let root = match (reference.digest(), tag) {
        (Some(digest), _) => digest,
        (None, tag) => match inventory.tags.get(tag.unwrap_or_default()) {
            Some(digest) => digest,
            None => return refuse(format!("`{reference}` does not exist")),
        },
    };
    let Some(children) = inventory.children.get(root) else { return refuse(format!("`{reference}` does not exist")) };
    if tag.is_none()
        && let Some(holder) = inventory.holder(root, None, root)
    {
        return refuse(format!("{root} stays: {holder}"));
    }
    let mut plan = Plan { tag: tag.map(str::to_owned), ..Plan::default() };
    if let Some(holder) = inventory.holder(root, tag, root) {
        plan.keep.push((root.clone(), holder));
        return Ok(plan);
    }
    plan.delete.push(root.clone());
    for child in children {
        match inventory.holder(child, tag, root) {
            Some(holder) => plan.keep.push((child.clone(), holder)),
            None if plan.delete.contains(child) => {}
            None => plan.delete.push(child.clone()),
        }
    }
    let companions = companions(inventory, &plan.delete);
    plan.delete.extend(companions);
    Ok(plan)
}

/// What is there for manifests that go alone: the lists of their referrers, and their signatures.
fn companions(inventory: &Inventory, gone: &[Digest]) -> Vec<Digest> {
    let tags: BTreeSet<String> =
        gone.iter().flat_map(|digest| [referrers::fallback_tag(digest), sign::signature_tag(digest)]).collect();
    let named: BTreeSet<&Digest> = tags.iter().filter_map(|tag| inventory.tags.get(tag)).collect();
    let listed = named.iter().filter_map(|list| inventory.children.get(*list)).flatten();
    let all: BTreeSet<&Digest> = listed.chain(named.iter().copied()).collect();
    let is_needed = |digest: &Digest| {
        let has_other_tag = inventory.tags.iter().any(|(tag, named)| named == digest && !tags.contains(tag));
        has_other_tag
            || inventory.children.iter().any(|(index, children)| !all.contains(index) && children.contains(digest))
    };
    let mut companions: Vec<&Digest> =
        all.iter().copied().filter(|digest| !gone.contains(digest) && !is_needed(digest)).collect();
    // Lists before what they list.
    companions.sort_by_key(|digest| inventory.children.get(*digest).is_none_or(Vec::is_empty));
    companions.into_iter().cloned().collect()
}

async fn carry_out(
    session: &Session,
    repository: &Repository,
    inventory: &Inventory,
    plan: &Plan,
) -> Result<(), RegistryError> {
    if let Some(tag) = &plan.tag
        && !session.delete(repository, Pointer::Tag(tag)).await?
    {
        // Registries without it delete a manifest with all of its tags.
        let Some(root) = inventory.tags.get(tag).filter(|root| plan.delete.contains(root)) else {
            let holder = plan.keep.first().map(|(_, holder)| holder.as_str()).unwrap_or_default();
            let message =
                format!("{} deletes no single tag, and `{tag}` shares its manifest: {holder}", repository.host());
            return Err(RegistryError::new(Fault::Final, message));
        };
        tracing::debug!(%repository, tag, %root, "the registry deletes no single tag; its manifest goes");
    }
    for digest in &plan.delete {
        if !session.delete(repository, Pointer::Digest(digest)).await? {
            let message = format!("{} does not allow to delete {digest}; turn deletion on there", repository.host());
            return Err(RegistryError::new(Fault::Final, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(fill: char) -> Digest {
        format!("sha256:{}", fill.to_string().repeat(64)).parse().expect("a digest")
    }

    fn inventory(tags: &[(&str, char)], children: &[(char, &str)]) -> Inventory {
        Inventory {
            tags: tags.iter().map(|(tag, fill)| ((*tag).to_owned(), digest(*fill))).collect(),
            children: children.iter().map(|(index, of)| (digest(*index), of.chars().map(digest).collect())).collect(),
        }
    }

    fn planned(inventory: &Inventory, reference: &str) -> Result<(String, String), String> {
        let reference = format!("r.example/a{reference}").parse().expect("a reference");
        let plan = plan(inventory, &reference).map_err(|error| error.message)?;
        let fills = |digests: &mut dyn Iterator<Item = &Digest>| {
            digests.map(|digest| digest.to_string().chars().last().expect("hex")).collect::<String>()
        };
        Ok((fills(&mut plan.delete.iter()), fills(&mut plan.keep.iter().map(|(digest, _)| digest))))
    }

    #[test]
    fn an_index_goes_with_the_children_that_nobody_else_has() {
        let all = inventory(&[("1", 'a'), ("2", 'b')], &[('a', "345"), ('b', "56"), ('c', "4")]);
        assert_eq!(planned(&all, ":1"), Ok(("a3".into(), "45".into())));
        assert_eq!(planned(&all, ":2"), Ok(("b6".into(), "5".into())));
    }

    #[test]
    fn a_version_under_another_tag_only_loses_this_one() {
        let all = inventory(&[("1", 'a'), ("latest", 'a')], &[('a', "34")]);
        assert_eq!(planned(&all, ":1"), Ok((String::new(), "a".into())));
        let by_digest = planned(&all, &format!("@{}", digest('a'))).expect_err("still named");
        assert!(by_digest.contains("the tag `1` names it"), "{by_digest}");
    }

    #[test]
    fn signatures_and_lists_of_referrers_go_with_what_they_are_for_alone() {
        let (list, signed) = (referrers::fallback_tag(&digest('a')), sign::signature_tag(&digest('3')));
        let kept = sign::signature_tag(&digest('4'));
        let tags = [("1", 'a'), ("2", 'b'), (&list, 'f'), (&signed, 'd'), (&kept, 'e')];
        let mut all = inventory(&tags, &[('a', "34"), ('b', "4"), ('f', "c"), ('c', ""), ('d', ""), ('e', "")]);
        assert_eq!(planned(&all, ":1"), Ok(("a3fcd".into(), "4".into())));
        // Somebody else names a signature too.
        all.tags.insert("mine".into(), digest('d'));
        assert_eq!(planned(&all, ":1"), Ok(("a3fc".into(), "4".into())));
    }

    #[test]
    fn a_child_that_has_a_tag_of_its_own_stays() {
        let all = inventory(&[("1", 'a'), ("arm", '3')], &[('a', "34"), ('3', "")]);
        assert_eq!(planned(&all, ":1"), Ok(("a4".into(), "3".into())));
        assert_eq!(planned(&all, ":arm"), Ok((String::new(), "3".into())));
        assert!(planned(&all, ":none").expect_err("missing").contains("does not exist"));
    }
}
