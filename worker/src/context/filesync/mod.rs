//! BuildKit's session service `moby.filesync.v1.FileSync`: serves local directories by name from [`ContextTree`]s.
//!
//! The engine is told every chosen entry (fsutil's `send.go`), asks for the files whose contents it lacks, and gets
//! them in batches that are read through the chunk store at once.

mod exchange;
mod request;
mod selection;
mod stat;

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use bollard_buildkit_proto::{fsutil::types::Packet, moby::filesync::packet::file_sync_server::FileSync};
use futures_util::{Stream, StreamExt};
use kiln_common::context::{ChunkId, pattern::InvalidPattern};
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::selection::Selection;
use super::ContextTree;

type PacketStream = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

/// Packets on their way to the engine: with the largest, a few MiB.
const PACKETS: usize = 64;

/// Mount it with `FileSyncServer::new`, which needs room for patterns in its headers:
/// `http2_max_header_list_size` of the session's server of at least [`kiln_common::limits::IGNORE_BYTES`].
#[derive(Debug, Clone)]
pub struct FileSyncService {
    trees: Arc<BTreeMap<String, Arc<ContextTree>>>,
    part: Option<Part>,
}

/// All that is given out, where that is less than the trees.
#[derive(Debug, Clone)]
struct Part {
    follow: Vec<String>,
    holds: ChunkId,
}

impl FileSyncService {
    /// Trees by the names that the engine asks for: `context`, `dockerfile`, those of named contexts.
    #[must_use]
    pub fn new(trees: BTreeMap<String, Arc<ContextTree>>) -> Self {
        Self { trees: Arc::new(trees), part: None }
    }

    /// What these paths of one tree lead to, and no more. Blocks for as long as choosing among all of its entries takes.
    ///
    /// # Errors
    /// When a path is no pattern.
    pub fn part(directory: &str, tree: Arc<ContextTree>, follow: Vec<String>) -> Result<Self, InvalidPattern> {
        let selection = Selection { follow: follow.clone(), ..Selection::default() };
        let holds = selection.of(tree.manifest())?.holds(tree.manifest());
        Ok(Self { part: Some(Part { follow, holds }), ..Self::new([(directory.to_owned(), tree)].into()) })
    }

    #[must_use]
    pub fn tree(&self, directory: &str) -> Option<&Arc<ContextTree>> {
        self.trees.get(directory)
    }

    /// Names all that is given out: services with the same names give out the same.
    #[must_use]
    pub fn names(&self) -> Vec<(&str, Option<ChunkId>)> {
        let part = self.part.as_ref().map(|part| part.holds);
        let whole = |tree: &ContextTree| tree.digest().map(|digest| digest.0);
        self.trees.iter().map(|(name, tree)| (name.as_str(), part.or_else(|| whole(tree)))).collect()
    }
}

#[tonic::async_trait]
impl FileSync for FileSyncService {
    type DiffCopyStream = PacketStream;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<PacketStream>, Status> {
        let asked = request::Asked::from_metadata(request.metadata())?;
        let no_access = || Status::not_found(format!("no access allowed to dir \"{}\"", asked.directory));
        let tree = self.trees.get(&asked.directory).ok_or_else(no_access)?.clone();
        if self.part.as_ref().is_some_and(|part| part.follow != asked.selection.follow) {
            return Err(no_access());
        }
        let selecting = tree.clone();
        let selected = spawn_blocking(move || asked.selection.of(selecting.manifest())).await;
        let selected = selected
            .map_err(|_| Status::internal("choosing files was interrupted"))?
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (packets, outgoing) = mpsc::channel(PACKETS);
        tokio::spawn(exchange::run(tree, selected, request.into_inner(), packets));
        Ok(Response::new(ReceiverStream::new(outgoing).boxed()))
    }

    type TarStreamStream = PacketStream;

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<PacketStream>, Status> {
        Err(Status::unimplemented("only DiffCopy is offered"))
    }
}

#[cfg(test)]
mod tests;
