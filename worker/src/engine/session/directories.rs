//! `moby.filesync.v1.FileSync`: the trees of whichever build runs in this session.

use std::sync::Arc;

use bollard_buildkit_proto::{fsutil::types::Packet, moby::filesync::packet::file_sync_server::FileSync};
use tonic::{Request, Response, Status, Streaming};

use super::served::Builds;
use crate::context::FileSyncService;

pub struct Directories(pub Arc<Builds>);

#[tonic::async_trait]
impl FileSync for Directories {
    type DiffCopyStream = <FileSyncService as FileSync>::DiffCopyStream;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        self.0.served()?.filesync.diff_copy(request).await
    }

    type TarStreamStream = <FileSyncService as FileSync>::TarStreamStream;

    async fn tar_stream(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        self.0.served()?.filesync.tar_stream(request).await
    }
}
