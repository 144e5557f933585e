//! A gRPC client that knows nothing of Kiln: it learns the services from the server's reflection and speaks JSON, as
//! grpcurl does.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions};
use prost_types::FileDescriptorProto;
use serde_json::Value;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// A connection whose services came from the server itself.
pub struct DynamicClient {
    channel: Channel,
    token: MetadataValue<Ascii>,
    pool: DescriptorPool,
}

impl DynamicClient {
    /// Asks the server for its services and for the descriptors of all of them.
    ///
    /// # Errors
    /// When reflection does not answer or its descriptors do not fit together.
    pub async fn connect(channel: Channel, token: &str) -> anyhow::Result<Self> {
        let token: MetadataValue<Ascii> = format!("Bearer {token}").parse()?;
        let MessageResponse::ListServicesResponse(listing) =
            reflect(&channel, &token, MessageRequest::ListServices(String::new())).await?
        else {
            bail!("reflection did not list services");
        };
        let mut known = BTreeMap::new();
        let mut open: Vec<_> =
            listing.service.into_iter().map(|service| MessageRequest::FileContainingSymbol(service.name)).collect();
        while let Some(question) = open.pop() {
            let asked = format!("{question:?}");
            let MessageResponse::FileDescriptorResponse(files) = reflect(&channel, &token, question).await? else {
                bail!("reflection has nothing for {asked}");
            };
            for bytes in files.file_descriptor_proto {
                let file = FileDescriptorProto::decode(&bytes[..])?;
                let missing = file.dependency.iter().filter(|name| !known.contains_key(*name));
                open.extend(missing.cloned().map(MessageRequest::FileByFilename));
                known.insert(file.name().to_owned(), file);
            }
        }
        let mut pool = DescriptorPool::new();
        pool.add_file_descriptor_protos(known.into_values())?;
        Ok(Self { channel, token, pool })
    }

    /// Full names of the services.
    #[must_use]
    pub fn services(&self) -> Vec<String> {
        self.pool.services().map(|service| service.full_name().to_owned()).collect()
    }

    /// Calls `package.Service/Method` with a JSON message and returns the one JSON answer.
    ///
    /// # Errors
    /// The server's status, or a message that does not fit the method.
    pub async fn call(&self, method: &str, message: Value) -> anyhow::Result<Value> {
        let mut answers = std::pin::pin!(self.stream(method, message).await?);
        answers.next().await.context("no answer")?
    }

    /// The same for a method that streams its answers.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn stream(
        &self,
        method: &str,
        message: Value,
    ) -> anyhow::Result<impl Stream<Item = anyhow::Result<Value>> + use<>> {
        let descriptor = self.method(method)?;
        let message = DynamicMessage::deserialize(descriptor.input(), message)?;
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.token.clone());
        let path = format!("/{method}").parse()?;
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await?;
        let answers = grpc.server_streaming(request, path, DynamicCodec(descriptor.output())).await?.into_inner();
        Ok(answers.map(|answer| {
            let options = SerializeOptions::new().use_proto_field_name(true);
            Ok(answer?.serialize_with_options(serde_json::value::Serializer, &options)?)
        }))
    }

    fn method(&self, path: &str) -> anyhow::Result<MethodDescriptor> {
        let (service, method) = path.split_once('/').context("service/method")?;
        let service = self.pool.get_service_by_name(service).with_context(|| format!("no service {service}"))?;
        service.methods().find(|found| found.name() == method).with_context(|| format!("no method {path}"))
    }
}

async fn reflect(
    channel: &Channel,
    token: &MetadataValue<Ascii>,
    question: MessageRequest,
) -> anyhow::Result<MessageResponse> {
    let question = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut request = Request::new(tokio_stream::once(question));
    request.metadata_mut().insert("authorization", token.clone());
    let mut answers = ServerReflectionClient::new(channel.clone()).server_reflection_info(request).await?.into_inner();
    let answer = answers.message().await?.context("reflection ended without an answer")?;
    answer.message_response.context("reflection answered nothing")
}

/// Messages of a type that is known at run time only.
struct DynamicCodec(MessageDescriptor);

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = DynamicEncoder;
    type Decoder = DynamicDecoder;

    fn encoder(&mut self) -> DynamicEncoder {
        DynamicEncoder
    }

    fn decoder(&mut self) -> DynamicDecoder {
        DynamicDecoder(self.0.clone())
    }
}

struct DynamicEncoder;

impl Encoder for DynamicEncoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

struct DynamicDecoder(MessageDescriptor);

impl Decoder for DynamicDecoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        DynamicMessage::decode(self.0.clone(), buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
