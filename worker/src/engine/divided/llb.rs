//! A build's steps as BuildKit has them (`solver/pb/ops.proto`), as far as [`division`](super::division) reads them. What only passes
//! through stays bytes, which have the wire type of a message: it costs a board's worker nothing, and loses no field.

use std::collections::HashMap;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Definition {
    /// Operations, each after its inputs.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub def: Vec<Vec<u8>>,
    /// What is said of an operation, by its digest.
    #[prost(map = "string, bytes", tag = "2")]
    pub metadata: HashMap<String, Vec<u8>>,
    #[prost(message, optional, tag = "3")]
    pub source: Option<SourceMap>,
}

/// Where in the Dockerfile operations come from.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SourceMap {
    #[prost(map = "string, bytes", tag = "1")]
    pub locations: HashMap<String, Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub infos: Vec<Vec<u8>>,
}

/// At most one of `exec`, `source` and `file`; none of them for the last operation and for kinds that are not read here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Op {
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<Input>,
    #[prost(message, optional, tag = "2")]
    pub exec: Option<ExecOp>,
    #[prost(message, optional, tag = "3")]
    pub source: Option<SourceOp>,
    #[prost(message, optional, tag = "4")]
    pub file: Option<FileOp>,
    #[prost(bytes = "vec", optional, tag = "10")]
    pub platform: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "11")]
    pub constraints: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Input {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub index: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SourceOp {
    #[prost(string, tag = "1")]
    pub identifier: String,
    #[prost(map = "string, string", tag = "2")]
    pub attrs: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecOp {
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// Index of an input; -1 for none.
    #[prost(int64, tag = "1")]
    pub input: i64,
    #[prost(string, tag = "2")]
    pub selector: String,
    #[prost(bool, tag = "5")]
    pub readonly: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FileOp {
    #[prost(message, repeated, tag = "2")]
    pub actions: Vec<FileAction>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FileAction {
    /// Index of an input, or beyond them of an action's result.
    #[prost(int64, tag = "1")]
    pub input: i64,
    #[prost(int64, tag = "2")]
    pub secondary_input: i64,
    #[prost(message, optional, tag = "4")]
    pub copy: Option<FileActionCopy>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FileActionCopy {
    #[prost(string, tag = "1")]
    pub src: String,
    #[prost(string, repeated, tag = "12")]
    pub include_patterns: Vec<String>,
    #[prost(string, repeated, tag = "13")]
    pub exclude_patterns: Vec<String>,
}
