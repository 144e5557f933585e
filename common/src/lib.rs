//! Kiln's words as types: ids, platforms, digests, references, build specs, context manifests, limits.
//!
//! Everything here is pure and parsed once at the edge; nothing reads a clock, a file or the network.
//! The feature `runtime` adds what the programs share: configuration, TLS, telemetry, backoff, shutdown.

pub mod context;
pub mod digest;
pub mod emulation;
pub mod feature;
pub mod id;
pub mod limits;
pub mod platform;
pub mod reason;
pub mod reference;
pub mod size;
pub mod smoke;
pub mod spec;
pub mod timestamp;

#[cfg(feature = "runtime")]
pub mod runtime;

pub use digest::Digest;
pub use emulation::{EmulationPolicy, Grade};
pub use feature::{Feature, FeatureSet};
pub use id::{AttemptId, BuildId, TaskId, WorkerId};
pub use platform::Platform;
pub use reason::Reason;
pub use reference::{ImageReference, Repository};
pub use spec::BuildSpec;
pub use timestamp::Timestamp;
