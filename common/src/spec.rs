//! What a build is asked to do: decoded and checked once at the edge, carried unchanged to the worker.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Digest, EmulationPolicy, Feature, FeatureSet, ImageReference, Platform, Repository,
    context::{ContextDigest, pattern::PatternMatcher},
    limits,
    smoke::Smoke,
};

/// One user request, complete but for its secrets' values and its registry credentials, which travel and rest apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSpec {
    /// The input tree; `None` is an empty one.
    pub context: Option<ContextDigest>,
    /// A small tree of its own: the Dockerfile and, where there is one, its ignore file.
    pub dockerfile: Dockerfile,
    /// `--build-context NAME=...`.
    #[serde(default)]
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// The legs, in the order of the index; never empty, no platform twice.
    pub platforms: Vec<PlatformRequest>,
    /// What is to name the result; never empty, each with a tag.
    pub tags: Vec<ImageReference>,
    #[serde(default)]
    pub build_args: BTreeMap<String, String>,
    #[serde(default)]
    pub target: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: Vec<Annotation>,
    /// Ids of the secrets that `RUN --mount=type=secret` may ask for.
    #[serde(default)]
    pub secret_ids: Vec<String>,
    /// Ids of the ssh agents that `RUN --mount=type=ssh` may ask for.
    #[serde(default)]
    pub ssh_ids: Vec<String>,
    #[serde(default)]
    pub no_cache: bool,
    /// `--no-cache-filter`: stages that are built anew.
    #[serde(default)]
    pub no_cache_stages: Vec<String>,
    /// Look for newer base images.
    #[serde(default)]
    pub pull: bool,
    #[serde(default)]
    pub cache_from: Vec<CacheOption>,
    #[serde(default)]
    pub cache_to: Vec<CacheOption>,
    #[serde(default)]
    pub network: NetworkMode,
    #[serde(default)]
    pub add_hosts: Vec<AddHost>,
    /// Size of `/dev/shm` for RUN, in bytes; `None` leaves it to the engine.
    #[serde(default)]
    pub shm_size: Option<u64>,
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    /// BuildKit's `attest:provenance` attributes (for example `mode=max`); `None` attaches none.
    #[serde(default)]
    pub provenance: Option<String>,
    /// BuildKit's `attest:sbom` attributes; `None` attaches none.
    #[serde(default)]
    pub sbom: Option<String>,
    #[serde(default)]
    pub media_types: MediaTypes,
    /// What is looked at before a tag moves.
    #[serde(default)]
    pub verify: Verify,
    /// Paths at which programs of other platforms may lie, as patterns of `.dockerignore`.
    #[serde(default)]
    pub verify_allow: Vec<String>,
    /// How the layers that the build makes are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Give every file of the layers the time of the build argument `SOURCE_DATE_EPOCH` at most.
    #[serde(default)]
    pub rewrite_timestamp: bool,
    #[serde(default)]
    pub smoke: Option<Smoke>,
    /// Sign what is published; `None` signs where the farm has a key.
    #[serde(default)]
    pub sign: Option<bool>,
    /// Move no tag that someone else moved since the submit.
    #[serde(default)]
    pub if_unchanged: bool,
    /// What tags have to name before they move; `None` is nothing. With `if_unchanged` the farm fills in the others.
    #[serde(default)]
    pub expected_tags: BTreeMap<ImageReference, Option<Digest>>,
    #[serde(default)]
    pub emulation: EmulationPolicy,
    /// Labels that a worker must carry.
    #[serde(default)]
    pub required_labels: BTreeMap<String, String>,
    /// -10 to 10; higher goes first.
    #[serde(default)]
    pub priority: i32,
    /// From submit to final state.
    pub timeout: Duration,
    /// How long a leg may wait for a worker before it fails; `None`: as long as the build lasts.
    #[serde(default)]
    pub queue_timeout: Option<Duration>,
    /// Who shares the farm fairly; the first tag's repository unless named.
    pub project: String,
    /// Where the source came from, for people: a path, a URL with its commit.
    #[serde(default)]
    pub source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dockerfile {
    pub tree: ContextDigest,
    /// The file's name within the tree.
    pub filename: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedContext {
    /// A tree that the client uploaded.
    Tree(ContextDigest),
    /// What BuildKit resolves itself: `docker-image://...`, a git or http URL.
    Reference(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformRequest {
    pub platform: Platform,
    /// An optional leg that fails leaves the build incomplete instead of failed.
    pub required: bool,
}

/// Where an annotation goes (buildx's `--annotation` prefixes).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnnotationScope {
    Index,
    /// Every leg's manifest, or one platform's.
    Manifest(Option<Platform>),
    /// Every leg's descriptor in the index, or one platform's.
    ManifestDescriptor(Option<Platform>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Annotation {
    pub scope: AnnotationScope,
    pub key: String,
    pub value: String,
}

/// One `--cache-from` or `--cache-to`: `type=registry,ref=...`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CacheOption {
    pub kind: CacheKind,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheKind {
    Registry,
    Inline,
}

/// The network of RUN steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    #[default]
    Default,
    None,
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AddHost {
    pub name: String,
    /// `None` is Docker's `host-gateway`.
    pub address: Option<IpAddr>,
}

/// `--ulimit NAME=SOFT[:HARD]`; -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MediaTypes {
    #[default]
    Oci,
    Docker,
}

/// How closely the legs are verified before a tag moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// The configuration's platform, and the programs in the layers.
    #[default]
    Programs,
    /// The configuration's platform alone.
    Off,
}

/// How new layers are compressed; those of base images stay as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// The engine's own, which is gzip.
    #[default]
    Default,
    Gzip,
    Zstd,
    /// gzip with a table of contents, for lazy pulling.
    Estargz,
}

impl Compression {
    /// The name in flags and in BuildKit's exporter attribute; `None` leaves it out.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Default => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
            Self::Estargz => Some("estargz"),
        }
    }

    /// Every engine writes gzip by itself; the others need an exporter that can be told.
    const fn needs_exporter(self) -> bool {
        match self {
            Self::Default | Self::Gzip => false,
            Self::Zstd | Self::Estargz => true,
        }
    }
}

