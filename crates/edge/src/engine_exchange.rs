//! The calls of the routes over the stream to an engine (`EdgeService.ExchangeCalls`).

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use domain::{
    limits::{EXCHANGE_BYTES_MAX, REQUEST_BYTES_MAX},
    request_id::RequestId,
};
use net::{CallExchange, CallStreams};
use proto::{
    ExchangeCallsRequest, ExchangeCallsResponse, NumberedCall, edge_service_client::EdgeServiceClient,
    numbered_call::Method, numbered_reply,
};

/// The stream of calls to one engine.
#[derive(Clone)]
pub(crate) struct EngineExchange(EdgeServiceClient<Channel>);

impl EngineExchange {
    /// The stream on this connection. The windows of hyper (2 MiB a stream, 1 MiB at the engine) hold the replies and calls of
    /// thousands of requests, so they do not limit one stream for all calls.
    pub(crate) fn new(channel: Channel) -> Self {
        Self(EdgeServiceClient::new(channel).max_encoding_message_size(EXCHANGE_BYTES_MAX))
    }
}

impl CallExchange for EngineExchange {
    /// The sequence and the timeout are set when the call is sent.
    type Call = NumberedCall;
    type Reply = Option<numbered_reply::Result>;
    type Request = ExchangeCallsRequest;
    type Response = ExchangeCallsResponse;

    async fn open(
        &self,
        requests: mpsc::Receiver<ExchangeCallsRequest>,
    ) -> Result<BoxStream<'static, Result<ExchangeCallsResponse, Status>>, Status> {
        let responses = self.0.clone().exchange_calls(ReceiverStream::new(requests)).await?;
        Ok(responses.into_inner().boxed())
    }

    fn bytes(call: &NumberedCall) -> usize {
        call.method.as_ref().map_or(0, Method::encoded_len)
    }

    fn add_call(request: &mut ExchangeCallsRequest, sequence: u64, time: Duration, call: NumberedCall) {
        request.calls.push(NumberedCall { sequence, timeout_duration: time.try_into().ok(), ..call });
    }

    fn add_cancellation(request: &mut ExchangeCallsRequest, sequence: u64) {
        request.cancelled_sequences.push(sequence);
    }

    fn read(response: ExchangeCallsResponse, mut reply: impl FnMut(u64, Result<Self::Reply, Status>)) -> Option<u64> {
        for numbered in response.replies {
            let result = match numbered.result {
                Some(numbered_reply::Result::Error(error)) => Err(status(error)),
                result => Ok(result),
            };
            reply(numbered.sequence, result);
        }
        response.last_call.map(|last| last.sequence)
    }
}

/// The status of a call that failed at the engine.
fn status(error: proto::CallError) -> Status {
    Status::with_details(Code::from(error.code_number), error.message, error.details.into())
}

/// A request of an engine's method that the stream carries.
pub(crate) trait EngineCall {
    /// The response of the method.
    type Response;

    /// The request in a message.
    fn into_method(self) -> Method;

    /// The response in a message; `None` for that of another method.
    fn response(result: numbered_reply::Result) -> Option<Self::Response>;
}

macro_rules! calls {
    ($($name:ident: $request:ident -> $response:ident;)+) => {$(
        impl EngineCall for proto::$request {
            type Response = proto::$response;

            fn into_method(self) -> Method {
                Method::$name(self)
            }

            fn response(result: numbered_reply::Result) -> Option<Self::Response> {
                match result {
                    numbered_reply::Result::$name(response) => Some(response),
                    _ => None,
                }
            }
        }
    )+};
}

calls! {
    OpenControl: OpenControlRequest -> OpenControlResponse;
    StartPage: StartPageRequest -> StartPageResponse;
    IssueTzpk: IssueTzpkRequest -> IssueTzpkResponse;
    SetPin: SetPinRequest -> SetPinResponse;
    ViewPin: ViewPinRequest -> ViewPinResponse;
    SetZonePin: SetPinByZoneRequest -> SetPinByZoneResponse;
    GetZonePin: GetPinByZoneRequest -> GetPinByZoneResponse;
}

/// Makes a call with the id of its HTTP request, which waits for `time`.
///
/// # Errors
/// As [`CallStreams::call`]. OUT_OF_RANGE, and the call is not sent: the request is longer than an engine reads.
pub(crate) async fn call<C: EngineCall>(
    calls: &CallStreams<EngineExchange>,
    id: RequestId,
    request: C,
    time: Duration,
) -> Result<C::Response, Status> {
    let method = request.into_method();
    if method.encoded_len() > REQUEST_BYTES_MAX {
        return Err(Status::out_of_range(format!("a call has at most {REQUEST_BYTES_MAX} bytes")));
    }
    let call =
        NumberedCall { sequence: 0, request_id: id.as_bytes().to_vec(), timeout_duration: None, method: Some(method) };
    let reply = calls.call(call, time).await?;
    reply
        .and_then(C::response)
        .ok_or_else(|| Status::internal("the engine answered with the response of another method"))
}
