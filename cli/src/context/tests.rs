//! From a directory to what an engine receives: client, coordinator's store and worker's tree in one process.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    sync::atomic::{AtomicU64, Ordering},
};

use futures_util::{StreamExt, stream};
use kiln_common::{
    Timestamp,
    context::{ChunkId, EntryKind},
};
use kiln_coordinator::contexts::{Completeness, Contexts, fetch_context, service::ContextUploads};
use kiln_proto::v1::{
    FetchContextRequest, UploadRequest, UploadResponse, context_service_client::ContextServiceClient,
    context_service_server::ContextServiceServer,
};
use kiln_worker::context::{CacheConfig, ChunkSource, ChunkStream, ContextStore, ContextTree, SourceError};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    transport::{Endpoint, Server},
};

use super::*;

/// The farm's service over gRPC on a loopback socket, with a count of the ids asked and the bytes sent.
struct Counted {
    client: ContextServiceClient<tonic::transport::Channel>,
    asked: AtomicU64,
}

#[async_trait::async_trait]
impl FarmChunks for Counted {
    async fn find_missing(&self, ids: Vec<u8>) -> Result<Vec<u8>, Status> {
        self.asked.fetch_add(ids.len() as u64 / 32, Ordering::Relaxed);
        FarmChunks::find_missing(&self.client, ids).await
    }

    async fn upload(&self, requests: ReceiverStream<UploadRequest>) -> Result<UploadResponse, Status> {
        FarmChunks::upload(&self.client, requests).await
    }
}

/// `FetchContext` without the network.
struct Direct(Arc<Contexts>);

#[async_trait::async_trait]
impl ChunkSource for Direct {
    async fn fetch(&self, ids: &[ChunkId]) -> Result<ChunkStream, SourceError> {
        let ids = ids.iter().flat_map(ChunkId::as_bytes).copied().collect();
        let request = FetchContextRequest { attempt_id: String::new(), ids };
        let refused = |status| SourceError::Refused(Box::new(status));
        let answers = fetch_context(&self.0, &request).await.map_err(refused)?;
        let chunks = answers.flat_map(move |answer| match answer {
            Ok(answer) => stream::iter(answer.chunks.into_iter().map(|chunk| Ok(chunk.data)).collect::<Vec<_>>()),
            Err(status) => stream::iter(vec![Err(refused(status))]),
        });
        Ok(chunks.boxed())
    }
}

struct Farm {
    contexts: Arc<Contexts>,
    chunks: Arc<Counted>,
    _directory: tempfile::TempDir,
}

impl Farm {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("dir");
        let contexts = Contexts::open_local(directory.path()).await.expect("opens");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("address");
        let service = ContextServiceServer::new(ContextUploads::new(contexts.clone()))
            .max_decoding_message_size(kiln_common::limits::MESSAGE_BYTES);
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        let channel =
            Endpoint::from_shared(format!("http://{address}")).expect("uri").connect().await.expect("connects");
        let client = ContextServiceClient::new(channel);
        Self { contexts, chunks: Arc::new(Counted { client, asked: AtomicU64::new(0) }), _directory: directory }
    }

    async fn upload(&self, context: &Context, trust: Trust) -> Uploaded {
        context.upload(self.chunks.clone(), "farm", trust, |_| ()).await.expect("uploads")
    }

    async fn is_complete(&self, digest: ContextDigest) -> bool {
        self.contexts.is_complete(digest, Timestamp::now()).await.expect("asks") == Completeness::Complete
    }

    fn asked(&self) -> u64 {
        self.chunks.asked.swap(0, Ordering::Relaxed)
    }

    async fn tree(&self, digest: ContextDigest) -> Arc<ContextTree> {
        let directory = tempfile::tempdir().expect("dir");
        let store = ContextStore::open(directory.path(), CacheConfig::default()).await.expect("opens");
        ContextTree::open(&store, Arc::new(Direct(self.contexts.clone())), digest).await.expect("opens")
    }
}

