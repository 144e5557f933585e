//! The service against a receiver that behaves as BuildKit's: over gRPC, through a duplex pipe.

use std::collections::{BTreeMap, HashMap};

use bollard_buildkit_proto::{
    fsutil::types::{Stat, packet::PacketType},
    moby::filesync::packet::{file_sync_client::FileSyncClient, file_sync_server::FileSyncServer},
};
use hyper_util::rt::TokioIo;
use kiln_common::context::{ChunkRef, ContextDigest, Entry, EntryKind, ManifestEncoder};
use tonic::transport::{Endpoint, Server};

use super::*;
use crate::context::{CacheConfig, ContextStore, MemorySource};

struct Farm {
    source: MemorySource,
    entries: Vec<Entry>,
}

impl Farm {
    fn new() -> Self {
        Self { source: MemorySource::default(), entries: Vec::new() }
    }

    fn add(mut self, path: &str, kind: EntryKind, mode: u16) -> Self {
        self.entries.push(Entry { path: path.into(), kind, mode, mtime_ns: 1_700_000_000_123_456_789 });
        self
    }

    fn dir(self, path: &str) -> Self {
        self.add(path, EntryKind::Directory, 0o755)
    }

    fn file(mut self, path: &str, parts: &[&[u8]]) -> Self {
        let mut chunk = |part: &&[u8]| ChunkRef { id: self.source.insert(part.to_vec()), len: part.len() as u32 };
        let chunks = parts.iter().map(&mut chunk).collect();
        self.add(path, EntryKind::File(chunks), 0o644)
    }

    fn root(&mut self) -> ContextDigest {
        let mut encoder = ManifestEncoder::default();
        for entry in &self.entries {
            if let Some(chunk) = encoder.push(entry).expect("valid") {
                self.source.insert(chunk.bytes);
            }
        }
        let (last, root, digest) = encoder.finish().expect("small");
        for chunk in last.into_iter().chain([root]) {
            self.source.insert(chunk.bytes);
        }
        digest
    }
}

struct Received {
    stats: Vec<Stat>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Received {
    fn paths(&self) -> Vec<&str> {
        self.stats.iter().map(|stat| stat.path.as_str()).collect()
    }

    fn stat(&self, path: &str) -> &Stat {
        self.stats.iter().find(|stat| stat.path == path).expect(path)
    }
}

async fn client(trees: BTreeMap<String, Arc<ContextTree>>) -> FileSyncClient<tonic::transport::Channel> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let service = FileSyncServer::new(FileSyncService::new(trees));
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(theirs)).chain(tokio_stream::pending())),
    );
    let mut ours = Some(TokioIo::new(ours));
    let connect = tower::service_fn(move |_| {
        let stream = ours.take().ok_or_else(|| std::io::Error::other("connected twice"));
        std::future::ready(stream)
    });
    let channel = Endpoint::from_static("http://engine").connect_with_connector(connect).await.expect("connects");
    FileSyncClient::new(channel)
}