/// A leg's image as its worker pushed it (OCI image-spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDescriptor {
    pub media_type: String,
    pub digest: Digest,
    /// Bytes of the manifest (or, with attestations, of the leg's own index).
    pub size: u64,
    /// Images that it was built from, by digest; as far as the engine names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<ImageReference>,
}

/// One field that is wrong, for `google.rpc.BadRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field in the request, for example `spec.tags[1]`.
    pub field: String,
    pub description: String,
}

impl Violation {
    #[must_use]
    pub fn new(field: impl Into<String>, description: impl fmt::Display) -> Self {
        Self { field: field.into(), description: description.to_string() }
    }
}

impl BuildSpec {
    /// All defaults; a sound spec also has platforms, tags and a project.
    #[must_use]
    pub fn bare(dockerfile: Dockerfile) -> Self {
        Self {
            context: None,
            dockerfile,
            named_contexts: BTreeMap::new(),
            platforms: Vec::new(),
            tags: Vec::new(),
            build_args: BTreeMap::new(),
            target: None,
            labels: BTreeMap::new(),
            annotations: Vec::new(),
            secret_ids: Vec::new(),
            ssh_ids: Vec::new(),
            no_cache: false,
            no_cache_stages: Vec::new(),
            pull: false,
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            network: NetworkMode::Default,
            add_hosts: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            provenance: None,
            sbom: None,
            media_types: MediaTypes::Oci,
            verify: Verify::Programs,
            verify_allow: Vec::new(),
            compression: Compression::Default,
            rewrite_timestamp: false,
            smoke: None,
            sign: None,
            if_unchanged: false,
            expected_tags: BTreeMap::new(),
            emulation: EmulationPolicy::Auto,
            required_labels: BTreeMap::new(),
            priority: 0,
            timeout: limits::BUILD_TIMEOUT_DEFAULT,
            queue_timeout: None,
            project: String::new(),
            source: String::new(),
        }
    }

