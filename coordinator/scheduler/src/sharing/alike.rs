//! Which builds ask for the same, so that their legs of one platform can share an attempt.
//!
//! The same is: whatever decides what a leg gives (its trees, Dockerfile, arguments, labels, what is attached), where it is
//! pushed, on which workers it may run, and what it may read: its project and its registry credentials. How urgently it is
//! wanted and for how long is not.
//!
//! Invariant: a follower gets nothing that it could not have built by itself. An attempt reads bases and writes layers with
//! its build's credentials, so only builds with the very same ones share, and builds that were given secrets or an SSH agent
//! share with nobody. That both may push where they push is checked when they are submitted.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use kiln_common::{
    BuildSpec, EmulationPolicy, Repository,
    context::ContextDigest,
    limits,
    smoke::Smoke,
    spec::{AddHost, Annotation, CacheOption, Compression, Dockerfile, MediaTypes, NamedContext, NetworkMode, Ulimit},
};

use crate::{
    record::{BuildRecord, CredentialsMark},
    slab::{AlikeIx, BuildIx, Slab},
};

/// Groups of builds that are not final and ask for the same.
#[derive(Debug, Default)]
pub(crate) struct Alike {
    groups: Slab<AlikeIx, Group>,
    by_hash: BTreeSet<(u64, AlikeIx)>,
}

#[derive(Debug)]
struct Group {
    spec: Arc<BuildSpec>,
    credentials: Option<CredentialsMark>,
    hash: u64,
    /// In the order in which they came.
    builds: Vec<BuildIx>,
}

impl Alike {
    /// The build's group; `None` for one that shares nothing.
    pub(crate) fn join(
        &mut self,
        build: BuildIx,
        spec: &Arc<BuildSpec>,
        credentials: Option<&CredentialsMark>,
    ) -> Option<AlikeIx> {
        let essence = Essence::of(spec, credentials)?;
        let mut hasher = DefaultHasher::new();
        essence.hash(&mut hasher);
        let hash = hasher.finish();
        let same_hash = self.by_hash.range((hash, AlikeIx(0))..=(hash, AlikeIx(u32::MAX)));
        let known = same_hash.map(|(_, at)| *at).find(|at| {
            let group = &self.groups[*at];
            group.builds.len() < limits::SHARING_BUILDS
                && Essence::of(&group.spec, group.credentials.as_ref()).as_ref() == Some(&essence)
        });
        let at = known.unwrap_or_else(|| {
            let at = self.groups.insert(Group {
                spec: Arc::clone(spec),
                credentials: credentials.cloned(),
                hash,
                builds: Vec::new(),
            });
            self.by_hash.insert((hash, at));
            at
        });
        self.groups[at].builds.push(build);
        Some(at)
    }

    /// False when the group is gone with its last build.
    pub(crate) fn leave(&mut self, at: AlikeIx, build: BuildIx) -> bool {
        let group = &mut self.groups[at];
        group.builds.retain(|member| *member != build);
        if !group.builds.is_empty() {
            return true;
        }
        if let Some(group) = self.groups.remove(at) {
            self.by_hash.remove(&(group.hash, at));
        }
        false
    }

    pub(crate) fn builds(&self, at: AlikeIx) -> &[BuildIx] {
        &self.groups[at].builds
    }

    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }
}

/// What two builds have in common whose legs are the same.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Essence<'a> {
    project: &'a str,
    credentials: Option<&'a CredentialsMark>,
    context: Option<&'a ContextDigest>,
    dockerfile: &'a Dockerfile,
    named_contexts: &'a BTreeMap<String, NamedContext>,
    /// A digest must be in every repository that a build's tags are in.
    repositories: BTreeSet<&'a Repository>,
    build_args: &'a BTreeMap<String, String>,
    target: Option<&'a str>,
    labels: &'a BTreeMap<String, String>,
    annotations: &'a [Annotation],
    pull: bool,
    cache_from: &'a [CacheOption],
    cache_to: &'a [CacheOption],
    network: NetworkMode,
    add_hosts: &'a [AddHost],
    shm_size: Option<u64>,
    ulimits: &'a [Ulimit],
    attestations: [Option<&'a str>; 2],
    media_types: MediaTypes,
    compression: Compression,
    rewrite_timestamp: bool,
    smoke: Option<&'a Smoke>,
    emulation: EmulationPolicy,
    required_labels: &'a BTreeMap<String, String>,
}

impl<'a> Essence<'a> {
    /// `None` for a build that shares nothing: its legs see what only this one was given, or it asks for a fresh result.
    fn of(spec: &'a BuildSpec, credentials: Option<&'a CredentialsMark>) -> Option<Self> {
        // All fields by name: whoever adds one decides what it means here.
        let BuildSpec {
            context,
            dockerfile,
            named_contexts,
            platforms: _,
            tags,
            build_args,
            target,
            labels,
            annotations,
            secret_ids,
            ssh_ids,
            no_cache,
            no_cache_stages,
            pull,
            cache_from,
            cache_to,
            network,
            add_hosts,
            shm_size,
            ulimits,
            provenance,
            sbom,
            media_types,
            verify: _,
            verify_allow: _,
            compression,
            rewrite_timestamp,
            smoke,
            if_unchanged: _,
            expected_tags: _,
            sign: _,
            emulation,
            required_labels,
            priority: _,
            timeout: _,
            queue_timeout: _,
            project,
            source: _,
        } = spec;
        let is_private = !secret_ids.is_empty() || !ssh_ids.is_empty() || *no_cache || !no_cache_stages.is_empty();
        (!is_private).then(|| Self {
            project,
            credentials,
            context: context.as_ref(),
            dockerfile,
            named_contexts,
            repositories: tags.iter().map(|tag| tag.repository()).collect(),
            build_args,
            target: target.as_deref(),
            labels,
            annotations,
            pull: *pull,
            cache_from,
            cache_to,
            network: *network,
            add_hosts,
            shm_size: *shm_size,
            ulimits,
            attestations: [provenance.as_deref(), sbom.as_deref()],
            media_types: *media_types,
            compression: *compression,
            rewrite_timestamp: *rewrite_timestamp,
            smoke: smoke.as_ref(),
            emulation: *emulation,
            required_labels,
        })
    }
}

