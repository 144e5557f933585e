//! A byte stream inside `Control.Session`, for engines that hand no connection over.

use bollard_buildkit_proto::moby::buildkit::v1::{BytesMessage, control_client::ControlClient};
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Streaming,
    metadata::{AsciiMetadataKey, MetadataMap},
    transport::Channel,
};

use crate::engine::{EngineError, transport::BoxedIo};

/// One piece on the wire.
const PIECE_BYTES: usize = 64 * 1024;
const QUEUE: usize = 4;

/// The client's end, and the two tasks that keep it moving.
pub async fn open(
    channel: Channel,
    headers: &[(&'static str, String)],
) -> Result<(BoxedIo, Vec<AbortOnDropHandle<()>>), EngineError> {
    let (ours, theirs) = tokio::io::duplex(PIECE_BYTES);
    let (from_us, to_us) = tokio::io::split(theirs);
    let (sender, outgoing) = mpsc::channel(QUEUE);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    add_headers(request.metadata_mut(), headers)?;
    let incoming = ControlClient::new(channel).session(request).await.map_err(EngineError::call)?.into_inner();
    let pumps = vec![
        AbortOnDropHandle::new(tokio::spawn(pump_out(from_us, sender))),
        AbortOnDropHandle::new(tokio::spawn(pump_in(incoming, to_us))),
    ];
    Ok((Box::new(ours), pumps))
}

fn add_headers(metadata: &mut MetadataMap, headers: &[(&'static str, String)]) -> Result<(), EngineError> {
    for (name, value) in headers {
        let value = value.parse().map_err(|_| EngineError::Call(format!("`{value}` cannot be a header")))?;
        metadata.append(AsciiMetadataKey::from_static(name), value);
    }
    Ok(())
}

async fn pump_out(mut from: ReadHalf<DuplexStream>, to: mpsc::Sender<BytesMessage>) {
    let mut buffer = BytesMut::with_capacity(PIECE_BYTES);
    loop {
        buffer.clear();
        match from.read_buf(&mut buffer).await {
            Ok(1..) if to.send(BytesMessage { data: buffer.to_vec() }).await.is_ok() => {}
            Ok(_) | Err(_) => return,
        }
    }
}

async fn pump_in(mut from: Streaming<BytesMessage>, mut to: WriteHalf<DuplexStream>) {
    while let Ok(Some(message)) = from.message().await {
        if to.write_all(&message.data).await.is_err() {
            return;
        }
    }
    // The session's server sees the end of its connection and ends.
    let _ = to.shutdown().await;
}
