//! Every bound on what comes from outside, in one place. Sizes are in bytes unless the name says otherwise.

use std::time::Duration;

// A build's spec.
pub const PLATFORMS_PER_BUILD: usize = 16;
pub const TAGS_PER_BUILD: usize = 32;
pub const BUILD_ARGS: usize = 256;
pub const LABELS: usize = 256;
pub const ANNOTATIONS: usize = 256;
pub const NAMED_CONTEXTS: usize = 32;
pub const SECRETS: usize = 64;
pub const SSH_IDS: usize = 16;
pub const CACHE_ENTRIES: usize = 16;
pub const ADD_HOSTS: usize = 64;
pub const ULIMITS: usize = 32;
pub const REQUIRED_LABELS: usize = 32;
pub const REGISTRY_CREDENTIALS: usize = 32;
pub const VERIFY_ALLOW: usize = 64;
/// A smoke run's command, and what it is to print.
pub const SMOKE_BYTES: usize = 4 * 1024;
/// How long a smoke run may take, what each of its processes may write to, and what is looked at of its output.
pub const SMOKE_TIMEOUT: Duration = Duration::from_secs(120);
pub const SMOKE_MEMORY_BYTES: u64 = 2 * 1024 * 1024 * 1024;
pub const SMOKE_OUTPUT_BYTES: usize = 1024 * 1024;
/// A key of a build arg, label, annotation, secret, placement label.
pub const KEY_BYTES: usize = 256;
/// A value of the same.
pub const VALUE_BYTES: usize = 32 * 1024;
/// All keys and values of one spec together: a record has to fit into one etcd request (1.5 MB).
pub const SPEC_BYTES: usize = 768 * 1024;
/// One build secret (BuildKit's own limit, `session/secrets`: 500 KiB).
pub const SECRET_BYTES: usize = 500 * 1024;
/// All secrets and registry credentials of one build.
pub const SECRETS_TOTAL_BYTES: usize = 1024 * 1024;
/// The caller's own id of a submit.
pub const REQUEST_ID_BYTES: usize = 128;
pub const DOCKERFILE_BYTES: usize = 512 * 1024;
/// Lowest and highest `--priority`.
pub const PRIORITY_RANGE: std::ops::RangeInclusive<i32> = -10..=10;
pub const BUILD_TIMEOUT_DEFAULT: Duration = Duration::from_secs(4 * 3600);
pub const BUILD_TIMEOUT_MAX: Duration = Duration::from_secs(48 * 3600);

// Image references (distribution-spec, "Pulling manifests": name and tag grammar).
pub const REPOSITORY_NAME_BYTES: usize = 255;
pub const TAG_BYTES: usize = 128;

// Contexts.
/// Largest chunk of a file, of a manifest, and the largest root.
pub const CHUNK_BYTES: usize = 4 * 1024 * 1024;
pub const CONTEXT_FILES: usize = 2_000_000;
pub const CONTEXT_BYTES: u64 = 64 * 1024 * 1024 * 1024;
pub const CONTEXT_MANIFEST_BYTES: u64 = 1024 * 1024 * 1024;
/// Longest path in a context and longest symlink target (Linux `PATH_MAX`).
pub const PATH_BYTES: usize = 4096;
/// All paths of one context together: shared prefixes are written once, but held in full.
pub const CONTEXT_PATHS_BYTES: u64 = 256 * 1024 * 1024;
/// Ids in one `FindMissing` or `FetchContext` call.
pub const CHUNK_IDS_PER_CALL: usize = 32 * 1024;
/// Fetching a Git repository as a context.
pub const GIT_FETCH_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How often the farm looks for contexts that nobody needs, and for how long after its last use it keeps one.
pub const CONTEXT_COLLECT_EVERY: Duration = Duration::from_secs(3600);
pub const CONTEXT_KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// An upload that sends nothing for this long gives its memory back.
pub const UPLOAD_IDLE: Duration = Duration::from_secs(5);
/// A worker's cache of chunks on disk, its segments and the chunks in it.
pub const CONTEXT_CACHE_BYTES: u64 = 2 * 1024 * 1024 * 1024;
pub const CONTEXT_CACHE_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
pub const CONTEXT_CACHE_CHUNKS: usize = 512 * 1024;
/// Chunks that a worker remembers to have fetched once, and up to as many before them.
pub const CONTEXT_CHUNKS_ONCE: usize = 64 * 1024;
/// File contents that one read of a context takes at once, unless one chunk alone is longer.
pub const CONTEXT_READ_BYTES: u64 = 2 * 1024 * 1024;
/// A context of this many entries and more is given to the engine in parts, up to so many, where steps read such.
pub const CONTEXT_ENTRIES_TO_DIVIDE: usize = 2_000;
pub const CONTEXT_PARTS: usize = 16;
/// Files that the engine is served at once, in as many batches.
pub const FILE_SYNC_BATCHES: usize = 4;
pub const FILE_SYNC_BATCH_FILES: usize = 512;
/// File contents in one packet to the engine.
pub const FILE_SYNC_PACKET_BYTES: usize = 64 * 1024;
/// Rules in one `.dockerignore`, and bytes of one.
pub const IGNORE_RULES: usize = 10_000;
pub const IGNORE_BYTES: usize = 1024 * 1024;

