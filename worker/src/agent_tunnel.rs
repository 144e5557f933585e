//! Connections of RUN steps to the client's ssh agents, carried by the coordinator.
//!
//! The engine dials once for each connection of a step; each gets a call of its own, which ends with it.

use std::io;

use async_trait::async_trait;
use kiln_common::AttemptId;
use kiln_proto::v1::AgentFrame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    engine::{AgentDialer, BoxedIo},
    session::Link,
};

/// Bytes of one frame, as the protocol bounds them; also what waits in each direction.
const FRAME_BYTES: usize = 64 * 1024;
/// Frames that wait for the connection.
const FRAMES: usize = 4;

/// The agents of one attempt's build.
pub struct AgentTunnel {
    attempt: AttemptId,
    link: Link,
}

impl AgentTunnel {
    #[must_use]
    pub const fn new(attempt: AttemptId, link: Link) -> Self {
        Self { attempt, link }
    }
}

#[async_trait]
impl AgentDialer for AgentTunnel {
    async fn dial(&self, id: &str) -> io::Result<BoxedIo> {
        let bulk = self.link.bulk().await;
        let (frames, requests) = mpsc::channel(FRAMES);
        let first = AgentFrame { id: self.attempt.to_string(), ssh_id: id.to_owned(), ..AgentFrame::default() };
        frames.try_send(first).map_err(io::Error::other)?;
        let answer = bulk.client().forward_agent(ReceiverStream::new(requests)).await;
        let inbound = answer.map_err(|status| refused(id, &status))?.into_inner();
        let (engine_side, own_side) = tokio::io::duplex(FRAME_BYTES);
        let (read, write) = tokio::io::split(own_side);
        tokio::spawn(async move {
            // The connection ends as a whole when either direction does.
            tokio::select! {
                () = outwards(read, frames) => {}
                () = inwards(inbound, write) => {}
            }
            drop(bulk);
        });
        Ok(Box::new(engine_side))
    }
}

fn refused(id: &str, status: &tonic::Status) -> io::Error {
    io::Error::other(format!("the client's ssh agent `{id}` cannot be reached: {}", status.message()))
}

async fn outwards(mut from: ReadHalf<DuplexStream>, frames: mpsc::Sender<AgentFrame>) {
    let mut buffer = vec![0; FRAME_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let frame = AgentFrame { data: buffer[..count].to_vec(), ..AgentFrame::default() };
        if frames.send(frame).await.is_err() {
            return;
        }
    }
    // Fails only when the call has ended, which says the same.
    let _ = frames.send(AgentFrame { close: true, ..AgentFrame::default() }).await;
}

async fn inwards(mut inbound: Streaming<AgentFrame>, mut to: WriteHalf<DuplexStream>) {
    while let Ok(Some(frame)) = inbound.message().await {
        if to.write_all(&frame.data).await.is_err() || frame.close {
            return;
        }
    }
}
