//! From files to the farm as one pipeline: read and hash, ask which chunks are missing, send those. Each stage holds a
//! few MiB; a farm that is slow holds back the reading.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use kiln_common::{
    context::{ChunkId, ChunkRef, ContextDigest, ManifestEncoder},
    limits,
};
use kiln_proto::v1::{Chunk, UploadRequest, UploadResponse};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    ContextError, Trust,
    dockerfile::DockerfileTree,
    hash::{Piece, PieceBytes},
    stat_cache::farm_id,
    tree::{Outlet, Tree},
    wire::FarmChunks,
};

/// Groups of pieces between reading and asking.
const PIECES_QUEUE: usize = 8;
/// One `FindMissing` call asks about so much.
const BATCH_BYTES: usize = 2 * 1024 * 1024;
const BATCH_CHUNKS: usize = 8192;
/// Calls under way at once.
const ASKING: usize = 4;
/// Messages between packing and the network.
const UPLOAD_QUEUE: usize = 2;
/// Chunks of one upload message; a chunk has at most twice that.
const MESSAGE_BYTES: usize = limits::CHUNK_BYTES / 2;

/// How far an upload is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files of all trees, and their bytes.
    pub files: u64,
    pub bytes: u64,
    /// Bytes that the farm lacked, as far as it was asked.
    pub missing: u64,
    pub sent: u64,
}

pub(super) struct Job {
    pub(super) trees: Arc<Vec<Tree>>,
    pub(super) dockerfile: DockerfileTree,
    pub(super) farm_name: String,
    pub(super) trust: Trust,
}

/// The roots that the farm has now.
pub(super) struct Sent {
    pub(super) digests: Vec<ContextDigest>,
    pub(super) dockerfile: ContextDigest,
    pub(super) progress: Progress,
}

type Tell = Arc<dyn Fn(Progress) + Send + Sync>;

pub(super) async fn run(farm: Arc<dyn FarmChunks>, job: Job, tell: Tell) -> Result<Sent, ContextError> {
    let (files, bytes) = job.trees.iter().map(Tree::size).fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
    let mut sender = Sender::new(farm.clone(), Progress { files, bytes, ..Progress::default() }, tell);
    let (give, pieces) = mpsc::channel(PIECES_QUEUE);
    let producing = spawn_blocking(move || produce(&job, &give).map(|roots| (roots, job)));
    let asked = batches(pieces).map(|batch| ask(farm.clone(), batch)).buffered(ASKING);
    let moved = forward(asked, &mut sender).await;
    let (roots, job) = match (producing.await, moved) {
        (Ok(Ok(produced)), Ok(())) => produced,
        // A reader that was cut off says so only because the sending failed.
        (_, Err(error)) => return Err(error),
        (Ok(Err(error)), Ok(())) => return Err(error),
        (Err(_), Ok(())) => return Err(ContextError::Interrupted),
    };
    let progress = sender.finish().await?;
    let farm = farm_id(&job.farm_name);
    let remembering = spawn_blocking(move || job.trees.iter().for_each(|tree| tree.sent_to(farm)));
    remembering.await.map_err(|_| ContextError::Interrupted)?;
    Ok(Sent { digests: roots.0, dockerfile: roots.1, progress })
}

/// Everything that reads files and hashes.
fn produce(job: &Job, queue: &mpsc::Sender<Vec<Piece>>) -> Result<(Vec<ContextDigest>, ContextDigest), ContextError> {
    let give = |pieces: Vec<Piece>| match pieces.is_empty() {
        true => Ok(()),
        false => queue.blocking_send(pieces).map_err(|_| ContextError::Interrupted),
    };
    let outlet = Outlet { give: &give, farm: farm_id(&job.farm_name), trust: job.trust };
    let digests = job.trees.iter().map(|tree| tree.produce(&outlet)).collect::<Result<_, _>>()?;
    let (mut encoder, mut pieces) = (ManifestEncoder::default(), Vec::new());
    let mut add = |bytes: Vec<u8>| {
        let chunk = ChunkRef { id: ChunkId::of(&bytes), len: bytes.len() as u32 };
        pieces.push(Piece { chunk, bytes: PieceBytes::Here(bytes.into()) });
    };
    for (entry, bytes) in job.dockerfile.entries() {
        encoder.push(&entry)?.into_iter().for_each(|chunk| add(chunk.bytes));
        if !bytes.is_empty() {
            add(bytes);
        }
    }
    let (last, root, digest) = encoder.finish()?;
    last.into_iter().chain([root]).for_each(|chunk| add(chunk.bytes));
    give(pieces)?;
    Ok((digests, digest))
}

