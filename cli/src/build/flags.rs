//! The flags of `kiln build`: those of `docker buildx build`, and the farm's own.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use crate::progress::Mode;

#[derive(Debug, Args)]
pub struct BuildFlags {
    /// The context: a directory, a Git URL, or `-` for a tar archive or a Dockerfile on standard input
    #[arg(value_name = "PATH | URL | -")]
    pub context: String,

    /// What to name the result; repeat it for several tags and repositories
    #[arg(short, long = "tag", value_name = "NAME:TAG")]
    pub tags: Vec<String>,

    /// Path of the Dockerfile, or `-` for standard input [default: PATH/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,

    /// Platforms to build for, separated by commas [default: the one of this machine]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub platform: Vec<String>,

    /// Platforms that the build can do without; a failed one leaves the build incomplete
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Farm")]
    pub optional_platform: Vec<String>,

    /// Set an ARG of the Dockerfile; without a value it is taken from the environment
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub build_arg: Vec<String>,

    /// Add a named context: a directory, docker-image://IMAGE or a Git URL
    #[arg(long, value_name = "NAME=SOURCE")]
    pub build_context: Vec<String>,

    /// The stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,

    /// Set a label of the image
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,

    /// Set an annotation of the manifests, or of the index with `index:KEY=VALUE`
    #[arg(long, value_name = "[TYPE:]KEY=VALUE")]
    pub annotation: Vec<String>,

    /// A secret for RUN --mount=type=secret: id=ID,src=FILE or id=ID,env=VARIABLE
    #[arg(long, value_name = "id=ID[,src=FILE|,env=VAR]")]
    pub secret: Vec<String>,

    /// An ssh agent for RUN --mount=type=ssh: `default`, or ID=SOCKET, or ID=KEYFILE with more files after commas
    #[arg(long, value_name = "default|ID[=SOCKET|KEY]")]
    pub ssh: Vec<String>,

    /// Build every step anew
    #[arg(long)]
    pub no_cache: bool,

    /// Build the steps of these stages anew
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub no_cache_filter: Vec<String>,

    /// Look for newer base images
    #[arg(long)]
    pub pull: bool,

    /// A cache to read: type=registry,ref=IMAGE
    #[arg(long, value_name = "CACHE")]
    pub cache_from: Vec<String>,

    /// A cache to write: type=registry,ref=IMAGE[,mode=max] or type=inline
    #[arg(long, value_name = "CACHE")]
    pub cache_to: Vec<String>,

    /// Network of RUN steps: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default", hide_default_value = true)]
    pub network: String,

    /// An entry for /etc/hosts of RUN steps
    #[arg(long, value_name = "NAME:IP", value_delimiter = ',')]
    pub add_host: Vec<String>,

    /// Size of /dev/shm for RUN steps, for example 128m
    #[arg(long, value_name = "BYTES")]
    pub shm_size: Option<String>,

    /// A limit for RUN steps, for example nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,

    /// Attach a provenance attestation: true, false, mode=min or mode=max [default: false]
    #[arg(long, value_name = "ATTRIBUTES")]
    pub provenance: Option<String>,

    /// Attach an SBOM: true, false or generator=IMAGE [default: false]
    #[arg(long, value_name = "ATTRIBUTES")]
    pub sbom: Option<String>,

    /// Attach an attestation: type=provenance[,mode=max] or type=sbom[,generator=IMAGE]
    #[arg(long, value_name = "ATTRIBUTES")]
    pub attest: Vec<String>,

    /// Write the result's digest and descriptor to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,

    /// Write the result's digest to this file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,

    /// How to show progress
    #[arg(long, value_enum, env = "BUILDKIT_PROGRESS", default_value_t, value_name = "MODE")]
    pub progress: Mode,

    /// Only print the digest; the same as --progress quiet
    #[arg(short, long)]
    pub quiet: bool,