    /// What the engine of a worker must be able to do for this build.
    #[must_use]
    pub fn required_features(&self) -> FeatureSet {
        let cache_to = |kind| self.cache_to.iter().any(|option| option.kind == kind);
        let manifest_annotations =
            self.annotations.iter().any(|annotation| matches!(annotation.scope, AnnotationScope::Manifest(_)));
        [
            (Feature::NamedContexts, !self.named_contexts.is_empty()),
            (Feature::CacheExportRegistry, cache_to(CacheKind::Registry)),
            (Feature::CacheExportInline, cache_to(CacheKind::Inline)),
            (Feature::Attestations, self.provenance.is_some() || self.sbom.is_some()),
            (Feature::Annotations, manifest_annotations),
            (Feature::LayerCompression, self.compression.needs_exporter()),
            (Feature::Estargz, self.compression == Compression::Estargz),
            (Feature::RewriteTimestamp, self.rewrite_timestamp),
            (Feature::StepLimits, self.shm_size.is_some() || !self.ulimits.is_empty()),
            (Feature::HostGateway, self.add_hosts.iter().any(|host| host.address.is_none())),
            (Feature::HostNetwork, self.network == NetworkMode::Host),
        ]
        .into_iter()
        .filter_map(|(feature, needed)| needed.then_some(feature))
        .collect()
    }

    /// The repositories that the tags are in, each once, in the order of the tags.
    #[must_use]
    pub fn repositories(&self) -> Vec<&Repository> {
        let mut all = Vec::new();
        for tag in &self.tags {
            if !all.contains(&tag.repository()) {
                all.push(tag.repository());
            }
        }
        all
    }

    /// Every context tree that the build reads.
    pub fn trees(&self) -> impl Iterator<Item = &ContextDigest> {
        let named = self.named_contexts.values().filter_map(|context| match context {
            NamedContext::Tree(digest) => Some(digest),
            NamedContext::Reference(_) => None,
        });
        self.context.iter().chain([&self.dockerfile.tree]).chain(named)
    }