/// Groups pieces, each chunk once.
fn batches(pieces: mpsc::Receiver<Vec<Piece>>) -> impl Stream<Item = Vec<Piece>> {
    stream::unfold((pieces, HashSet::new()), |(mut pieces, mut seen)| async move {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_CHUNKS && bytes < BATCH_BYTES {
            let Some(group) = pieces.recv().await else { break };
            let new = group.into_iter().filter(|piece| seen.insert(piece.chunk.id));
            let start = batch.len();
            batch.extend(new);
            bytes += batch[start..].iter().map(held_bytes).sum::<usize>();
        }
        (!batch.is_empty()).then_some((batch, (pieces, seen)))
    })
}

const fn held_bytes(piece: &Piece) -> usize {
    match &piece.bytes {
        PieceBytes::Here(bytes) => bytes.len(),
        PieceBytes::InFile { .. } => 0,
    }
}

/// The pieces that the farm lacks.
async fn ask(farm: Arc<dyn FarmChunks>, batch: Vec<Piece>) -> Result<Vec<Piece>, ContextError> {
    let mut missing = Vec::new();
    for part in batch.chunks(limits::CHUNK_IDS_PER_CALL) {
        let ids = part.iter().flat_map(|piece| piece.chunk.id.as_bytes()).copied().collect();
        missing.extend(farm.find_missing(ids).await?);
    }
    let missing: HashSet<&[u8]> = missing.chunks_exact(32).collect();
    Ok(batch.into_iter().filter(|piece| missing.contains(piece.chunk.id.as_bytes().as_slice())).collect())
}

async fn forward(
    asked: impl Stream<Item = Result<Vec<Piece>, ContextError>>,
    sender: &mut Sender,
) -> Result<(), ContextError> {
    let mut asked = std::pin::pin!(asked);
    while let Some(missing) = asked.next().await {
        sender.send(missing?).await?;
    }
    Ok(())
}

/// The upload call, begun with the first missing chunk.
struct Sender {
    farm: Arc<dyn FarmChunks>,
    call: Option<Call>,
    message: Vec<Chunk>,
    message_bytes: usize,
    progress: Progress,
    tell: Tell,
}

struct Call {
    /// Taken to say that no more comes.
    messages: Option<mpsc::Sender<UploadRequest>>,
    answer: JoinHandle<Result<UploadResponse, Status>>,
}

impl Sender {
    fn new(farm: Arc<dyn FarmChunks>, progress: Progress, tell: Tell) -> Self {
        tell(progress);
        Self { farm, call: None, message: Vec::new(), message_bytes: 0, progress, tell }
    }

    async fn send(&mut self, missing: Vec<Piece>) -> Result<(), ContextError> {
        self.progress.missing += missing.iter().map(|piece| u64::from(piece.chunk.len)).sum::<u64>();
        for piece in missing {
            let Piece { chunk, bytes } = piece;
            let bytes = match bytes {
                PieceBytes::Here(bytes) => bytes,
                in_file @ PieceBytes::InFile { .. } => load(in_file, chunk).await?,
            };
            if self.message_bytes + bytes.len() > limits::CHUNK_BYTES {
                self.send_message().await?;
            }
            self.message_bytes += bytes.len();
            self.message.push(Chunk { id: chunk.id.as_bytes().to_vec(), data: bytes });
            if self.message_bytes >= MESSAGE_BYTES {
                self.send_message().await?;
            }
        }
        Ok(())
    }

    async fn send_message(&mut self) -> Result<(), ContextError> {
        let chunks = std::mem::take(&mut self.message);
        if chunks.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.message_bytes) as u64;
        let call = self.call.get_or_insert_with(|| Call::begin(self.farm.clone()));
        let Some(messages) = &call.messages else { return Err(ContextError::Interrupted) };
        if messages.send(UploadRequest { chunks }).await.is_err() {
            // The farm has ended the call; its answer says why.
            self.answer().await?;
            return Err(ContextError::Interrupted);
        }
        self.progress.sent += bytes;
        (self.tell)(self.progress);
        Ok(())
    }

    async fn finish(mut self) -> Result<Progress, ContextError> {
        self.send_message().await?;
        self.answer().await?;
        (self.tell)(self.progress);
        Ok(self.progress)
    }

    /// Ends the call and waits until all is durable.
    async fn answer(&mut self) -> Result<(), ContextError> {
        let Some(mut call) = self.call.take() else { return Ok(()) };
        drop(call.messages.take());
        (&mut call.answer).await.map_err(|_| ContextError::Interrupted)??;
        Ok(())
    }
}

impl Call {
    fn begin(farm: Arc<dyn FarmChunks>) -> Self {
        let (messages, outgoing) = mpsc::channel(UPLOAD_QUEUE);
        let answer = tokio::spawn(async move { farm.upload(ReceiverStream::new(outgoing)).await });
        Self { messages: Some(messages), answer }
    }
}

/// A call that is given up, because reading failed, ends at once.
impl Drop for Call {
    fn drop(&mut self) {
        self.answer.abort();
    }
}

async fn load(bytes: PieceBytes, chunk: ChunkRef) -> Result<Bytes, ContextError> {
    spawn_blocking(move || bytes.load(&chunk)).await.map_err(|_| ContextError::Interrupted)?
}
