//! What the tests against real engines share: the bed's engines, trees from text, jobs, and a look into the registry.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::TcpStream,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use kiln_common::{
    AttemptId, BuildSpec, EmulationPolicy, Grade,
    context::{ChunkId, ChunkRef, ContextDigest, Entry, EntryKind, ManifestEncoder, compare_paths},
    spec::{Dockerfile, ImageDescriptor, PlatformRequest},
};
use kiln_proto::v1::{ProgressEntry, progress_entry::Event};
use kiln_worker::{
    context::{CacheConfig, ContextStore, ContextTree, FileSyncService, MemorySource},
    engine::{BuildError, BuildJob, BuildOutcome, Engine, NoAgents, Progress},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Set by `tests/run.sh`, from `bed.env`.
pub fn bed(key: &str) -> String {
    env::var(key).unwrap_or_else(|_| panic!("{key} is not set: run through tests/run.sh"))
}

/// The interpreter that the bed's handlers use.
pub fn qemu(architecture: &str) -> PathBuf {
    let cache = env::var_os("KILN_BED_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(env::var_os("HOME").expect("a home")).join(".cache/kiln-bed"));
    cache.join("qemu-v1/bin").join(format!("qemu-{architecture}"))
}

/// Every engine that the bed has, by name.
pub fn addresses() -> Vec<(&'static str, String)> {
    let mut all = vec![("docker20", bed("KILN_BED_DOCKER20")), ("docker28", bed("KILN_BED_DOCKER28"))];
    let others = [("docker28-classic", "KILN_BED_DOCKER28_CLASSIC"), ("buildkit", "KILN_BED_BUILDKIT")];
    all.extend(others.into_iter().filter_map(|(name, key)| Some((name, env::var(key).ok()?))));
    all
}

pub async fn engines() -> Vec<(&'static str, Engine)> {
    let mut all = Vec::new();
    for (name, address) in addresses() {
        let engine = Engine::connect(address.parse().expect("an address")).await;
        all.push((name, engine.unwrap_or_else(|error| panic!("{name}: {error}"))));
    }
    all
}

pub fn registry() -> String {
    bed("KILN_BED_REGISTRY")
}

/// A repository that no other test and no earlier run has.
pub fn fresh_repository(registry: &str) -> String {
    format!("{registry}/engine/{}", AttemptId::generate().to_string().replace('-', ""))
}

/// A tree of text files, with the folders that they are in.
pub async fn tree(files: &[(&str, &str)]) -> Arc<ContextTree> {
    let mut source = MemorySource::default();
    let folders: BTreeSet<&str> = files.iter().filter_map(|(path, _)| Some(path.rsplit_once('/')?.0)).collect();
    let mut entries: Vec<Entry> = folders
        .into_iter()
        .map(|path| Entry { path: path.into(), kind: EntryKind::Directory, mode: 0o755, mtime_ns: 0 })
        .collect();
    for (path, text) in files {
        let chunk = |text: &&str| ChunkRef { id: source.insert(text.as_bytes().to_vec()), len: text.len() as u32 };
        let chunks = Some(text).filter(|text| !text.is_empty()).map(chunk).into_iter().collect();
        entries.push(Entry { path: (*path).into(), kind: EntryKind::File(chunks), mode: 0o644, mtime_ns: 0 });
    }
    entries.sort_by(|one, other| compare_paths(&one.path, &other.path));
    let mut encoder = ManifestEncoder::default();
    for entry in &entries {
        if let Some(chunk) = encoder.push(entry).expect("valid") {
            source.insert(chunk.bytes);
        }
    }
    let (last, root, digest) = encoder.finish().expect("small");
    for chunk in last.into_iter().chain([root]) {
        source.insert(chunk.bytes);
    }
    let folder = tempfile::tempdir().expect("a folder").keep();
    let store = ContextStore::open(&folder, CacheConfig::default()).await.expect("a store");
    ContextTree::open(&store, Arc::new(source), digest).await.expect("a tree")
}

/// A spec for this machine's platform with one tag in `repository`.
pub fn spec(repository: &str) -> BuildSpec {
    let dockerfile = Dockerfile { tree: ContextDigest(ChunkId::of(b"")), filename: "Dockerfile".into() };
    serde_json::from_value(json!({
        "context": null,
        "dockerfile": dockerfile,
        "platforms": [PlatformRequest { platform: "linux/amd64".parse().expect("a platform"), required: true }],
        "tags": [format!("{repository}:never-made-by-a-worker")],
        "timeout": kiln_common::limits::BUILD_TIMEOUT_DEFAULT,
        "emulation": EmulationPolicy::Auto,
        "project": "bed",
    }))
    .expect("a spec")
}

pub type Job = BuildJob;

/// A job for `dockerfile` in a context of `files`.
pub async fn job(spec: BuildSpec, dockerfile: &str, files: &[(&str, &str)]) -> Job {
    let trees = BTreeMap::from([
        ("context".to_owned(), tree(files).await),
        ("dockerfile".to_owned(), tree(&[("Dockerfile", dockerfile)]).await),
    ]);
    BuildJob {
        attempt: AttemptId::generate(),
        platform: spec.platforms[0].platform.clone(),
        grade: Grade::Native,
        spec: Arc::new(spec),
        secrets: BTreeMap::new(),
        credentials: BTreeMap::new(),
        insecure_registries: BTreeSet::new(),
        filesync: FileSyncService::new(trees),
        agents: Arc::new(NoAgents),
        // These trees' files all have the same time, and BuildKit tells versions of a file by size and time.
        shared_key: AttemptId::generate().to_string(),
        builder_id: String::new(),
    }
}

/// What a build reported.
#[derive(Clone, Default)]
pub struct Seen(pub Arc<Mutex<Vec<ProgressEntry>>>);

impl Seen {
    pub fn progress(&self) -> Progress {
        let seen = self.0.clone();
        Arc::new(move |entry| seen.lock().expect("no panic").push(entry))
    }

    /// All output lines, joined.
    pub fn output(&self) -> String {
        let entries = self.0.lock().expect("no panic");
        let lines = entries.iter().filter_map(|entry| match entry.event.as_ref()? {
            Event::Line(line) => Some(String::from_utf8_lossy(&line.text).into_owned()),
            Event::Vertex(_) | Event::Status(_) | Event::Warning(_) => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// How many of the client's sources of this name the engine asked for.
    pub fn transfers_of(&self, directory: &str) -> usize {
        let entries = self.0.lock().expect("no panic");
        let names = [format!("transferring {directory}:"), format!("transferring {directory}")];
        let transfers = entries.iter().filter_map(|entry| match entry.event.as_ref()? {
            Event::Status(status) if names.contains(&status.id) || names.contains(&status.name) => Some(&status.vertex),
            Event::Status(_) | Event::Line(_) | Event::Vertex(_) | Event::Warning(_) => None,
        });
        transfers.collect::<BTreeSet<_>>().len()
    }

    /// Whether the engine asked for a directory of the client's.
    pub fn transferred(&self) -> bool {
        let entries = self.0.lock().expect("no panic");
        entries.iter().any(|entry| match &entry.event {
            Some(Event::Status(status)) => {
                status.id.starts_with("transferring") || status.name.starts_with("transferring")
            }
            Some(Event::Line(_) | Event::Vertex(_) | Event::Warning(_)) | None => false,
        })
    }
}

pub async fn build(engine: &Engine, job: Job) -> (BuildOutcome, Seen) {
    let seen = Seen::default();
    let outcome = engine.build(job, seen.progress(), CancellationToken::new()).await;
    (outcome, seen)
}

/// Builds what must succeed.
pub async fn built(name: &str, engine: &Engine, job: Job) -> (ImageDescriptor, Seen) {
    let (outcome, seen) = build(engine, job).await;
    (outcome.unwrap_or_else(|error| panic!("{name}: {error}\n{}", seen.output())), seen)
}

/// Builds what must fail, by the user's own doing.
pub async fn failed(name: &str, engine: &Engine, job: Job) -> (String, Seen) {
    match build(engine, job).await {
        (Err(BuildError::Build(message)), seen) => (message, seen),
        (other, seen) => panic!("{name}: {other:?}\n{}", seen.output()),
    }
}

/// The manifest and the configuration of what was pushed, read over the registry's own API.
pub fn pushed(repository: &str, descriptor: &ImageDescriptor) -> (Value, Value) {
    let (host, name) = repository.split_once('/').expect("a repository");
    let manifest = get(&format!("http://{host}/v2/{name}/manifests/{}", descriptor.digest), &descriptor.media_type);
    assert_eq!(manifest.len() as u64, descriptor.size);
    let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest");
    let config = manifest["config"]["digest"].as_str().map(|digest| {
        serde_json::from_slice(&get(&format!("http://{host}/v2/{name}/blobs/{digest}"), "*/*")).expect("a config")
    });
    (manifest, config.unwrap_or_default())
}

/// The tags of a repository: none, also where the registry does not list a repository without tags.
pub fn tags(repository: &str) -> Vec<String> {
    let (host, name) = repository.split_once('/').expect("a repository");
    let output = Command::new("curl").args(["-s", &format!("http://{host}/v2/{name}/tags/list")]).output();
    let list: Value = serde_json::from_slice(&output.expect("curl runs").stdout).expect("json");
    list["tags"].as_array().into_iter().flatten().map(ToString::to_string).collect()
}

fn get(url: &str, accept: &str) -> Vec<u8> {
    let output = Command::new("curl").args(["-sfL", "-H", &format!("Accept: {accept}"), url]).output();
    let output = output.expect("curl runs");
    assert!(output.status.success(), "{url}: {}", output.status);
    output.stdout
}

/// Names that ended attempts left in a dockerd's store; those of running ones have a proxy that answers.
pub fn leftovers(address: &str) -> Vec<String> {
    let socket = address.strip_prefix("unix://").expect("a unix socket");
    let output = Command::new("curl").args(["-s", "--unix-socket", socket, "http://docker/images/json"]).output();
    let images: Value = serde_json::from_slice(&output.expect("curl runs").stdout).expect("json");
    let names = images.as_array().into_iter().flatten().filter_map(|image| image["RepoTags"].as_array()).flatten();
    names
        .filter_map(|name| name.as_str())
        .filter(|name| name.split_once("/kiln-").is_some_and(|(proxy, _)| TcpStream::connect(proxy).is_err()))
        .map(str::to_owned)
        .collect()
}

/// Waits for what has to become true soon.
pub async fn eventually(mut is_so: impl FnMut() -> bool) {
    for _ in 0..300 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not become so within 15 s");
}

/// Whether a process with this command line runs on this machine, in whatever container.
pub fn runs(command: &str) -> bool {
    let wanted = command.replace(' ', "\0") + "\0";
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|line| line == wanted.as_bytes())
}