    /// Checks every bound and every rule that spans fields.
    ///
    /// # Errors
    /// All violations at once, with the fields' paths under `spec`.
    pub fn validate(&self) -> Result<(), Vec<Violation>> {
        let mut violations = Vec::new();
        self.check_counts(&mut violations);
        self.check_platforms(&mut violations);
        self.check_tags(&mut violations);
        self.check_texts(&mut violations);
        self.check_scalars(&mut violations);
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    fn check_counts(&self, violations: &mut Vec<Violation>) {
        for (field, count, most) in [
            ("platforms", self.platforms.len(), limits::PLATFORMS_PER_BUILD),
            ("tags", self.tags.len(), limits::TAGS_PER_BUILD),
            ("build_args", self.build_args.len(), limits::BUILD_ARGS),
            ("labels", self.labels.len(), limits::LABELS),
            ("annotations", self.annotations.len(), limits::ANNOTATIONS),
            ("named_contexts", self.named_contexts.len(), limits::NAMED_CONTEXTS),
            ("secrets", self.secret_ids.len(), limits::SECRETS),
            ("ssh_ids", self.ssh_ids.len(), limits::SSH_IDS),
            ("cache_from", self.cache_from.len(), limits::CACHE_ENTRIES),
            ("cache_to", self.cache_to.len(), limits::CACHE_ENTRIES),
            ("add_hosts", self.add_hosts.len(), limits::ADD_HOSTS),
            ("ulimits", self.ulimits.len(), limits::ULIMITS),
            ("required_labels", self.required_labels.len(), limits::REQUIRED_LABELS),
            ("verify_allow", self.verify_allow.len(), limits::VERIFY_ALLOW),
        ] {
            if count > most {
                violations.push(Violation::new(
                    format!("spec.{field}"),
                    format!("{count} entries; at most {most} are allowed"),
                ));
            }
        }
    }

    fn check_platforms(&self, violations: &mut Vec<Violation>) {
        if self.platforms.is_empty() {
            violations
                .push(Violation::new("spec.platforms", "at least one platform is needed, for example linux/amd64"));
        }
        for (at, request) in self.platforms.iter().enumerate() {
            if self.platforms[..at].iter().any(|earlier| earlier.platform == request.platform) {
                let problem = format!("{} is listed twice", request.platform);
                violations.push(Violation::new(format!("spec.platforms[{at}]"), problem));
            }
        }
    }

    fn check_tags(&self, violations: &mut Vec<Violation>) {
        if self.tags.is_empty() {
            violations
                .push(Violation::new("spec.tags", "at least one tag is needed, for example registry.example/app:1.0"));
        }
        for (at, tag) in self.tags.iter().enumerate() {
            if tag.tag().is_none() || tag.digest().is_some() {
                let problem = format!("`{tag}` must have a tag and no digest");
                violations.push(Violation::new(format!("spec.tags[{at}]"), problem));
            } else if self.tags[..at].contains(tag) {
                violations.push(Violation::new(format!("spec.tags[{at}]"), format!("`{tag}` is listed twice")));
            }
        }
    }

    fn check_texts(&self, violations: &mut Vec<Violation>) {
        let mut total = 0;
        let annotations = self.annotations.iter().map(|annotation| (&annotation.key, &annotation.value));
        let cache =
            |options: &[CacheOption]| options.iter().flat_map(|option| option.attributes.clone()).collect::<Vec<_>>();
        let (cache_from, cache_to) = (cache(&self.cache_from), cache(&self.cache_to));
        let maps = [
            ("build_args", pairs(self.build_args.iter())),
            ("labels", pairs(self.labels.iter())),
            ("required_labels", pairs(self.required_labels.iter())),
            ("annotations", pairs(annotations)),
            ("cache_from", pairs(cache_from.iter().map(|(key, value)| (key, value)))),
            ("cache_to", pairs(cache_to.iter().map(|(key, value)| (key, value)))),
        ];
        for (field, entries) in maps {
            for (key, value) in entries {
                total += key.len() + value.len();
                if let Some(problem) = problem_with_pair(key, value) {
                    violations.push(Violation::new(format!("spec.{field}[{}]", shorten(key)), problem));
                }
            }
        }
        if total > limits::SPEC_BYTES {
            let most = limits::SPEC_BYTES;
            violations.push(Violation::new(
                "spec",
                format!("its keys and values take {total} bytes; at most {most} are allowed"),
            ));
        }
        let names = self.named_contexts.keys().map(|name| ("named_contexts", name));
        let ids = self.secret_ids.iter().map(|id| ("secrets", id)).chain(self.ssh_ids.iter().map(|id| ("ssh_ids", id)));
        let texts =
            [("target", self.target.as_ref()), ("provenance", self.provenance.as_ref()), ("sbom", self.sbom.as_ref())]
                .into_iter()
                .filter_map(|(field, text)| Some((field, text?)));
        for (field, text) in names.chain(ids).chain(texts).chain([("project", &self.project)]) {
            if text.is_empty() || text.len() > limits::KEY_BYTES || text.chars().any(char::is_control) {
                let problem = format!(
                    "`{}` is empty, longer than {} bytes or has control characters",
                    shorten(text),
                    limits::KEY_BYTES
                );
                violations.push(Violation::new(format!("spec.{field}"), problem));
            }
        }
        let filename = &self.dockerfile.filename;
        if filename.is_empty()
            || filename.len() > limits::PATH_BYTES
            || filename.split('/').any(|part| matches!(part, "" | "." | ".."))
        {
            violations.push(Violation::new(
                "spec.dockerfile",
                format!("`{}` is not a file name within its tree", shorten(filename)),
            ));
        }
    }

    fn check_scalars(&self, violations: &mut Vec<Violation>) {
        if !limits::PRIORITY_RANGE.contains(&self.priority) {
            violations.push(Violation::new("spec.priority", format!("{} is outside -10 to 10", self.priority)));
        }
        if self.timeout.is_zero() || self.timeout > limits::BUILD_TIMEOUT_MAX {
            violations.push(Violation::new("spec.timeout", "must be more than nothing and at most 48h"));
        }
        if self.compression == Compression::Zstd && self.media_types == MediaTypes::Docker {
            let problem = "Docker's media types know no zstd layers; use OCI's, or gzip";
            violations.push(Violation::new("spec.compression", problem));
        }
        if self.rewrite_timestamp && !self.build_args.contains_key("SOURCE_DATE_EPOCH") {
            let problem = "needs the time to write: the build argument or the variable SOURCE_DATE_EPOCH";
            violations.push(Violation::new("spec.rewrite_timestamp", problem));
        }
        if let Some(foreign) = self.expected_tags.keys().find(|tag| !self.tags.contains(tag)) {
            violations.push(Violation::new("spec.expected_tags", format!("`{foreign}` is not a tag of the build")));
        }
        if let Some(Err(error)) = self.smoke.as_ref().map(Smoke::validate) {
            violations.push(Violation::new("spec.smoke", error));
        }
        for (at, pattern) in self.verify_allow.iter().enumerate() {
            if let Err(error) = PatternMatcher::new(&[pattern]) {
                violations.push(Violation::new(format!("spec.verify_allow[{at}]"), error));
            }
        }
        if self.queue_timeout.is_some_and(|wait| wait.is_zero() || wait > limits::BUILD_TIMEOUT_MAX) {
            violations.push(Violation::new("spec.queue_timeout", "must be more than nothing and at most 48h"));
        }
        for (field, options) in [("cache_from", &self.cache_from), ("cache_to", &self.cache_to)] {
            for (at, option) in options.iter().enumerate() {
                let reference = option.attributes.get("ref");
                match (option.kind, reference.map(|text| text.parse::<ImageReference>())) {
                    (CacheKind::Registry, None) => {
                        violations.push(Violation::new(format!("spec.{field}[{at}]"), "type=registry needs ref=IMAGE"));
                    }
                    (CacheKind::Registry, Some(Err(error))) => {
                        violations.push(Violation::new(format!("spec.{field}[{at}]"), error));
                    }
                    (CacheKind::Registry, Some(Ok(_))) | (CacheKind::Inline, _) => {}
                }
            }
        }
    }
}

fn pairs<'a>(entries: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<(&'a str, &'a str)> {
    entries.map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn problem_with_pair(key: &str, value: &str) -> Option<String> {
    if key.is_empty() {
        Some("the key is empty".to_owned())
    } else if key.len() > limits::KEY_BYTES {
        Some(format!("the key is longer than {} bytes", limits::KEY_BYTES))
    } else if key.chars().any(char::is_control) {
        Some("the key has control characters".to_owned())
    } else if value.len() > limits::VALUE_BYTES {
        Some(format!("the value is longer than {} bytes", limits::VALUE_BYTES))
    } else {
        None
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The text is not one of an option's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct InvalidOption {
    pub text: String,
    pub expected: &'static str,
}

impl InvalidOption {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: shorten(text), expected }
    }
}