struct Project {
    source: tempfile::TempDir,
    cache: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        let project = Self { source: tempfile::tempdir().expect("dir"), cache: tempfile::tempdir().expect("dir") };
        project.write("Dockerfile", b"FROM scratch\nCOPY . /\n");
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.source.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path(name).parent().expect("parent")).expect("mkdir");
        fs::write(self.path(name), bytes).expect("writes");
        self.age(name);
    }

    /// Back in time, so that the cache may trust it; the change time cannot be set, so the tests wait it out.
    fn age(&self, name: &str) {
        let file = fs::File::options().write(true).open(self.path(name)).expect("opens");
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(100)).expect("sets");
    }

    fn request(&self) -> ContextRequest {
        ContextRequest {
            source: Source::Directory(self.source.path().into()),
            dockerfile: None,
            named: BTreeMap::new(),
            cache_dir: Some(self.cache.path().into()),
        }
    }

    async fn prepare(&self) -> Context {
        Context::prepare(self.request()).await.expect("prepares")
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test]
async fn links_modes_empty_directories_and_large_files_reach_the_worker() {
    let (farm, project) = (Farm::start().await, Project::new());
    project.write("large", &noise(1, 5_000_000));
    project.write("bin/tool", b"#!");
    project.write(".dockerignore", b"*.log\n!keep.log\n.dockerignore\nDockerfile\n");
    project.write("a.log", b"no");
    project.write("keep.log", b"yes");
    project.write("empty-file", b"");
    fs::create_dir(project.path("empty")).expect("mkdir");
    fs::hard_link(project.path("bin/tool"), project.path("tool2")).expect("link");
    symlink("bin/tool", project.path("link")).expect("symlink");
    fs::set_permissions(project.path("bin/tool"), fs::Permissions::from_mode(0o4755)).expect("chmod");
    let uploaded = farm.upload(&project.prepare().await, Trust::EarlierUploads).await;
    let digest = uploaded.context.expect("context");
    assert!(farm.is_complete(digest).await && farm.is_complete(uploaded.dockerfile.tree).await);
    let tree = farm.tree(digest).await;
    let paths: Vec<_> = tree.manifest().entries().iter().map(|entry| &*entry.path).collect();
    let expected = [".dockerignore", "bin", "bin/tool", "empty", "empty-file", "keep.log", "large", "link", "tool2"];
    assert_eq!(paths, expected);
    let get = |path: &str| tree.manifest().get(path).expect(path);
    assert_eq!((get("bin/tool").mode, get("large").size()), (0o4755, 5_000_000));
    assert!(matches!(&get("tool2").kind, EntryKind::HardLink(first) if &**first == "bin/tool"));
    assert!(matches!(&get("large").kind, EntryKind::File(chunks) if chunks.len() > 1));
    let dockerfile = farm.tree(uploaded.dockerfile.tree).await;
    assert!(dockerfile.manifest().get("Dockerfile").is_some());
}

#[tokio::test]
async fn an_unchanged_context_asks_nothing_and_a_changed_file_costs_little_more_than_itself() {
    let (farm, project) = (Farm::start().await, Project::new());
    for index in 0..2000 {
        project.write(&format!("d{}/f{index}", index % 20), &noise(index, 2000));
    }
    // Until the files are old enough for the cache.
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    let first = farm.upload(&project.prepare().await, Trust::EarlierUploads).await;
    assert!(first.bytes_sent > 4_000_000 && farm.asked() > 2000);
    let again = farm.upload(&project.prepare().await, Trust::EarlierUploads).await;
    assert_eq!((again.bytes_sent, again.context), (0, first.context));
    // The Dockerfile's little tree alone.
    assert!(farm.asked() <= 3);
    project.write("d3/f43", b"changed");
    let changed = farm.upload(&project.prepare().await, Trust::EarlierUploads).await;
    assert_ne!(changed.context, first.context);
    assert!(changed.bytes_sent < 60_000, "{}", changed.bytes_sent);
    assert!(farm.asked() < 20);
    assert!(farm.is_complete(changed.context.expect("context")).await);
}