/// Whether the legs of two builds are the same where their platform is.
#[must_use]
pub fn are_alike(a: &BuildRecord, b: &BuildRecord) -> bool {
    let [a, b] = [a, b].map(|build| Essence::of(&build.spec, build.credentials.as_ref()));
    a.is_some() && a == b
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{AMD64, ARM64, spec, submitted};

    fn same(change: impl FnOnce(&mut BuildSpec)) -> bool {
        let mut other = spec(&[AMD64]);
        change(&mut other);
        are_alike(&submitted(spec(&[AMD64])), &submitted(other))
    }

    fn with_credentials(mark: Option<&str>) -> BuildRecord {
        BuildRecord { credentials: mark.map(|mark| CredentialsMark(mark.into())), ..submitted(spec(&[AMD64])) }
    }

    #[test]
    fn who_waits_and_how_urgently_makes_no_difference() {
        assert!(same(|spec| spec.priority = 3));
        assert!(same(|spec| spec.timeout = Duration::from_secs(7)));
        assert!(same(|spec| spec.queue_timeout = Some(Duration::from_secs(7))));
        assert!(same(|spec| spec.source = "elsewhere".into()));
        assert!(same(|spec| spec.tags[0] = "r.example/app:2".parse().expect("a tag")));
        assert!(are_alike(&submitted(spec(&[AMD64])), &submitted(spec(&[ARM64, AMD64]))));
    }

    #[test]
    fn what_decides_the_result_or_its_place_does() {
        let tree = ContextDigest(kiln_common::context::ChunkId::of(b"another"));
        let pair = || BTreeMap::from([("K".to_owned(), "v".to_owned())]);
        assert!(!same(|spec| spec.context = Some(tree)));
        assert!(!same(|spec| spec.dockerfile.tree = tree));
        assert!(!same(|spec| spec.dockerfile.filename = "other".into()));
        assert!(!same(|spec| spec.build_args = pair()));
        assert!(!same(|spec| spec.target = Some("debug".into())));
        assert!(!same(|spec| spec.labels = pair()));
        assert!(!same(|spec| spec.pull = true));
        assert!(!same(|spec| spec.provenance = Some("mode=max".into())));
        assert!(!same(|spec| spec.sbom = Some(String::new())));
        assert!(!same(|spec| spec.media_types = MediaTypes::Docker));
        assert!(!same(|spec| spec.network = NetworkMode::Host));
        assert!(!same(|spec| spec.shm_size = Some(1)));
        assert!(!same(|spec| spec.emulation = EmulationPolicy::Never));
        assert!(!same(|spec| spec.required_labels = pair()));
        assert!(!same(|spec| spec.tags.push("mirror.example/app:1".parse().expect("a tag"))));
        assert!(!same(|spec| spec.tags[0] = "r.example/other:1".parse().expect("a tag")));
        assert!(!same(|spec| spec.named_contexts = BTreeMap::from([("base".to_owned(), NamedContext::Tree(tree))])));
    }

    #[test]
    fn builds_of_other_projects_or_with_other_credentials_share_nothing() {
        assert!(!same(|spec| spec.project = "other".into()));
        let (none, alice, bob) = (with_credentials(None), with_credentials(Some("a")), with_credentials(Some("b")));
        assert!(are_alike(&alice, &alice.clone()) && are_alike(&none, &none.clone()));
        assert!(!are_alike(&alice, &bob) && !are_alike(&alice, &none) && !are_alike(&none, &alice));
    }

    #[test]
    fn secrets_agents_and_fresh_builds_are_never_shared() {
        let private: [fn(&mut BuildSpec); 4] = [
            |spec| spec.secret_ids = vec!["token".into()],
            |spec| spec.ssh_ids = vec!["default".into()],
            |spec| spec.no_cache = true,
            |spec| spec.no_cache_stages = vec!["build".into()],
        ];
        for change in private {
            let mut spec = spec(&[AMD64]);
            change(&mut spec);
            let build = submitted(spec);
            assert!(!are_alike(&build, &build.clone()));
        }
    }

    #[test]
    fn a_group_takes_so_many_builds_and_no_more() {
        let (mut alike, record) = (Alike::default(), submitted(spec(&[AMD64])));
        let most = u32::try_from(limits::SHARING_BUILDS).expect("few");
        let groups: Vec<_> =
            (0..=most).map(|number| alike.join(BuildIx(number), &record.spec, None).expect("shares")).collect();
        assert!(groups[..limits::SHARING_BUILDS].iter().all(|group| *group == groups[0]));
        assert_ne!(groups[limits::SHARING_BUILDS], groups[0]);
        for (number, group) in (0..).zip(groups) {
            alike.leave(group, BuildIx(number));
        }
        assert_eq!((alike.len(), alike.by_hash.len()), (0, 0));
    }
}