impl FromStr for Compression {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        match text {
            "" => Ok(Self::Default),
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            "estargz" => Ok(Self::Estargz),
            other => Err(InvalidOption::new(other, "a layer compression; use gzip, zstd or estargz")),
        }
    }
}

impl FromStr for Verify {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        match text {
            "" | "programs" => Ok(Self::Programs),
            "off" => Ok(Self::Off),
            other => Err(InvalidOption::new(other, "a way to verify; use programs or off")),
        }
    }
}

impl FromStr for NetworkMode {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        match text {
            "" | "default" => Ok(Self::Default),
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            other => Err(InvalidOption::new(other, "a network mode; use default, none or host")),
        }
    }
}

impl FromStr for AddHost {
    type Err = InvalidOption;

    /// `name:address` or `name=address`, the address an IP (brackets allowed) or `host-gateway`.
    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        let invalid = || InvalidOption::new(text, "a host entry; write NAME:IP or NAME:host-gateway");
        let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(invalid)?;
        let name_is_sound = !name.is_empty()
            && name.len() <= 253
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if !name_is_sound {
            return Err(invalid());
        }
        let address = match address {
            "host-gateway" => None,
            ip => Some(ip.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| invalid())?),
        };
        Ok(Self { name: name.to_owned(), address })
    }
}

impl fmt::Display for AddHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}={address}", self.name),
            None => write!(f, "{}=host-gateway", self.name),
        }
    }
}

const ULIMIT_NAMES: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl FromStr for Ulimit {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        let invalid = || InvalidOption::new(text, "a ulimit; write NAME=SOFT[:HARD], for example nofile=1024:2048");
        let (name, values) = text.split_once('=').ok_or_else(invalid)?;
        if !ULIMIT_NAMES.contains(&name) {
            return Err(invalid());
        }
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let parse = |value: &str| value.parse::<i64>().ok().filter(|value| *value >= -1);
        let (soft, hard) = (parse(soft).ok_or_else(invalid)?, parse(hard).ok_or_else(invalid)?);
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(InvalidOption::new(text, "a ulimit: its soft value is above its hard value"));
        }
        Ok(Self { name: name.to_owned(), soft, hard })
    }
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{}", self.name, self.soft, self.hard)
    }
}