#[tokio::test]
async fn a_farm_that_lost_everything_gets_all_of_it_again() {
    let (farm, project) = (Farm::start().await, Project::new());
    project.write("a", &noise(1, 100_000));
    project.write("large", &noise(2, 3_000_000));
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    let context = project.prepare().await;
    let first = farm.upload(&context, Trust::EarlierUploads).await;
    let other = Farm::start().await;
    for prepared in [context, project.prepare().await] {
        let forgetful = other.upload(&prepared, Trust::EarlierUploads).await;
        // The Dockerfile's little tree alone, which is never taken for granted.
        assert!(forgetful.bytes_sent < 200);
    }
    assert!(!other.is_complete(first.context.expect("context")).await);
    let again = other.upload(&project.prepare().await, Trust::Nothing).await;
    assert_eq!(again.context, first.context);
    assert!(again.bytes_sent > 3_100_000);
    assert!(other.is_complete(first.context.expect("context")).await);
    // Another farm's name is not trusted either.
    let third = Farm::start().await;
    let sent = project.prepare().await.upload(third.chunks.clone(), "third", Trust::EarlierUploads, |_| ()).await;
    assert_eq!(sent.expect("uploads").bytes_sent, first.bytes_sent);
}

#[tokio::test]
async fn a_file_that_changes_within_the_clock_s_grain_is_read_again() {
    let (farm, project) = (Farm::start().await, Project::new());
    project.write("f", b"one");
    let time = fs::metadata(project.path("f")).expect("metadata").modified().expect("time");
    let first = farm.upload(&project.prepare().await, Trust::EarlierUploads).await;
    fs::write(project.path("f"), b"two").expect("writes");
    fs::File::options().write(true).open(project.path("f")).expect("opens").set_modified(time).expect("sets");
    let second = farm.upload(&project.prepare().await, Trust::EarlierUploads).await;
    assert_ne!(first.context, second.context);
}

#[tokio::test]
async fn named_contexts_have_their_own_rules_and_their_errors_their_name() {
    let (farm, project, library) = (Farm::start().await, Project::new(), Project::new());
    library.write(".dockerignore", b"skip\n");
    library.write("skip", b"no");
    library.write("lib.c", b"int x;");
    let mut request = project.request();
    request.named.insert("lib".into(), library.source.path().into());
    let uploaded =
        farm.upload(&Context::prepare(request.clone()).await.expect("prepares"), Trust::EarlierUploads).await;
    let tree = farm.tree(uploaded.named["lib"]).await;
    assert!(tree.manifest().get("lib.c").is_some() && tree.manifest().get("skip").is_none());
    request.named.insert("gone".into(), "/no/such/directory".into());
    let error = Context::prepare(request).await.expect_err("fails").to_string();
    assert!(error.contains("`gone`") && error.contains("/no/such/directory"), "{error}");
}

#[tokio::test]
async fn a_farm_that_refuses_is_told_as_it_said() {
    struct Refusing;
    #[async_trait::async_trait]
    impl FarmChunks for Refusing {
        async fn find_missing(&self, ids: Vec<u8>) -> Result<Vec<u8>, Status> {
            Ok(ids)
        }
        async fn upload(&self, _: ReceiverStream<UploadRequest>) -> Result<UploadResponse, Status> {
            Err(Status::resource_exhausted("full"))
        }
    }
    let project = Project::new();
    for index in 0..40 {
        project.write(&format!("f{index}"), &noise(index, 1_000_000));
    }
    let error = project.prepare().await.upload(Arc::new(Refusing), "farm", Trust::Nothing, |_| ()).await;
    assert_eq!(error.expect_err("refused").to_string(), "the farm did not take the context: full");
}
