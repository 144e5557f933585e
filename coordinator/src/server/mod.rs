//! How the gRPC server is reached.

pub mod listener;
