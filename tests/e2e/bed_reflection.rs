//! A build submitted and followed by a client that knows nothing of Kiln: what grpcurl does, done through reflection.

use harness::{Bed, Farm, bed::EngineKind, dynamic::DynamicClient, registry};
use serde_json::json;
use tokio_stream::StreamExt as _;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

#[tokio::test]
async fn a_generic_client_submits_and_follows_a_build() {
    let farm = Farm::start(&Bed.engine(EngineKind::Docker28).expect("docker 28"));
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(farm.ca_pem()));
    let endpoint = Endpoint::from_shared(format!("https://{}", farm.endpoint())).expect("address");
    let channel = endpoint.tls_config(tls).expect("TLS").connect().await.expect("connected");
    let client = DynamicClient::connect(channel, &farm.token()).await.expect("reflection");
    let services = client.services();
    for service in ["kiln.v1.BuildService", "kiln.v1.FarmService", "grpc.health.v1.Health"] {
        assert!(services.iter().any(|name| name == service), "{service} is missing in {services:?}");
    }

    let tag = format!("{}/e2e/reflection:1", Bed.registry());
    let request = json!({ "spec": {
        "dockerfile_inline": "FROM busybox\nRUN echo built-by-reflection\n",
        "platforms": [{ "platform": "linux/amd64" }],
        "tags": [tag],
    }});
    let answer = client.call("kiln.v1.BuildService/Submit", request).await.expect("submitted");
    let id = answer["build"]["id"].as_str().expect("an id").to_owned();

    let mut states = Vec::new();
    let watch = client.stream("kiln.v1.BuildService/Watch", json!({ "id": id })).await.expect("watch");
    let mut watch = std::pin::pin!(watch);
    while let Some(build) = watch.next().await {
        states.push(build.expect("a build")["state"].as_str().expect("a state").to_owned());
    }
    assert_eq!(states.last().map(String::as_str), Some("BUILD_STATE_SUCCEEDED"), "{states:?}\n{}", farm.log());

    let logs = client.stream("kiln.v1.BuildService/Logs", json!({ "id": id })).await.expect("logs");
    let mut logs = std::pin::pin!(logs);
    let mut text = String::new();
    while let Some(entries) = logs.next().await {
        text.push_str(&entries.expect("entries").to_string());
    }
    // The line's bytes are base64 in JSON: `built-by-reflection`.
    assert!(text.contains("YnVpbHQtYnktcmVmbGVjdGlvbg"), "{text}");
    assert_eq!(registry::tags(&format!("{}/e2e/reflection", Bed.registry())), ["1"]);

    let refused = client.call("kiln.v1.BuildService/Submit", json!({ "spec": { "tags": ["UPPER"] } })).await;
    let status = refused.expect_err("refused");
    let status = status.downcast_ref::<tonic::Status>().expect("a status");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("lower case") || status.message().contains("spec."), "{status:?}");
}
