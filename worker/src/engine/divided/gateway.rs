//! `moby.buildkit.v1.frontend.LLBBridge` (BuildKit's `frontend/gateway/pb/gateway.proto`): the calls of a client that stands
//! between a frontend and the engine, with the fields that are used here. A build's calls carry its reference in their
//! metadata.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::CacheOptionsEntry;
use http::uri::PathAndQuery;
use tonic::{Request, Status, client::Grpc, metadata::AsciiMetadataValue, transport::Channel};
use tonic_prost::ProstCodec;

use super::{super::solve::MESSAGE_BYTES, llb::Definition};

/// `client/buildid/metadata.go`.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

#[derive(Clone, PartialEq, prost::Message)]
pub struct Question {
    #[prost(message, optional, tag = "1")]
    pub definition: Option<Definition>,
    #[prost(string, tag = "2")]
    pub frontend: String,
    #[prost(map = "string, string", tag = "3")]
    pub frontend_opt: HashMap<String, String>,
    #[prost(bool, tag = "5")]
    pub allow_result_return: bool,
    #[prost(bool, tag = "6")]
    pub allow_result_array_ref: bool,
    /// The gateway's entries have the fields of the control API's.
    #[prost(message, repeated, tag = "12")]
    pub cache_imports: Vec<CacheOptionsEntry>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(message, optional, tag = "3")]
    result: Option<Outcome>,
}

/// `Result`, without what older gateways answer with and without attestations.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Outcome {
    #[prost(oneof = "References", tags = "3, 4")]
    pub references: Option<References>,
    #[prost(map = "string, bytes", tag = "10")]
    pub metadata: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum References {
    #[prost(message, tag = "3")]
    One(Reference),
    /// One for each platform.
    #[prost(message, tag = "4")]
    Several(ReferenceMap),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Reference {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub definition: Option<Definition>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReferenceMap {
    #[prost(map = "string, message", tag = "1")]
    pub references: HashMap<String, Reference>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Return {
    #[prost(message, optional, tag = "1")]
    result: Option<Outcome>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

/// The gateway to one running build.
pub struct Gateway {
    grpc: Grpc<Channel>,
    build: AsciiMetadataValue,
}

impl Gateway {
    /// # Errors
    /// When `build` is no reference of a build.
    pub fn new(channel: Channel, build: &str) -> Result<Self, Status> {
        let build = build.parse().map_err(|_| Status::internal("a build's reference is ASCII"))?;
        Ok(Self { grpc: Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES), build })
    }

    /// Has a frontend or a definition turned into a result, which nobody has evaluated yet. The engine waits for the build
    /// to begin, for some seconds.
    pub async fn solve(&mut self, question: Question) -> Result<Outcome, Status> {
        let question = Question { allow_result_return: true, allow_result_array_ref: true, ..question };
        let answer: Answer = self.call("Solve", question).await?;
        answer.result.ok_or_else(|| Status::internal("the engine's gateway answers without a result"))
    }

    /// Says what the build's result is: the engine evaluates and exports it.
    pub async fn give(&mut self, result: Outcome) -> Result<(), Status> {
        let Nothing {} = self.call("Return", Return { result: Some(result) }).await?;
        Ok(())
    }

    async fn call<Q, A>(&mut self, method: &'static str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let path = format!("/moby.buildkit.v1.frontend.LLBBridge/{method}");
        let path = PathAndQuery::try_from(path).map_err(|error| Status::internal(error.to_string()))?;
        self.grpc.ready().await.map_err(|error| Status::unavailable(super::super::causes(&error)))?;
        let mut request = Request::new(message);
        request.metadata_mut().insert(BUILD_ID, self.build.clone());
        Ok(self.grpc.unary(request, path, ProstCodec::default()).await?.into_inner())
    }
}
