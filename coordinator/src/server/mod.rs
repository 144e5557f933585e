//! The gRPC server: all services behind one gate, on the TLS listener, within bounds.

pub mod listener;

use std::time::Duration;

use futures_util::Stream;
use kiln_common::limits;
use kiln_proto::{
    FILE_DESCRIPTOR_SET,
    v1::{
        build_service_server::BuildServiceServer, context_service_server::ContextServiceServer,
        farm_service_server::FarmServiceServer, worker_service_server::WorkerServiceServer,
    },
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{access::AccessLayer, api::Api, contexts::service::ContextUploads, sessions::Workers};

/// How often a silent connection is asked whether it lives, and how long it may take to say so.
const KEEPALIVE: Duration = Duration::from_secs(20);
const HEADER_BYTES: u32 = 32 * 1024;
/// HTTP/2 flow control: enough for one large message on its way, per stream and per connection.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Chunks of a context come in one frame each, where the protocol's own 16 KiB would cut most of them.
const FRAME_BYTES: u32 = 64 * 1024;

/// Everything that answers a call.
pub struct Services {
    pub access: AccessLayer,
    pub api: Api,
    pub contexts: ContextUploads,
    pub workers: Workers,
}

/// The descriptors for reflection do not read.
pub type ReflectionError = tonic_reflection::server::Error;

/// Serves until `stop`, then until the calls that run have ended.
///
/// # Errors
/// [`ReflectionError`] at once; the future's own error when the listener fails.
pub fn serve(
    incoming: impl Stream<Item = std::io::Result<listener::Connection>>,
    services: Services,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>>, ReflectionError> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // A new reporter says of the whole server that it serves.
    let (_, health) = tonic_health::server::health_reporter();
    let most = limits::MESSAGE_BYTES;
    let server = Server::builder()
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(services.access)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(health)
        .add_service(BuildServiceServer::new(services.api.clone()).max_decoding_message_size(most))
        .add_service(FarmServiceServer::new(services.api).max_decoding_message_size(most))
        .add_service(ContextServiceServer::new(services.contexts).max_decoding_message_size(most))
        .add_service(WorkerServiceServer::new(services.workers).max_decoding_message_size(most));
    Ok(server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()))
}