    /// Push the result; a farm always does
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, value_name = "BOOL")]
    pub push: Option<bool>,

    /// Return once the farm has accepted the build, and print its id
    #[arg(short, long, help_heading = "Farm")]
    pub detach: bool,

    /// When a platform may run under emulation: auto, never, now or wait=30s
    #[arg(long, value_name = "POLICY", default_value = "auto", help_heading = "Farm")]
    pub emulation: String,

    /// Only use workers with this label
    #[arg(long, value_name = "LABEL=VALUE", value_delimiter = ',', help_heading = "Farm")]
    pub require: Vec<String>,

    /// From -10 to 10; higher goes first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true, help_heading = "Farm")]
    pub priority: i32,

    /// Give up after this time, for example 90s, 30m, 1h30m [default: 4h]
    #[arg(long, value_name = "DURATION", help_heading = "Farm")]
    pub timeout: Option<String>,

    /// Fail a platform that no worker takes within this time [default: wait until --timeout]
    #[arg(long, value_name = "DURATION", help_heading = "Farm")]
    pub queue_timeout: Option<String>,

    /// What is verified before a tag moves: programs (their architecture, in every layer) or off
    #[arg(long, value_name = "WHAT", default_value = "programs", help_heading = "Farm")]
    pub verify: String,

    /// Paths at which programs of other platforms lie on purpose, as in .dockerignore
    #[arg(long, value_name = "PATTERN", help_heading = "Farm")]
    pub verify_allow: Vec<String>,

    /// Move no tag that someone else moved since the build began
    #[arg(long, help_heading = "Farm")]
    pub if_unchanged: bool,

    /// Run a command in the finished image on each platform before a tag moves; it is started without a shell and a network
    #[arg(long, value_name = "CMD", help_heading = "Farm")]
    pub smoke: Option<String>,

    /// What --smoke has to print; in both {os}, {arch}, {variant} and {goarch} are filled in
    #[arg(long, value_name = "TEXT", requires = "smoke", help_heading = "Farm")]
    pub expect: Option<String>,

    /// Sign what is published [default: where the farm has a signing key]
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, value_name = "BOOL", help_heading = "Farm")]
    pub sign: Option<bool>,

    /// How new layers are compressed: gzip, zstd or estargz [default: the engine's own, gzip]
    #[arg(long, value_name = "KIND", help_heading = "Farm")]
    pub compression: Option<String>,

    /// Give the layers' files the time of SOURCE_DATE_EPOCH at most, so that the same input gives the same digests
    #[arg(long, help_heading = "Farm")]
    pub rewrite_timestamp: bool,

    /// Media types of what is published: oci or docker
    #[arg(long, value_name = "KIND", default_value = "oci", help_heading = "Farm")]
    pub media_types: String,

    /// Who shares the farm fairly [default: the repository of the first tag]
    #[arg(long, value_name = "NAME", help_heading = "Farm")]
    pub project: Option<String>,

    #[command(flatten)]
    pub foreign: ForeignFlags,
}

/// Flags of buildx that a farm cannot honour: known, so that the refusal says why.
#[derive(Debug, Args)]
pub struct ForeignFlags {
    #[arg(long, hide = true, default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pub load: Option<bool>,
    #[arg(short, long, hide = true)]
    pub output: Vec<String>,
    #[arg(long, hide = true)]
    pub builder: Option<String>,
    #[arg(long, hide = true)]
    pub allow: Vec<String>,
    #[arg(long, hide = true)]
    pub cgroup_parent: Option<String>,
    #[arg(long, hide = true)]
    pub call: Option<String>,
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    pub check: bool,
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    pub squash: bool,
    #[arg(long, hide = true)]
    pub policy: Vec<String>,
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    pub debug: bool,
    #[arg(long, hide = true)]
    pub isolation: Option<String>,
    #[arg(short, long, hide = true)]
    pub memory: Option<String>,
    #[arg(long, hide = true)]
    pub cpu_quota: Option<String>,
}
