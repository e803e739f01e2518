//! The rules of gRPC over HTTP/2 that tonic leaves to its user: the content type, the number of request messages, and the
//! status of a call whose deadline has passed.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{
    serving::{ConnectionHold, StreamsEnd},
    wire,
};
use clock::deadline::{Deadline, parse_grpc_timeout};

/// The header with the timeout of a gRPC client.
const TIMEOUT_HEADER: &str = "grpc-timeout";
/// The content types of a gRPC call with prost messages.
const CONTENT_TYPES: [&str; 2] = ["application/grpc", "application/grpc+proto"];
/// The bytes before each message: the compression flag and the length of the message.
const PREFIX_BYTES: u8 = 5;

/// The timeout that the client of a call asks for; `None` without one, and for a malformed header.
fn asked_timeout(headers: &HeaderMap) -> Option<Duration> {
    headers.get(TIMEOUT_HEADER).and_then(|value| value.to_str().ok()).and_then(parse_grpc_timeout)
}

/// The deadline of the client of a call; `None` without one. The rules put it into the extensions of the request.
#[derive(Clone, Copy)]
pub(super) struct AskedDeadline(pub(super) Option<Deadline>);

/// A service under the rules.
#[derive(Clone)]
pub(super) struct CallRules<S> {
    service: S,
    call_timeout: Duration,
    streams: Streams,
}

/// What the methods of a service stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Streams {
    /// Every call has one request message and one response message.
    None,
    /// A call has one request message, and may have many response messages.
    Responses,
    /// A call may have many messages of both kinds.
    Both,
}

impl<S> CallRules<S> {
    /// The service, under the rules. A call has `call_timeout` until its first response.
    pub(super) fn new(service: S, call_timeout: Duration, streams: Streams) -> Self {
        Self { service, call_timeout, streams }
    }
}

impl<S: NamedService> NamedService for CallRules<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for CallRules<S>
where
    S: Service<Request<RequestBody>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if !has_content_type(request.headers()) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Box::pin(std::future::ready(Ok(response)));
        }
        let asked = asked_timeout(request.headers());
        request.extensions_mut().insert(AskedDeadline(asked.map(Deadline::within)));
        let limit = asked.map_or(self.call_timeout, |asked| asked.min(self.call_timeout));
        let count = (self.streams != Streams::Both).then_some(MessageCount::NEW);
        let (deadline, age) = match self.streams {
            Streams::None => (None, None),
            Streams::Responses | Streams::Both => {
                (asked.map(|asked| Instant::now() + asked), request.extensions().get::<StreamsEnd>().map(|end| end.at))
            }
        };
        // The time of a call begins here, not when its future is polled first.
        let response = timeout(limit, self.service.call(request.map(|body| RequestBody { body, count })));
        Box::pin(async move {
            let Ok(response) = response.await else { return Ok(wire::deadline_passed().into_http()) };
            let mut response = response?;
            let age = age.filter(|_| response.extensions_mut().remove::<ConnectionHold>().is_none());
            Ok(match StreamEnd::first(deadline, age) {
                Some(ends) => response.map(|body| Body::new(ResponseBody { body, ends: Some(ends) })),
                None => response,
            })
        })
    }
}

fn has_content_type(headers: &HeaderMap) -> bool {
    let Some(Ok(found)) = headers.get(CONTENT_TYPE).map(|value| value.to_str()) else { return false };
    // Parameters follow a semicolon (RFC 9110, 8.3.1).
    let found = found.split(';').next().unwrap_or_default().trim_ascii();
    CONTENT_TYPES.iter().any(|known| known.eq_ignore_ascii_case(found))
}