// The wire.
/// Largest gRPC message either side accepts: one chunk and its frame.
pub const MESSAGE_BYTES: usize = CHUNK_BYTES + 256 * 1024;
pub const PAGE_SIZE_DEFAULT: usize = 50;
pub const PAGE_SIZE_MAX: usize = 500;
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an idle connection is asked whether it lives, and how long it may take to answer.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 flow control: what a peer may send ahead on one stream and on one connection.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// The HTTP port: connections, bytes of one request's head, time for head and answer.
pub const HTTP_CONNECTIONS: usize = 1024;
pub const HTTP_HEADER_BYTES: usize = 16 * 1024;
pub const HTTP_TIMEOUT: Duration = Duration::from_secs(10);
pub const CONNECTIONS: usize = 16 * 1024;
pub const STREAMS_PER_CONNECTION: u32 = 256;

// Workers.
pub const WORKERS: usize = 20_000;
pub const WORKER_SLOTS: u32 = 256;
pub const WORKER_LABELS: usize = 64;
pub const WORKER_PLATFORMS: usize = 64;
pub const WORKER_NAME_BYTES: usize = 128;
/// Effects waiting for one worker's stream; a worker that does not drain them is disconnected.
pub const SESSION_QUEUE: usize = 256;
/// Messages that a worker may send on its session within a second: every slot ends and reports several times over.
pub const SESSION_MESSAGES_PER_SECOND: u32 = 1024;
/// Heartbeats among them: none is asked for more often than ten times a second.
pub const HEARTBEATS_PER_SECOND: u32 = 32;
/// Messages on one log stream within a second. Each waits for its turn on the disk, so an honest worker never comes near.
pub const LOG_BATCHES_PER_SECOND: u32 = 4096;
/// Bytes of the agent protocol in one frame of a forwarded ssh agent.
pub const AGENT_FRAME_BYTES: usize = 64 * 1024;
/// What a worker does until it is told otherwise.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// A worker unheard of for this long is lost.
pub const HEARTBEAT_LEASE: Duration = Duration::from_secs(20);
/// A lost worker's attempts wait this long for it to return before they are tried elsewhere.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(30);
/// How often a worker looks at its disk.
pub const DISK_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// What an operator may set in place of the two above.
pub const PATIENCE_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Signs of life that a worker sends within its lease.
pub const HEARTBEATS_PER_LEASE: u32 = 4;
/// How often a task is tried again after infrastructure failures: so many retries, one try more.
pub const RETRIES_PER_TASK: u32 = 3;
/// Builds that ask for the same and share their legs; more form a group of their own.
pub const SHARING_BUILDS: usize = 64;
/// Workers that the explanation of one task names one by one; all are counted.
pub const EXPLAINED_WORKERS: usize = 200;
/// Workers that it names with each answer.
pub const EXPLAINED_NAMES: usize = 5;

// Identity.
/// Life of the coordinator's and the workers' certificates; renewed after two thirds.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
pub const CERTIFICATE_LIFE_MIN: Duration = Duration::from_secs(10 * 60);
pub const CERTIFICATE_LIFE_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);
/// A worker's certificate request.
pub const CSR_BYTES: usize = 16 * 1024;
pub const JOIN_TOKENS: usize = 1_000;
pub const JOIN_TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(3600);
pub const JOIN_TOKEN_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Tokens that let nobody in any more are remembered this long, and no more of them than of the others.
pub const JOIN_TOKEN_MEMORY: Duration = Duration::from_secs(30 * 24 * 3600);
pub const API_TOKENS: usize = 10_000;
pub const TOKEN_NAME_BYTES: usize = 128;
/// Longest `authorization` header that is looked at.
pub const BEARER_BYTES: usize = 4 * 1024;

