//! gRPC over HTTP/2 by the book: content types, the number of request messages, deadlines.

use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use prost::Message;
use proto::{FindCardRequest, RegisterCardRequest};
use tonic::{Code, Status, body::Body, client::GrpcService, transport::Channel};

use support::engine_process::{AUDIT_USER, EngineProcess, TENANT, reason};

const FIND_CARD: &str = "/pinseal.v1.CardService/FindCard";
const REGISTER_CARD: &str = "/pinseal.v1.CardService/RegisterCard";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A message with its prefix: no compression, length.
fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
}

fn find_card() -> FindCardRequest {
    FindCardRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), plastic_id: "1".into() }
}

async fn send(channel: &mut Channel, path: &str, content_type: &str, body: Body) -> Response<Body> {
    std::future::poll_fn(|context| GrpcService::<Body>::poll_ready(channel, context)).await.unwrap();
    let request = Request::post(path).header("content-type", content_type).header("te", "trailers").body(body).unwrap();
    GrpcService::<Body>::call(channel, request).await.unwrap()
}

/// The status in the head of a response.
fn status(response: &Response<Body>) -> (Code, String) {
    let status = Status::from_header_map(response.headers()).expect("the call has no status in its head");
    (status.code(), reason(&status))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_another_content_type_is_415_for_every_service() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let mut channel = engine.channel().await;
    for path in [FIND_CARD, HEALTH, REFLECTION] {
        for content_type in ["application/json", "application/grpc-web+proto", "text/plain"] {
            let body = Body::new(Full::from(framed(&find_card())));
            let response = send(&mut channel, path, content_type, body).await;
            assert_eq!(response.status(), 415, "{path} {content_type}");
            assert!(!response.headers().contains_key("grpc-status"), "{path} {content_type}");
        }
    }
    let body = Body::new(Full::from(framed(&find_card())));
    let response = send(&mut channel, FIND_CARD, "application/grpc+proto", body).await;
    assert_eq!((response.status().as_u16(), status(&response).0), (200, Code::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_or_missing_message_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let mut channel = engine.channel().await;
    let register = framed(&RegisterCardRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "1".into(),
        account_number: String::new(),
    });
    let apart =
        stream::iter([&register, &register].map(|part| Ok::<_, Status>(Frame::data(Bytes::from(part.clone())))));
    for body in [
        Body::new(Full::from([&*register, &register].concat())),
        Body::new(StreamBody::new(apart)),
        // One byte of a second message.
        Body::new(Full::from([&*register, &[0]].concat())),
        Body::empty(),
    ] {
        let response = send(&mut channel, REGISTER_CARD, "application/grpc", body).await;
        assert_eq!(status(&response), (Code::Unimplemented, "MESSAGE_COUNT".to_owned()));
    }
    let found = send(&mut channel, FIND_CARD, "application/grpc", Body::new(Full::from(framed(&find_card())))).await;
    assert_eq!(status(&found), (Code::NotFound, "CARD_UNKNOWN".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_past_its_time_is_deadline_exceeded_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "call_timeout_milliseconds = 100");
    let mut channel = engine.channel().await;
    // The body never ends, so the call can't.
    let body = Body::new(StreamBody::new(stream::pending::<Result<Frame<Bytes>, Status>>()));
    let response = send(&mut channel, FIND_CARD, "application/grpc", body).await;
    assert_eq!(status(&response), (Code::DeadlineExceeded, "DEADLINE_PASSED".to_owned()));
}