/// The body of a request; ends with an error where it has no message or a second one.
pub(super) struct RequestBody {
    body: Body,
    /// `None` where any number of messages is allowed.
    count: Option<MessageCount>,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let Some(count) = &mut self.count else { return Poll::Ready(frame) };
        let allowed = match &frame {
            Some(Ok(frame)) => frame.data_ref().is_none_or(|data| count.read(data)),
            Some(Err(_)) => true,
            None => *count != MessageCount::NEW,
        };
        if allowed {
            return Poll::Ready(frame);
        }
        self.count = None;
        Poll::Ready(Some(Err(wire::message_count())))
    }
}

/// How much of the one message of a call was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MessageCount {
    Prefix { read: u8, length: u32 },
    Message { left: usize },
    Complete,
}

impl MessageCount {
    const NEW: Self = Self::Prefix { read: 0, length: 0 };

    /// Reads the next bytes of a body; `false` for bytes after the first message.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((&byte, behind)) = bytes.split_first() {
            *self = match *self {
                Self::Prefix { read, length } => {
                    bytes = behind;
                    // The first byte is the compression flag; the length is in the four after it, most significant first.
                    let length = if read == 0 { 0 } else { (length << 8) | u32::from(byte) };
                    match read + 1 {
                        PREFIX_BYTES => Self::after(usize::try_from(length).unwrap_or(usize::MAX)),
                        read => Self::Prefix { read, length },
                    }
                }
                Self::Message { left } => {
                    let here = left.min(bytes.len());
                    bytes = bytes.get(here..).unwrap_or_default();
                    Self::after(left.saturating_sub(here))
                }
                Self::Complete => return false,
            };
        }
        true
    }

    fn after(left: usize) -> Self {
        if left == 0 { Self::Complete } else { Self::Message { left } }
    }
}

/// When a response stream ends, and with which status.
struct StreamEnd {
    at: Pin<Box<Sleep>>,
    status: fn() -> Status,
}

impl StreamEnd {
    /// The deadline of the client or the end of the connection, whichever is first; `None` without both.
    fn first(deadline: Option<Instant>, age: Option<Instant>) -> Option<Self> {
        let deadline: Option<(_, fn() -> Status)> = deadline.map(|at| (at, wire::deadline_passed as fn() -> Status));
        let age: Option<(_, fn() -> Status)> = age.map(|at| (at, wire::connection_age as fn() -> Status));
        let (at, status) = deadline.into_iter().chain(age).min_by_key(|(at, _)| *at)?;
        Some(Self { at: Box::pin(sleep_until(at)), status })
    }
}