/// Asks for every regular file as soon as it is told of it, as fsutil's receiver does into an empty directory.
async fn receive(tree: &Arc<ContextTree>, metadata: &[(&'static str, &str)]) -> Result<Received, String> {
    let mut client = client(BTreeMap::from([("context".to_owned(), tree.clone())])).await;
    let (requests, outgoing) = mpsc::channel(10_000);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    request.metadata_mut().insert("dir-name", "context".parse().expect("ascii"));
    for (key, value) in metadata {
        request.metadata_mut().append(*key, value.parse().expect("ascii"));
    }
    let mut packets = client.diff_copy(request).await.map_err(|status| status.message().to_owned())?.into_inner();
    let packet = |kind: PacketType, id| Packet { r#type: kind.into(), id, ..Packet::default() };
    let mut received = Received { stats: Vec::new(), files: BTreeMap::new() };
    let (mut open, mut all_told): (HashMap<u32, Vec<u8>>, bool) = (HashMap::new(), false);
    while let Some(next) = packets.message().await.map_err(|status| status.to_string())? {
        match next.r#type() {
            PacketType::PacketStat => match next.stat {
                Some(stat) => {
                    if stat.mode & 0xf800_0000 == 0 && stat.linkname.is_empty() {
                        let id = received.stats.len() as u32;
                        open.insert(id, Vec::new());
                        requests.send(packet(PacketType::PacketReq, id)).await.expect("open");
                    }
                    received.stats.push(stat);
                }
                None => all_told = true,
            },
            PacketType::PacketData if next.data.is_empty() => {
                let data = open.remove(&next.id).expect("asked for");
                received.files.insert(received.stats[next.id as usize].path.clone(), data);
            }
            PacketType::PacketData => open.get_mut(&next.id).expect("asked for").extend(next.data),
            PacketType::PacketErr => return Err(String::from_utf8_lossy(&next.data).into_owned()),
            PacketType::PacketFin => return Ok(received),
            PacketType::PacketReq => return Err("the sender asked for a file".into()),
        }
        if all_told && open.is_empty() {
            requests.send(packet(PacketType::PacketFin, 0)).await.expect("open");
        }
    }
    Err("it ended without FIN".into())
}

async fn open(mut farm: Farm) -> (tempfile::TempDir, Arc<ContextTree>) {
    let digest = farm.root();
    let directory = tempfile::tempdir().expect("dir");
    let store = ContextStore::open(directory.path(), CacheConfig::default()).await.expect("opens");
    let tree = ContextTree::open(&store, Arc::new(farm.source), digest).await.expect("opens");
    (directory, tree)
}

fn sample() -> Farm {
    let big = [vec![1_u8; 3 << 20], vec![2; 3 << 20]];
    Farm::new()
        .file("Dockerfile", &[b"FROM scratch"])
        .file("big", &[&big[0], &big[1]])
        .add("bin", EntryKind::Directory, 0o1777)
        .dir("bin/empty")
        .file("bin/tool", &[b"#!"])
        .add("bin/tool-link", EntryKind::HardLink("bin/tool".into()), 0o644)
        .file("bin/zero", &[])
        .add("suid", EntryKind::File(Box::new([])), 0o6755)
        .add("tool", EntryKind::Symlink("bin/tool".into()), 0o777)
        .add("tool-again", EntryKind::HardLink("bin/tool".into()), 0o644)
}

#[tokio::test]
async fn files_links_modes_and_empty_directories_arrive_as_they_are() {
    let (_directory, tree) = open(sample()).await;
    let received = receive(&tree, &[]).await.expect("received");
    let paths = [
        "Dockerfile",
        "big",
        "bin",
        "bin/empty",
        "bin/tool",
        "bin/tool-link",
        "bin/zero",
        "suid",
        "tool",
        "tool-again",
    ];
    assert_eq!(received.paths(), paths);
    assert_eq!(received.files["Dockerfile"], b"FROM scratch");
    assert_eq!(received.files["bin/zero"], b"");
    let big = &received.files["big"];
    assert_eq!((big.len(), big[0], big[big.len() - 1]), (6 << 20, 1, 2));
    assert_eq!(received.stat("bin").mode, 1 << 31 | 1 << 20 | 0o777);
    assert_eq!(received.stat("suid").mode, 1 << 23 | 1 << 22 | 0o755);
    let link = received.stat("tool");
    assert_eq!((link.mode, link.linkname.as_str(), link.size), (1 << 27 | 0o777, "bin/tool", 8));
    assert_eq!(received.stat("tool-again").linkname, "bin/tool");
    assert_eq!(received.stat("Dockerfile").mod_time, 1_700_000_000_123_456_789);
    assert_eq!((received.stat("bin/tool").size, received.stat("bin/tool").uid), (2, 0));
}

#[tokio::test]
async fn patterns_and_followed_paths_choose_what_is_told() {
    let (_directory, tree) = open(sample()).await;
    let received = receive(&tree, &[("followpaths", "tool")]).await.expect("received");
    assert_eq!(received.paths(), ["bin", "bin/tool", "tool"]);
    let received =
        receive(&tree, &[("exclude-patterns", "*"), ("exclude-patterns", "!bin/z*")]).await.expect("received");
    assert_eq!(received.paths(), ["bin", "bin/zero"]);
    let received =
        receive(&tree, &[("include-patterns", "**/tool*"), ("exclude-patterns", "bin")]).await.expect("received");
    assert_eq!(received.paths(), ["tool", "tool-again"]);
    // The link's target is left out, so the link is the file.
    assert_eq!(received.files["tool-again"], b"#!");
    assert_eq!(received.stat("tool-again").size, 2);
}

#[tokio::test]
async fn of_several_links_to_a_file_left_out_the_first_becomes_the_file() {
    let (_directory, tree) = open(sample()).await;
    let received = receive(&tree, &[("exclude-patterns", "bin/tool")]).await.expect("received");
    assert_eq!(received.stat("bin/tool-link").linkname, "");
    assert_eq!(received.stat("tool-again").linkname, "bin/tool-link");
    assert_eq!(received.files["bin/tool-link"], b"#!");
}

#[tokio::test]
async fn an_unknown_directory_and_a_malformed_pattern_are_refused() {
    let (_directory, tree) = open(sample()).await;
    let error = receive(&tree, &[("exclude-patterns", "a[")]).await.err().expect("refused");
    assert!(error.contains("a["), "{error}");
    let mut client = client(BTreeMap::new()).await;
    let mut request = Request::new(tokio_stream::pending());
    request.metadata_mut().insert("dir-name", "secrets".parse().expect("ascii"));
    let status = client.diff_copy(request).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn a_chunk_that_cannot_be_had_stops_the_sync_and_is_remembered() {
    let lost = ChunkRef { id: kiln_common::context::ChunkId::of(b"lost"), len: 4 };
    let (_directory, tree) = open(sample().add("z", EntryKind::File(Box::new([lost])), 0o644)).await;
    let error = receive(&tree, &[]).await.err().expect("fails");
    assert!(error.contains(&lost.id.to_string()), "{error}");
    assert!(tree.failure().is_some());
}

#[tokio::test]
async fn many_files_come_over_in_a_third_sync_without_the_source() {
    let contents: Vec<Vec<u8>> = (0..3000_u32).map(|index| index.to_le_bytes().repeat(index as usize % 50)).collect();
    let mut farm = Farm::new();
    for (index, content) in contents.iter().enumerate() {
        let parts: &[&[u8]] = if content.is_empty() { &[] } else { &[content] };
        farm = farm.file(&format!("f{index:05}"), parts);
    }
    let (_directory, tree) = open(farm).await;
    for _ in 0..3 {
        let received = receive(&tree, &[]).await.expect("received");
        assert_eq!(received.files.len(), 3000);
        for (index, content) in contents.iter().enumerate() {
            assert_eq!(&received.files[&format!("f{index:05}")], content);
        }
    }
    let total: usize = contents.iter().map(Vec::len).sum();
    assert!(tree.take_bytes_fetched() < 3 * total as u64);
}

#[tokio::test]
async fn an_empty_tree_has_nothing_to_tell() {
    let received = receive(&ContextTree::empty(), &[]).await.expect("received");
    assert!(received.stats.is_empty());
}
