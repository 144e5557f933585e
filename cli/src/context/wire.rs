//! The farm as an upload sees it: two calls.

use kiln_proto::v1::{FindMissingRequest, UploadRequest, UploadResponse, context_service_client::ContextServiceClient};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, body::Body, client::GrpcService, codegen::StdError};

/// `ContextService`, over whatever the client's channel is wrapped in.
#[async_trait::async_trait]
pub trait FarmChunks: Send + Sync + 'static {
    /// Ids joined, 32 bytes each; those that the farm lacks, in the same order.
    async fn find_missing(&self, ids: Vec<u8>) -> Result<Vec<u8>, Status>;

    /// Answers once everything is durable.
    async fn upload(&self, requests: ReceiverStream<UploadRequest>) -> Result<UploadResponse, Status>;
}

#[async_trait::async_trait]
impl<T> FarmChunks for ContextServiceClient<T>
where
    T: GrpcService<Body> + Clone + Send + Sync + 'static,
    T::Future: Send,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    async fn find_missing(&self, ids: Vec<u8>) -> Result<Vec<u8>, Status> {
        Ok(Self::find_missing(&mut self.clone(), FindMissingRequest { ids }).await?.into_inner().ids)
    }

    async fn upload(&self, requests: ReceiverStream<UploadRequest>) -> Result<UploadResponse, Status> {
        Ok(Self::upload(&mut self.clone(), requests).await?.into_inner())
    }
}
