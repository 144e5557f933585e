//! Package `kiln.v1`: the generated code, the only conversions between the wire and the domain, and the one map from
//! refusals to `tonic::Status`.
//!
//! Nobody outside this crate reads a generated [`v1::BuildSpec`]; progress entries alone pass through as they are,
//! because nobody decides anything by them.

mod codec;
pub mod convert;
mod protocol;
pub mod status;

pub use protocol::{Outdated, Protocols, SESSION_PROTOCOLS};

/// Generated from `kiln/v1/*.proto`; see `tests/generated.rs`.
#[allow(clippy::all, clippy::pedantic, clippy::nursery, rustdoc::all)]
pub mod v1 {
    include!("gen/kiln.v1.rs");
}

/// The encoded `FileDescriptorSet` of the package and its imports, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptor.bin");
