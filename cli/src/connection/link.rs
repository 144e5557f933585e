//! One live connection to one coordinator: TLS, the token on every call, keep-alives.

use std::{error::Error as _, time::Duration};

use kiln_common::limits;
use kiln_proto::v1::{
    build_service_client::BuildServiceClient, context_service_client::ContextServiceClient,
    farm_service_client::FarmServiceClient,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig},
};

use super::{Endpoint, Target};
use crate::failure::{Exit, Failure};

/// How long one address may take to answer before the next is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A channel whose calls carry the token.
pub type Authorized = InterceptedService<Channel, Authorization>;

/// Puts the bearer token on each call.
#[derive(Clone)]
pub struct Authorization {
    header: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

#[derive(Clone)]
pub struct Link {
    endpoint: Endpoint,
    service: Authorized,
}

impl Link {
    /// Dials one coordinator.
    ///
    /// # Errors
    /// Exit code 3 with the endpoint, the cause and what to do.
    pub async fn dial(endpoint: &Endpoint, target: &Target) -> Result<Self, Failure> {
        let channel = tls(endpoint, target)
            .map_err(|error| unreachable(endpoint, &chain(&error)))?
            .connect()
            .await
            .map_err(|error| unreachable(endpoint, &chain(&error)))?;
        let header = match &target.token {
            Some(token) => {
                let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
                    .parse()
                    .map_err(|_| Failure::usage("the token has characters that a header cannot carry"))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Self { endpoint: endpoint.clone(), service: InterceptedService::new(channel, Authorization { header }) })
    }

    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    #[must_use]
    pub fn builds(&self) -> BuildServiceClient<Authorized> {
        BuildServiceClient::new(self.service.clone())
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES)
    }

    #[must_use]
    pub fn contexts(&self) -> ContextServiceClient<Authorized> {
        ContextServiceClient::new(self.service.clone())
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES)
    }

    #[must_use]
    pub fn farm(&self) -> FarmServiceClient<Authorized> {
        FarmServiceClient::new(self.service.clone()).max_decoding_message_size(limits::MESSAGE_BYTES)
    }
}

fn tls(endpoint: &Endpoint, target: &Target) -> Result<tonic::transport::Endpoint, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().domain_name(endpoint.server_name());
    tls = match &target.ca {
        Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
        None => tls.with_native_roots(),
    };
    tonic::transport::Endpoint::from_shared(endpoint.url())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_adaptive_window(true)
        .tcp_nodelay(true)
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))?
        .tls_config(tls)
}

/// The whole chain of causes on one line, without the outer words that say nothing.
fn chain(error: &tonic::transport::Error) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if causes.last().is_none_or(|last| !last.contains(&text)) && text != "tcp connect error" {
            causes.push(text);
        }
        next = cause.source();
    }
    causes.pop().unwrap_or_else(|| error.to_string())
}

fn unreachable(endpoint: &Endpoint, cause: &str) -> Failure {
    let failure = Failure::new(Exit::Unreachable, format!("cannot reach the farm at {endpoint}: {cause}"));
    if cause.contains("UnknownIssuer") || cause.contains("BadSignature") || cause.contains("CaUsedAsEndEntity") {
        failure.remedy("its certificate is not signed by the CA in use; log in again with the farm's own: `kiln login ENDPOINT --ca FILE`")
    } else if cause.contains("NotValidForName") {
        failure.remedy("its certificate is for other names; use the address that the coordinator advertises")
    } else if cause.contains("certificate") || cause.contains("InvalidContentType") || cause.contains("corrupt message")
    {
        failure.remedy("the port has to be the coordinator's gRPC port with TLS, 7070 unless set otherwise")
    } else {
        failure.remedy("check the address and that the coordinator runs; `kiln doctor` tries each step")
    }
}
