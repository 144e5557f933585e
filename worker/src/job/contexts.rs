//! The trees of one build, opened before the engine is asked anything, and the log's steps that say so.

use std::{collections::BTreeMap, sync::Arc};

use kiln_common::{
    BuildSpec, Timestamp,
    context::{ChunkId, ContextDigest},
    spec::NamedContext,
};
use kiln_proto::{
    convert::timestamp_to_wire,
    v1::{Vertex, VertexStatus, progress_entry::Event},
};

use super::{assignment::Assignment, chunks::LinkSource, entry};
use crate::{
    context::{ChunkSource, ContextStore, ContextTree, FileSyncService},
    engine::{
        BuildError,
        job::{CONTEXT_DIR, DOCKERFILE_DIR, named_dir},
    },
    logs::AttemptLog,
    session::Link,
};

const VERTEX: &str = "kiln:context";

/// Open trees by the names that the engine asks for.
pub struct Trees(BTreeMap<String, Arc<ContextTree>>);

/// Opens every tree of the build. A tree that several names share is opened once.
///
/// # Errors
/// [`BuildError::Infrastructure`]: the farm has checked at submit that it has every chunk.
pub async fn open(
    store: &Arc<ContextStore>,
    link: &Link,
    assignment: &Assignment,
    log: &AttemptLog,
) -> Result<Trees, BuildError> {
    let mut vertex = Vertex {
        digest: VERTEX.to_owned(),
        name: "[kiln] open the build context".to_owned(),
        started_at: Some(timestamp_to_wire(Timestamp::now())),
        ..Vertex::default()
    };
    log.append(entry(Event::Vertex(vertex.clone())));
    let source: Arc<dyn ChunkSource> = Arc::new(LinkSource { link: link.clone(), attempt: assignment.attempt });
    let opened = open_each(store, &source, &assignment.spec).await;
    vertex.completed_at = Some(timestamp_to_wire(Timestamp::now()));
    vertex.error = opened.as_ref().err().map(ToString::to_string).unwrap_or_default();
    log.append(entry(Event::Vertex(vertex)));
    opened
}

async fn open_each(
    store: &Arc<ContextStore>,
    source: &Arc<dyn ChunkSource>,
    spec: &BuildSpec,
) -> Result<Trees, BuildError> {
    let mut by_digest: BTreeMap<ContextDigest, Arc<ContextTree>> = BTreeMap::new();
    let mut by_name = BTreeMap::new();
    if spec.context.is_none() {
        by_name.insert(CONTEXT_DIR.to_owned(), ContextTree::empty());
    }
    for (name, digest) in names(spec) {
        let tree = match by_digest.get(&digest) {
            Some(tree) => tree.clone(),
            None => {
                let tree = ContextTree::open(store, source.clone(), digest).await;
                let tree = tree.map_err(|error| BuildError::Infrastructure(format!("the context {name}: {error}")))?;
                by_digest.insert(digest, tree.clone());
                tree
            }
        };
        by_name.insert(name, tree);
    }
    Ok(Trees(by_name))
}

fn names(spec: &BuildSpec) -> impl Iterator<Item = (String, ContextDigest)> {
    let context = spec.context.map(|digest| (CONTEXT_DIR.to_owned(), digest));
    let named = spec.named_contexts.iter().filter_map(|(name, context)| match context {
        NamedContext::Tree(digest) => Some((named_dir(name), *digest)),
        NamedContext::Reference(_) => None,
    });
    context.into_iter().chain([(DOCKERFILE_DIR.to_owned(), spec.dockerfile.tree)]).chain(named)
}

/// The same for every build of a project, so that the engine transfers only what changed since the last one.
pub fn shared_key(spec: &BuildSpec) -> String {
    ChunkId::of(spec.project.as_bytes()).to_string()
}

impl Trees {
    #[must_use]
    pub fn service(&self) -> FileSyncService {
        FileSyncService::new(self.0.clone())
    }

    /// Bytes that came from the coordinator; says so in the log.
    pub fn fetched(&self, log: &AttemptLog) -> u64 {
        let mut seen: Vec<&Arc<ContextTree>> = Vec::new();
        for tree in self.0.values() {
            if !seen.iter().any(|known| Arc::ptr_eq(known, tree)) {
                seen.push(tree);
            }
        }
        let bytes = seen.iter().map(|tree| tree.bytes_fetched()).sum::<u64>();
        let current = i64::try_from(bytes).unwrap_or(i64::MAX);
        let now = Some(timestamp_to_wire(Timestamp::now()));
        log.append(entry(Event::Status(VertexStatus {
            vertex: VERTEX.to_owned(),
            id: "fetched".to_owned(),
            name: "context fetched from the farm".to_owned(),
            current,
            total: current,
            started_at: now,
            completed_at: now,
        })));
        bytes
    }

    /// Why a tree could not be served, if one could not.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.0.values().find_map(|tree| tree.failure()).map(ToString::to_string)
    }
}