// The audit trail.
/// Entries that are kept, about; the oldest go first.
pub const AUDIT_ENTRIES: usize = 200_000;
/// What outsiders chose in one entry: a method, a name, a reason.
pub const AUDIT_TEXT_BYTES: usize = 512;
/// Entries that wait to be written.
pub const AUDIT_QUEUE: usize = 4096;
/// Refusals of one kind and source that are written in a minute; the rest are counted.
pub const AUDIT_REFUSALS_PER_MINUTE: u32 = 10;
/// Sources of refusals that are told apart at once.
pub const AUDIT_SOURCES: usize = 1024;

// The farm.
/// Builds that are not final yet; one more is refused with RESOURCE_EXHAUSTED.
pub const OPEN_BUILDS: usize = 10_000;
/// Events waiting for the driver.
pub const DRIVER_QUEUE: usize = 4096;
/// Events that one driver turn takes: one transaction, one fsync.
pub const DRIVER_BATCH: usize = 256;
/// Watchers of one build; updates a watcher may lag behind before it is dropped.
pub const WATCHERS_PER_BUILD: usize = 1024;
pub const WATCH_QUEUE: usize = 256;

// Logs.
/// One line of build output; longer ones are cut and say so.
pub const LOG_LINE_BYTES: usize = 64 * 1024;
/// All log bytes of one attempt; what comes after is counted, not kept.
pub const LOG_BYTES_PER_ATTEMPT: u64 = 256 * 1024 * 1024;
/// Entries in one message of a log stream.
pub const LOG_BATCH_ENTRIES: usize = 512;
pub const LOG_BATCH_BYTES: usize = 512 * 1024;
/// How long a line may wait for others to share its message.
pub const LOG_BATCH_DELAY: Duration = Duration::from_millis(50);
/// Log entries of one attempt that its worker holds in memory until they are durable; what is more goes to its spool.
pub const LOG_MEMORY_BYTES: usize = 1024 * 1024;
/// All spool files of one worker.
pub const LOG_SPOOL_BYTES: u64 = 1024 * 1024 * 1024;
/// A final report waits this long for a coordinator that takes nothing of the attempt's log.
pub const LOG_STALL: Duration = Duration::from_secs(10);
/// Values that a log masks (a secret counts once per line); shorter ones than the minimum are not masked.
pub const LOG_MASKS: usize = 1024;
pub const LOG_MASK_MIN_BYTES: usize = 4;

// Registries.
/// Largest manifest or index (distribution-spec, "Pushing manifests": at least 4 MiB is to be supported).
pub const MANIFEST_BYTES: usize = 4 * 1024 * 1024;
/// Largest image configuration.
pub const IMAGE_CONFIG_BYTES: usize = 8 * 1024 * 1024;
/// How long a publish may retry a registry before it is an infrastructure failure.
pub const PUBLISH_BUDGET: Duration = Duration::from_secs(120);
pub const REGISTRY_CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a registry may take to show what it took in, before "not found" is believed.
pub const READ_AFTER_WRITE: Duration = Duration::from_secs(15);
/// First and longest wait between two tries of a registry call.
pub const REGISTRY_BACKOFF_BASE: Duration = Duration::from_millis(100);
pub const REGISTRY_BACKOFF_CAP: Duration = Duration::from_secs(5);
/// What is read of an error or of a token answer.
pub const REGISTRY_ANSWER_BYTES: usize = 64 * 1024;
/// Images that one build begins from.
pub const BASE_IMAGES: usize = 32;
/// Tags that one repository may have when things are removed from it.
pub const TAGS_PER_REPOSITORY: usize = 100_000;
/// Entries of one index.
pub const INDEX_ENTRIES: usize = 256;

// Layers, while they are verified.
/// Layers that are read at once, in all builds together.
pub const LAYERS_VERIFIED_AT_ONCE: usize = 4;
/// Files of one layer.
pub const LAYER_FILES: usize = 2_000_000;
/// What one layer may unpack to.
pub const LAYER_UNPACKED_BYTES: u64 = 64 * 1024 * 1024 * 1024;
/// One extended header of its archive: extended attributes are in there.
pub const LAYER_HEADER_BYTES: usize = 1024 * 1024;
/// What zstd may refer back to (its `--long` mode asks for 128 MiB; builders use at most 8).
pub const LAYER_WINDOW_BYTES: u64 = 128 * 1024 * 1024;
/// How long reading one layer may take.
pub const LAYER_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Verdicts that are kept.
pub const LAYER_VERDICTS: usize = 256 * 1024;
