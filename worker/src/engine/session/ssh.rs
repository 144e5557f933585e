//! `moby.sshforward.v1.SSH`: connections of `RUN --mount=type=ssh` to the client's agents, through [`AgentDialer`].

use std::{pin::Pin, sync::Arc};

use bollard_buildkit_proto::moby::sshforward::v1::{
    BytesMessage, CheckAgentRequest, CheckAgentResponse, ssh_server::Ssh,
};
use bytes::BytesMut;
use futures_util::{Stream, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::served::{Builds, Served};
use crate::engine::transport::BoxedIo;

/// The header that names the agent (BuildKit `session/sshforward`, `KeySSHID`).
const ID_HEADER: &str = "buildkit.ssh.id";
const DEFAULT_ID: &str = "default";
const QUEUE: usize = 4;
/// An ssh agent's messages are small; larger ones come in pieces.
const PIECE_BYTES: usize = 8 * 1024;

pub struct Agents(pub Arc<Builds>);

fn known<'a>(served: &Served, id: &'a str) -> Result<&'a str, Status> {
    let id = if id.is_empty() { DEFAULT_ID } else { id };
    let unknown = || Status::not_found(format!("no ssh agent `{id}` was given to the build; pass --ssh {id}"));
    if served.ssh_ids.iter().any(|known| known == id) { Ok(id) } else { Err(unknown()) }
}

#[tonic::async_trait]
impl Ssh for Agents {
    async fn check_agent(&self, request: Request<CheckAgentRequest>) -> Result<Response<CheckAgentResponse>, Status> {
        known(&*self.0.served()?, &request.get_ref().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    type ForwardAgentStream = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request.metadata().get(ID_HEADER).and_then(|id| id.to_str().ok()).unwrap_or(DEFAULT_ID);
        let served = self.0.served()?;
        let id = known(&served, id)?.to_owned();
        let agent = served.agents.dial(&id).await;
        let agent =
            agent.map_err(|error| Status::unavailable(format!("ssh agent `{id}` cannot be reached: {error}")))?;
        let (from_agent, to_agent) = tokio::io::split(agent);
        tokio::spawn(copy_in(request.into_inner(), to_agent));
        let (sender, outgoing) = mpsc::channel(QUEUE);
        tokio::spawn(copy_out(from_agent, sender));
        Ok(Response::new(ReceiverStream::new(outgoing).boxed()))
    }
}

async fn copy_in(mut incoming: Streaming<BytesMessage>, mut agent: WriteHalf<BoxedIo>) {
    while let Ok(Some(message)) = incoming.message().await {
        if agent.write_all(&message.data).await.is_err() {
            return;
        }
    }
    // The agent may be gone already; then there is nobody to tell.
    let _ = agent.shutdown().await;
}

async fn copy_out(mut agent: ReadHalf<BoxedIo>, outgoing: mpsc::Sender<Result<BytesMessage, Status>>) {
    let mut buffer = BytesMut::with_capacity(PIECE_BYTES);
    loop {
        buffer.clear();
        let read = tokio::select! {
            read = agent.read_buf(&mut buffer) => read,
            () = outgoing.closed() => return,
        };
        if !matches!(read, Ok(1..)) || outgoing.send(Ok(BytesMessage { data: buffer.to_vec() })).await.is_err() {
            return;
        }
    }
}
