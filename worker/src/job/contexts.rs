//! The trees of one build, opened before the engine is asked anything, and the log's steps that say so.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use kiln_common::{
    BuildSpec, Timestamp,
    context::{ChunkId, ContextDigest},
    spec::NamedContext,
};
use kiln_proto::{
    convert::timestamp_to_wire,
    v1::{Vertex, VertexStatus, progress_entry::Event},
};

use super::{
    assignment::Assignment,
    entry,
    trees::{OpenTree, OpenTrees},
};
use crate::{
    context::{ContextTree, FileSyncService},
    engine::{
        BuildError,
        job::{CONTEXT_DIR, DOCKERFILE_DIR, named_dir},
    },
    logs::AttemptLog,
};

const VERTEX: &str = "kiln:context";

/// The trees of an attempt.
#[derive(Default)]
pub struct Trees {
    /// By the names that the engine asks for.
    by_name: BTreeMap<String, Arc<ContextTree>>,
    open: BTreeMap<ContextDigest, OpenTree>,
}

/// Opens every tree of the build. A tree that several names share is opened once.
///
/// # Errors
/// [`BuildError::Infrastructure`]: the farm has checked at submit that it has every chunk.
pub async fn open(open: &OpenTrees, assignment: &Assignment, log: &AttemptLog) -> Result<Trees, BuildError> {
    let mut vertex = Vertex {
        digest: VERTEX.to_owned(),
        name: "[kiln] open the build context".to_owned(),
        started_at: Some(timestamp_to_wire(Timestamp::now())),
        ..Vertex::default()
    };
    log.append(entry(Event::Vertex(vertex.clone())));
    let opened = open_each(open, assignment).await;
    vertex.completed_at = Some(timestamp_to_wire(Timestamp::now()));
    vertex.error = opened.as_ref().err().map(ToString::to_string).unwrap_or_default();
    log.append(entry(Event::Vertex(vertex)));
    opened
}

async fn open_each(open: &OpenTrees, assignment: &Assignment) -> Result<Trees, BuildError> {
    let mut trees = Trees::default();
    if assignment.spec.context.is_none() {
        trees.by_name.insert(CONTEXT_DIR.to_owned(), ContextTree::empty());
    }
    for (name, digest) in names(&assignment.spec) {
        let tree = match trees.open.entry(digest) {
            Entry::Occupied(open) => open.get().tree.clone(),
            Entry::Vacant(free) => {
                let opened = open.open(digest, assignment.attempt).await;
                let failed = |error| BuildError::Infrastructure(format!("the context {name}: {error}"));
                free.insert(opened.map_err(failed)?).tree.clone()
            }
        };
        trees.by_name.insert(name, tree);
    }
    Ok(trees)
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
        FileSyncService::new(self.by_name.clone())
    }

    /// Bytes that came from the coordinator; says so in the log. What legs that read together fetched counts for one.
    pub fn fetched(&self, log: &AttemptLog) -> u64 {
        let bytes = self.open.values().map(|open| open.tree.take_bytes_fetched()).sum::<u64>();
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
        self.open.values().find_map(|open| open.tree.failure()).map(ToString::to_string)
    }
}