impl FromStr for CacheOption {
    type Err = InvalidOption;

    /// `type=registry,ref=IMAGE[,KEY=VALUE]`, `type=inline`, or a bare image reference, as buildx reads them.
    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        let invalid = |expected| InvalidOption::new(text, expected);
        if !text.contains('=') {
            let attributes = BTreeMap::from([("ref".to_owned(), text.to_owned())]);
            return Ok(Self { kind: CacheKind::Registry, attributes });
        }
        let mut attributes = BTreeMap::new();
        for pair in text.split(',') {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| invalid("a cache option; write type=registry,ref=IMAGE"))?;
            attributes.insert(key.trim().to_owned(), value.trim().to_owned());
        }
        let kind = match attributes.remove("type").as_deref() {
            Some("registry") | None => CacheKind::Registry,
            Some("inline") => CacheKind::Inline,
            Some(_) => return Err(invalid("a cache that a farm can share; use type=registry or type=inline")),
        };
        Ok(Self { kind, attributes })
    }
}

/// `KEY=VALUE`, `index:KEY=VALUE`, `manifest[PLATFORM]:KEY=VALUE`, `index,manifest:KEY=VALUE` as buildx reads them;
/// one text may give several annotations. Without a prefix it goes to the manifests.
///
/// # Errors
/// [`InvalidOption`] for an unknown prefix, a malformed platform or a missing `=`.
pub fn parse_annotation(text: &str) -> Result<Vec<Annotation>, InvalidOption> {
    let invalid = |expected| InvalidOption::new(text, expected);
    let (head, value) = text.split_once('=').ok_or_else(|| invalid("an annotation; write [TYPE:]KEY=VALUE"))?;
    let scoped =
        head.split_once(':').filter(|(scopes, _)| scopes.starts_with("index") || scopes.starts_with("manifest"));
    let (scopes, key) = scoped.unwrap_or(("manifest", head));
    if key.is_empty() {
        return Err(invalid("an annotation: its key is empty"));
    }
    scopes
        .split(',')
        .map(|scope| {
            let (name, platform) = match scope.split_once('[') {
                Some((name, rest)) => {
                    let platform = rest.strip_suffix(']').and_then(|text| text.parse().ok());
                    (name, Some(platform.ok_or_else(|| invalid("an annotation: its platform is malformed"))?))
                }
                None => (scope, None),
            };
            let scope = match (name, platform) {
                ("index", None) => AnnotationScope::Index,
                ("manifest", platform) => AnnotationScope::Manifest(platform),
                ("manifest-descriptor", platform) => AnnotationScope::ManifestDescriptor(platform),
                _ => return Err(invalid("an annotation; its type is index, manifest or manifest-descriptor")),
            };
            Ok(Annotation { scope, key: key.to_owned(), value: value.to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::ChunkId;

    fn spec() -> BuildSpec {
        let tree = ContextDigest(ChunkId::of(b"tree"));
        BuildSpec {
            platforms: vec![PlatformRequest { platform: "linux/amd64".parse().unwrap(), required: true }],
            tags: vec!["r.example/app:1".parse().unwrap()],
            project: "r.example/app".into(),
            ..BuildSpec::bare(Dockerfile { tree, filename: "Dockerfile".into() })
        }
    }

    fn fields(spec: &BuildSpec) -> Vec<String> {
        spec.validate().err().unwrap_or_default().into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn a_sound_spec_passes_and_reads_back_from_its_record() {
        let spec = spec();
        assert_eq!(spec.validate(), Ok(()));
        let record = serde_json::to_string(&spec).expect("serializes");
        assert_eq!(serde_json::from_str::<BuildSpec>(&record).expect("reads back"), spec);
    }

    #[test]
    fn one_more_than_each_limit_is_refused_by_the_field_s_name() {
        let many = |count: usize| (0..=count).map(|i| (format!("K{i}"), String::new())).collect::<BTreeMap<_, _>>();
        assert_eq!(fields(&BuildSpec { build_args: many(limits::BUILD_ARGS), ..spec() }), ["spec.build_args"]);
        assert_eq!(fields(&BuildSpec { labels: many(limits::LABELS), ..spec() }), ["spec.labels"]);
        let value = BTreeMap::from([("K".to_owned(), "x".repeat(limits::VALUE_BYTES + 1))]);
        assert_eq!(fields(&BuildSpec { build_args: value, ..spec() }), ["spec.build_args[K]"]);
        assert_eq!(fields(&BuildSpec { priority: 11, ..spec() }), ["spec.priority"]);
        let queue_timeout = Some(limits::BUILD_TIMEOUT_MAX + Duration::from_secs(1));
        assert_eq!(fields(&BuildSpec { queue_timeout, ..spec() }), ["spec.queue_timeout"]);
        assert_eq!(fields(&BuildSpec { platforms: Vec::new(), ..spec() }), ["spec.platforms"]);
        assert_eq!(fields(&BuildSpec { tags: Vec::new(), ..spec() }), ["spec.tags"]);
    }

    #[test]
    fn features_follow_from_what_is_asked() {
        let cache_to = vec!["type=registry,ref=r.example/cache".parse().unwrap()];
        let asked = BuildSpec { cache_to, provenance: Some("mode=max".into()), ..spec() };
        assert_eq!(asked.required_features(), FeatureSet::from([Feature::CacheExportRegistry, Feature::Attestations]));
        let add_hosts = vec!["db:10.0.0.1".parse().unwrap()];
        let asked = BuildSpec { add_hosts, network: NetworkMode::None, ..spec() };
        assert_eq!(asked.required_features(), FeatureSet::new());
        let add_hosts = vec!["gw:host-gateway".parse().unwrap()];
        let asked = BuildSpec { add_hosts, network: NetworkMode::Host, ..spec() };
        assert_eq!(asked.required_features(), FeatureSet::from([Feature::HostGateway, Feature::HostNetwork]));
    }

    #[test]
    fn what_cannot_be_published_is_refused_before_it_is_built() {
        let zstd = BuildSpec { compression: Compression::Zstd, ..spec() };
        assert_eq!(zstd.required_features(), FeatureSet::from([Feature::LayerCompression]));
        let estargz = BuildSpec { compression: Compression::Estargz, ..spec() };
        assert_eq!(estargz.required_features(), FeatureSet::from([Feature::LayerCompression, Feature::Estargz]));
        assert_eq!(fields(&BuildSpec { media_types: MediaTypes::Docker, ..zstd }), ["spec.compression"]);
        let rewritten = BuildSpec { rewrite_timestamp: true, ..spec() };
        assert_eq!(fields(&rewritten), ["spec.rewrite_timestamp"]);
        let build_args = BTreeMap::from([("SOURCE_DATE_EPOCH".to_owned(), "0".to_owned())]);
        assert_eq!(fields(&BuildSpec { build_args, ..rewritten }), [""; 0]);
        assert_eq!(fields(&BuildSpec { verify_allow: vec!["[".into()], ..spec() }), ["spec.verify_allow[0]"]);
        let smoke = Some(Smoke { command: "'".into(), expect: None });
        assert_eq!(fields(&BuildSpec { smoke, ..spec() }), ["spec.smoke"]);
    }

    #[test]
    fn options_read_as_docker_reads_them() {
        assert_eq!("db:10.0.0.1".parse::<AddHost>().unwrap().to_string(), "db=10.0.0.1");
        assert_eq!("db=[::1]".parse::<AddHost>().unwrap().to_string(), "db=::1");
        assert_eq!("gw:host-gateway".parse::<AddHost>().unwrap().address, None);
        assert_eq!("nofile=1024".parse::<Ulimit>().unwrap().to_string(), "nofile=1024:1024");
        assert!("nofile=9:1".parse::<Ulimit>().is_err());
        assert!("bogus=1".parse::<Ulimit>().is_err());
        assert!("type=local,dest=x".parse::<CacheOption>().is_err());
        let both = parse_annotation("index,manifest[linux/arm64]:a.b=c").unwrap();
        assert_eq!(both.len(), 2);
        assert_eq!(both[1].scope, AnnotationScope::Manifest(Some("linux/arm64".parse().unwrap())));
        assert!(parse_annotation("no-equals").is_err());
    }
}
