//! Reflection lists exactly the services that the engine serves.

use http::uri::PathAndQuery;
use tokio_stream::{StreamExt, once};
use tonic::{Code, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::{v1, v1alpha};

use support::engine_process::EngineProcess;

/// Every service of an engine, each with a method.
const SERVED: [(&str, &str); 11] = [
    ("grpc.health.v1.Health", "Check"),
    ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo"),
    ("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo"),
    ("pinseal.v1.AuditService", "ExportAudit"),
    ("pinseal.v1.BulkService", "SetPins"),
    ("pinseal.v1.CardService", "FindCard"),
    ("pinseal.v1.ControlService", "OpenControl"),
    ("pinseal.v1.EdgeService", "ExchangeCalls"),
    ("pinseal.v1.EventService", "FollowEvents"),
    ("pinseal.v1.KeyService", "ListKeys"),
    ("pinseal.v1.PinService", "SetPin"),
];

async fn listed_v1(channel: Channel) -> Vec<String> {
    use v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = ServerReflectionClient::new(channel).server_reflection_info(once(request)).await.unwrap();
    let answer = answers.into_inner().next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("no list") };
    list.service.into_iter().map(|service| service.name).collect()
}

async fn listed_v1alpha(channel: Channel) -> Vec<String> {
    use v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = ServerReflectionClient::new(channel).server_reflection_info(once(request)).await.unwrap();
    let answer = answers.into_inner().next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("no list") };
    list.service.into_iter().map(|service| service.name).collect()
}

/// Whether the engine knows the method: an empty message is answered in any other way than UNIMPLEMENTED.
async fn serves(channel: Channel, service: &str, method: &str) -> bool {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/{service}/{method}")).unwrap();
    let answer = grpc.unary(tonic::Request::new(()), path, ProstCodec::<(), ()>::default()).await;
    answer.err().is_none_or(|status| status.code() != Code::Unimplemented)
}

#[tokio::test]
async fn reflection_lists_exactly_the_services_that_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let names = SERVED.map(|(service, _)| service);
    for mut listed in [listed_v1(engine.channel().await).await, listed_v1alpha(engine.channel().await).await] {
        listed.sort_unstable();
        assert_eq!(listed, names);
    }
    for (service, method) in SERVED {
        assert!(serves(engine.channel().await, service, method).await, "{service} is listed and not served");
    }
    assert!(!serves(engine.channel().await, "pinseal.v1.EchoService", "Echo").await);
}
