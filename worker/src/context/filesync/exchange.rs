//! One exchange of packets: stats go out while requests come in and contents are sent for them, as fsutil's `send.go`.
//!
//! It ends when the engine says FIN, goes away, or a chunk cannot be had; then the engine gets an ERR packet and the
//! tree remembers why.

use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::{Packet, packet::PacketType};
use bytes::Bytes;
use kiln_common::{context::ChunkRef, limits};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tonic::{Status, Streaming};

use super::{
    super::{ContextError, ContextTree, tree::windows},
    selection::{Selected, contents},
    stat::stat_packet,
};

type Packets = mpsc::Sender<Result<Packet, Status>>;

/// The engine has gone away.
struct Gone;

/// Serves one call to its end.
pub(super) async fn run(tree: Arc<ContextTree>, selected: Selected, requests: Streaming<Packet>, packets: Packets) {
    // An engine asks for each file once. All its requests have room, so that none stays unread: HTTP/2 servers end a
    // connection with too many small frames waiting.
    let (queue, waiting) = mpsc::channel(selected.entries.len().max(1));
    let exchange = Arc::new(Exchange { tree, selected, packets });
    let waiting = Arc::new(Mutex::new(waiting));
    // Dropping the set at the end stops what still runs.
    let mut tasks = JoinSet::new();
    tasks.spawn(exchange.clone().send_stats());
    for _ in 0..limits::FILE_SYNC_BATCHES {
        tasks.spawn(exchange.clone().serve_files(waiting.clone()));
    }
    drop(waiting);
    exchange.take_requests(requests, queue, &mut tasks).await;
}

struct Exchange {
    tree: Arc<ContextTree>,
    selected: Selected,
    packets: Packets,
}

impl Exchange {
    /// Passes on what the engine asks for until it says FIN or a task fails.
    async fn take_requests(
        &self,
        mut requests: Streaming<Packet>,
        queue: mpsc::Sender<u32>,
        tasks: &mut JoinSet<Result<(), Gone>>,
    ) {
        loop {
            let packet = tokio::select! {
                packet = requests.message() => packet,
                ended = tasks.join_next(), if !tasks.is_empty() => match ended {
                    Some(Ok(Ok(()))) => continue,
                    Some(Ok(Err(Gone)) | Err(_)) | None => return,
                },
            };
            let Ok(Some(packet)) = packet else { return };
            match PacketType::try_from(packet.r#type) {
                Ok(PacketType::PacketReq) => {
                    // A full queue holds back the engine's requests, never its reading of our packets.
                    if queue.send(packet.id).await.is_err() {
                        return;
                    }
                }
                Ok(PacketType::PacketFin) => {
                    let _ = self.packets.send(Ok(packet_of(PacketType::PacketFin))).await;
                    return;
                }
                Ok(PacketType::PacketErr) => {
                    tracing::debug!(reason = %String::from_utf8_lossy(&packet.data), "the engine stopped a file sync");
                    return;
                }
                Ok(PacketType::PacketStat | PacketType::PacketData) | Err(_) => {}
            }
        }
    }

    async fn send_stats(self: Arc<Self>) -> Result<(), Gone> {
        for index in &self.selected.entries {
            self.send(stat_packet(self.tree.manifest(), &self.selected, *index)).await?;
        }
        self.send(packet_of(PacketType::PacketStat)).await
    }

    /// Takes batches of requests until there are no more.
    async fn serve_files(self: Arc<Self>, waiting: Arc<Mutex<mpsc::Receiver<u32>>>) -> Result<(), Gone> {
        loop {
            let batch = match self.next_batch(&waiting).await {
                Ok(batch) if batch.files.is_empty() => return Ok(()),
                Ok(batch) => batch,
                Err(error) => return self.fail(error).await,
            };
            if let Err(error) = self.send_batch(&batch).await? {
                return self.fail(error).await;
            }
        }
    }

    /// The next request and what waits behind it, up to a batch; empty when no more come.
    async fn next_batch(&self, waiting: &Mutex<mpsc::Receiver<u32>>) -> Result<Batch, ContextError> {
        let mut batch = Batch::default();
        let mut waiting = waiting.lock().await;
        let Some(first) = waiting.recv().await else { return Ok(batch) };
        self.add(&mut batch, first)?;
        while batch.files.len() < limits::FILE_SYNC_BATCH_FILES && batch.bytes < limits::CONTEXT_READ_BYTES {
            let Ok(id) = waiting.try_recv() else { break };
            self.add(&mut batch, id)?;
        }
        Ok(batch)
    }

    fn add(&self, batch: &mut Batch, id: u32) -> Result<(), ContextError> {
        let unknown = || ContextError::UnknownFile { id };
        let manifest = self.tree.manifest();
        let index = *self.selected.entries.get(id as usize).ok_or_else(unknown)?;
        let chunks = contents(manifest, &manifest.entries()[index as usize]).ok_or_else(unknown)?;
        batch.files.push((id, chunks.len()));
        batch.bytes += chunks.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>();
        batch.chunks.extend_from_slice(chunks);
        Ok(())
    }

    /// Reads the batch window by window and sends each file's contents and its end.
    async fn send_batch(&self, batch: &Batch) -> Result<Result<(), ContextError>, Gone> {
        let mut files = batch.files.iter().copied();
        let (mut id, mut left) = (0, 0);
        for window in windows(&batch.chunks) {
            let read = match self.tree.read(window).await {
                Ok(read) => read,
                Err(error) => return Ok(Err(error)),
            };
            for bytes in read {
                // The file that this chunk is of; empty ones before it end at once.
                while left == 0 {
                    let Some(next) = files.next() else { return Ok(Ok(())) };
                    (id, left) = next;
                    if left == 0 {
                        self.send_end(id).await?;
                    }
                }
                self.send_data(id, &bytes).await?;
                left -= 1;
                if left == 0 {
                    self.send_end(id).await?;
                }
            }
        }
        for (id, _) in files {
            self.send_end(id).await?;
        }
        Ok(Ok(()))
    }

    async fn send_data(&self, id: u32, bytes: &Bytes) -> Result<(), Gone> {
        for part in bytes.chunks(limits::FILE_SYNC_PACKET_BYTES) {
            let packet = Packet { r#type: PacketType::PacketData.into(), id, data: part.to_vec(), stat: None };
            self.send(packet).await?;
        }
        Ok(())
    }

    async fn send_end(&self, id: u32) -> Result<(), Gone> {
        self.send(Packet { id, ..packet_of(PacketType::PacketData) }).await
    }

    async fn fail(&self, error: ContextError) -> Result<(), Gone> {
        tracing::warn!(%error, "cannot give the engine a file of the context");
        let data = error.to_string().into_bytes();
        self.tree.fail(error);
        let _ = self.send(Packet { data, ..packet_of(PacketType::PacketErr) }).await;
        Err(Gone)
    }

    async fn send(&self, packet: Packet) -> Result<(), Gone> {
        self.packets.send(Ok(packet)).await.map_err(|_| Gone)
    }
}

/// Files that the engine wants, and all their chunks in order.
#[derive(Default)]
struct Batch {
    /// Id and number of chunks.
    files: Vec<(u32, usize)>,
    chunks: Vec<ChunkRef>,
    bytes: u64,
}

fn packet_of(kind: PacketType) -> Packet {
    Packet { r#type: kind.into(), ..Packet::default() }
}