/// The body of a response stream; ends with DEADLINE_EXCEEDED at the deadline of the client, and with UNAVAILABLE when the
/// connection is too old.
struct ResponseBody {
    body: Body,
    /// `None` after the end.
    ends: Option<StreamEnd>,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(ends) = &mut self.ends else { return Poll::Ready(None) };
        if ends.at.as_mut().poll(context).is_pending() {
            return Pin::new(&mut self.body).poll_frame(context);
        }
        let status = (ends.status)();
        self.ends = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ends.is_none() || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::Arc,
    };

    use http::Extensions;
    use http_body_util::{BodyExt, Full, StreamBody};
    use tonic_types::StatusExt;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use proto::reason::Reason;

    const LONG: Duration = Duration::from_secs(3_600);

    fn request(content_type: Option<&str>, timeout: Option<&str>, body: Vec<u8>) -> Request<Body> {
        let mut request = Request::post("/pinseal.v1.CardService/FindCard");
        for (name, value) in [("content-type", content_type), ("grpc-timeout", timeout)] {
            request =
                value.map(|value| (name, value)).into_iter().fold(request, |to, (name, value)| to.header(name, value));
        }
        request.body(Body::new(Full::from(body))).unwrap()
    }

    fn reason(status: &Status) -> Option<Reason> {
        Reason::parse(&status.get_details_error_info()?.reason)
    }

    #[tokio::test]
    async fn another_content_type_than_grpc_is_415() {
        let answers = service_fn(|_: Request<RequestBody>| ready(Ok::<_, Infallible>(Response::new(Body::empty()))));
        for (content_type, status) in [
            (Some("application/grpc"), 200),
            (Some("application/grpc+proto"), 200),
            (Some("Application/GRPC; charset=utf-8"), 200),
            (Some("application/grpc+json"), 415),
            (Some("application/grpc-web"), 415),
            (Some("application/json"), 415),
            (Some(""), 415),
            (None, 415),
        ] {
            let response = CallRules::new(answers, LONG, Streams::None)
                .oneshot(request(content_type, None, Vec::new()))
                .await
                .unwrap();
            assert_eq!(response.status(), status, "{content_type:?}");
            assert!(!response.headers().contains_key("grpc-status"), "{content_type:?}");
        }
    }

    #[tokio::test]
    async fn the_shorter_of_both_timeouts_ends_a_call() {
        let never = service_fn(|_: Request<RequestBody>| pending::<Result<Response<Body>, Infallible>>());
        for (asked, allowed) in [(Some("20m"), LONG), (Some("1H"), Duration::from_millis(20)), (None, Duration::ZERO)] {
            let call = request(Some("application/grpc"), asked, Vec::new());
            let response = CallRules::new(never, allowed, Streams::None).oneshot(call).await.unwrap();
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!((status.code(), reason(&status)), (tonic::Code::DeadlineExceeded, Some(Reason::DeadlinePassed)));
        }
    }

    #[tokio::test]
    async fn a_response_stream_ends_at_the_first_of_deadline_and_connection_age() {
        const SHORT: Duration = Duration::from_millis(200);
        let streams = service_fn(|_: Request<RequestBody>| {
            let first = futures::stream::iter([Ok::<_, Status>(Frame::data(Bytes::from_static(b"first")))]);
            let frames = futures::StreamExt::chain(first, futures::stream::pending());
            ready(Ok::<_, Infallible>(Response::new(Body::new(StreamBody::new(frames)))))
        });
        for (asked, age, reason_of_end) in [
            (Some("200m"), None, Reason::DeadlinePassed),
            (Some("200m"), Some(LONG), Reason::DeadlinePassed),
            (Some("1H"), Some(SHORT), Reason::ConnectionAge),
            (None, Some(SHORT), Reason::ConnectionAge),
        ] {
            let mut call = request(Some("application/grpc"), asked, Vec::new());
            call.extensions_mut().extend(age.into_iter().fold(Extensions::new(), |mut to, age| {
                to.insert(StreamsEnd {
                    at: Instant::now() + age,
                    hold: ConnectionHold::default(),
                    exchange: Arc::new(tokio::sync::Semaphore::new(1)),
                });
                to
            }));
            let answer = CallRules::new(streams, LONG, Streams::Responses).oneshot(call).await.unwrap();
            let collected = answer.into_body().collect().await.unwrap();
            let status = Status::from_header_map(collected.trailers().unwrap()).unwrap();
            assert_eq!(reason(&status), Some(reason_of_end));
        }
    }

    #[tokio::test]
    async fn a_request_has_exactly_one_message_however_it_is_cut() {
        let one = [0, 0, 0, 0, 2, 8, 1];
        let two = [one, one].concat();
        for (bytes, sound) in
            [(&one[..], true), (&[0; 5][..], true), (&two[..], false), (&[0; 6][..], false), (&[][..], false)]
        {
            for cut in 0..=bytes.len() {
                let (first, second) = bytes.split_at(cut);
                let frames = [first, second].map(|part| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(part))));
                let body = Body::new(StreamBody::new(futures::stream::iter(frames)));
                let read = RequestBody { body, count: Some(MessageCount::NEW) }.collect().await;
                let refused = read.err().map(|status| (status.code(), reason(&status)));
                let expected = (!sound).then_some((tonic::Code::Unimplemented, Some(Reason::MessageCount)));
                assert_eq!(refused, expected, "{bytes:?} {cut}");
            }
        }
    }
}
