//! Carries connections of the user's ssh agents to the legs that ask for them, while the build runs.
//!
//! The farm opens connections over one stream; each gets a socket of its own and two pumps. When the stream breaks all
//! of them end and the stream is opened anew: ssh clients on the workers see a closed agent, as when an agent dies.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use kiln_proto::v1::AgentFrame;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixStream, unix::OwnedReadHalf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::connection::Farm;

/// Agent connections open at once; one more is closed at once.
const CONNECTIONS: usize = 64;
/// Frames under way in one direction.
const QUEUE: usize = 16;
/// Bytes of one frame.
const FRAME_BYTES: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_secs(1);

/// Serves until it is dropped, or until the farm says that it does not forward agents.
pub async fn serve(farm: Arc<Farm>, build: String, sockets: BTreeMap<String, PathBuf>) {
    loop {
        if let Err(status) = serve_once(&farm, &build, &sockets).await {
            if is_for_good(status.code()) {
                tracing::warn!(%status, "the farm does not forward ssh agents");
                return;
            }
            if status.code() == Code::FailedPrecondition && !farm.redirect(&status) {
                return;
            }
            tracing::debug!(%status, "ssh agent stream broke");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Trying again would give the same answer.
const fn is_for_good(code: Code) -> bool {
    matches!(code, Code::Unimplemented | Code::NotFound | Code::PermissionDenied | Code::Unauthenticated)
}

async fn serve_once(farm: &Farm, build: &str, sockets: &BTreeMap<String, PathBuf>) -> Result<(), tonic::Status> {
    let link = farm.link().await.map_err(|failure| tonic::Status::unavailable(failure.message))?;
    let (to_farm, outgoing) = mpsc::channel(QUEUE);
    let first = AgentFrame { id: build.to_owned(), ..AgentFrame::default() };
    to_farm.send(first).await.map_err(|_| tonic::Status::cancelled("the stream ended"))?;
    let mut incoming = link.builds().forward_agent(ReceiverStream::new(outgoing)).await?.into_inner();
    let mut open: HashMap<u64, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut pumps = tokio::task::JoinSet::new();
    while let Some(frame) = incoming.message().await? {
        open.retain(|_, sender| !sender.is_closed());
        let connection = frame.connection;
        if !frame.ssh_id.is_empty() && !open.contains_key(&connection) {
            match sockets.get(&frame.ssh_id) {
                Some(socket) if open.len() < CONNECTIONS => {
                    let (sender, receiver) = mpsc::channel(QUEUE);
                    open.insert(connection, sender);
                    pumps.spawn(pump(socket.clone(), connection, receiver, to_farm.clone()));
                }
                _ => drop(to_farm.send(closed(connection)).await),
            }
        }
        if let Some(sender) = open.get(&connection)
            && !frame.data.is_empty()
            && sender.send(frame.data.to_vec()).await.is_err()
        {
            open.remove(&connection);
        }
        if frame.close {
            open.remove(&connection);
        }
    }
    Ok(())
}

/// One connection: what the farm sends goes to the socket, what the socket answers goes to the farm.
async fn pump(
    socket: PathBuf,
    connection: u64,
    mut from_farm: mpsc::Receiver<Vec<u8>>,
    to_farm: mpsc::Sender<AgentFrame>,
) {
    match UnixStream::connect(&socket).await {
        Ok(stream) => {
            let (reader, mut writer) = stream.into_split();
            let write = async {
                while let Some(data) = from_farm.recv().await {
                    if writer.write_all(&data).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = write => {}
                () = answers(reader, connection, &to_farm) => {}
            }
        }
        Err(error) => tracing::warn!(socket = %socket.display(), %error, "cannot reach the ssh agent"),
    }
    drop(to_farm.send(closed(connection)).await);
}

async fn answers(mut reader: OwnedReadHalf, connection: u64, to_farm: &mpsc::Sender<AgentFrame>) {
    let mut buffer = vec![0; FRAME_BYTES];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        let frame = AgentFrame { connection, data: buffer[..count].to_vec(), ..AgentFrame::default() };
        if to_farm.send(frame).await.is_err() {
            return;
        }
    }
}

fn closed(connection: u64) -> AgentFrame {
    AgentFrame { connection, close: true, ..AgentFrame::default() }
}
