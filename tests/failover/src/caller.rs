//! One call of the Card PIN API or of the engine's gRPC, and how it ends for its client.

use std::{error::Error, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use history::history::{Answer, End, GiveUp, Refusal};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use proto::{change_pin_request::Change, reason::Reason};
use serde_json::{Value, json};
use support::{
    edge_process::TOKEN,
    engine_process::{AUDIT_USER, TENANT},
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

/// An answer that the harness does not expect in any run: a defect of the harness or of the service.
#[derive(Debug)]
pub struct Unexpected(pub String);

/// How a call ended.
pub enum Ended<T> {
    Answered(T),
    Other(End),
    Unexpected(Unexpected),
}

/// The clients of all edges and engines.
pub struct Caller {
    http: Client<HttpConnector, Full<Bytes>>,
    edges: Vec<String>,
    engines: Vec<Channel>,
}

impl Caller {
    /// Must be called within the runtime that drives the connections.
    pub fn new(edges: Vec<String>, engines: &[String]) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        // A call that is sent twice would be recorded once.
        let http = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build(connector);
        let channel = |url: &String| Channel::from_shared(url.clone()).unwrap().connect_lazy();
        Self { http, edges, engines: engines.iter().map(channel).collect() }
    }

    pub fn channel(&self, side: usize) -> Channel {
        self.engines[side].clone()
    }

    /// A POST to an edge: the body of the answer.
    pub async fn post(&self, side: usize, path: &str, body: Value, deadline: Duration) -> Ended<Value> {
        match self.exchange(side, path, body, deadline).await {
            Ok((status, body)) if status.is_success() => Ended::Answered(body),
            Ok((status, body)) => refused_by_http(path, status, &body),
            Err(ended) => ended,
        }
    }

    /// The errorCode of an edge that cannot open a control: `None` if the edge opened one, or did not answer.
    pub async fn open_error(&self, side: usize, card: &str, deadline: Duration) -> Option<String> {
        let path = format!("/pincontrol/v2/plastic/{card}");
        match self.exchange(side, &path, json!({ "scope": "VIEW_PIN" }), deadline).await {
            Ok((_, body)) => text(&body, "errorCode"),
            Err(_) => None,
        }
    }

    /// The status and the body of an edge's answer to a POST.
    async fn exchange(
        &self,
        side: usize,
        path: &str,
        body: Value,
        deadline: Duration,
    ) -> Result<(StatusCode, Value), Ended<Value>> {
        let request = Request::post(format!("{}{path}?auditUser={AUDIT_USER}", self.edges[side]))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let exchange = async {
            let answer = self.http.request(request).await.map_err(|_| ())?;
            let status = answer.status();
            let bytes = answer.into_body().collect().await.map_err(|_| ())?.to_bytes();
            Ok::<_, ()>((status, bytes))
        };
        let (status, bytes) = match tokio::time::timeout(deadline, exchange).await {
            Err(_) => return Err(Ended::Other(End::GivenUp(GiveUp::DeadlinePassed))),
            Ok(Err(())) => return Err(Ended::Other(End::GivenUp(GiveUp::ConnectionLost))),
            Ok(Ok(answer)) => answer,
        };
        match serde_json::from_slice(&bytes) {
            Ok(body) => Ok((status, body)),
            Err(_) => Err(Ended::Unexpected(Unexpected(format!("{path}: {status} without JSON")))),
        }
    }

    /// Opens a control: its id.
    pub async fn open(&self, side: usize, card: &str, scope: &str, deadline: Duration) -> Ended<String> {
        let path = format!("/pincontrol/v2/plastic/{card}");
        map(self.post(side, &path, json!({ "scope": scope }), deadline).await, |body| text(&body, "id"))
    }

    /// A tzpk, encrypted to the device with this public key.
    pub async fn tzpk(&self, side: usize, control: &str, public_key: &[u8], deadline: Duration) -> Ended<Vec<u8>> {
        let body = json!({ "controlId": control, "publicKey": STANDARD.encode(public_key) });
        map(self.post(side, "/pin/v3/set/tzpk", body, deadline).await, |body| bytes(&body, "tzpk"))
    }

    /// Sets a PIN.
    pub async fn set(&self, side: usize, control: &str, block: &[u8; 8], deadline: Duration) -> Ended<()> {
        let body = json!({ "controlId": control, "pinBlock": STANDARD.encode(block) });
        map(self.post(side, "/pin/v3/set", body, deadline).await, |_| Some(()))
    }

    /// The PIN block and the encrypted tzpk of a view.
    pub async fn view(
        &self,
        side: usize,
        control: &str,
        public_key: &[u8],
        deadline: Duration,
    ) -> Ended<([u8; 8], Vec<u8>)> {
        let body = json!({ "controlId": control, "publicKey": STANDARD.encode(public_key) });
        map(self.post(side, "/pin/v3/view", body, deadline).await, |body| {
            Some((bytes(&body, "pinBlock")?.try_into().ok()?, bytes(&body, "tzpk")?))
        })
    }

    /// Compares a PIN: whether it is right, and the tries that are left.
    pub async fn verify(
        &self,
        side: usize,
        card: &str,
        zone_block: proto::ZoneBlock,
        deadline: Duration,
    ) -> Ended<(bool, u32)> {
        let request = proto::VerifyPinRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: card.into(),
            zone_block: Some(zone_block),
            reference: None,
        };
        let mut pins = proto::pin_service_client::PinServiceClient::new(self.channel(side));
        let verified = grpc(deadline, pins.verify_pin(request)).await;
        map(verified, |answer| Some((answer.result() == proto::VerificationResult::Right, answer.remaining_try_count)))
    }

    /// Replaces a PIN by another one: whether the old PIN is right, and the tries that are left.
    pub async fn change(&self, side: usize, change: Change, deadline: Duration) -> Ended<(bool, u32)> {
        let request =
            proto::ChangePinRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), change: Some(change) };
        let mut pins = proto::pin_service_client::PinServiceClient::new(self.channel(side));
        let changed = grpc(deadline, pins.change_pin(request)).await;
        map(changed, |answer| Some((answer.result() == proto::VerificationResult::Right, answer.remaining_try_count)))
    }

    /// Sets a PIN by a block of a zone: whether the block had set the present PIN before.
    pub async fn set_by_zone(
        &self,
        side: usize,
        card: &str,
        zone_block: proto::ZoneBlock,
        deadline: Duration,
    ) -> Ended<bool> {
        let request = proto::SetPinByZoneRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: card.into(),
            zone_block: Some(zone_block),
        };
        let mut pins = proto::pin_service_client::PinServiceClient::new(self.channel(side));
        map(grpc(deadline, pins.set_pin_by_zone(request)).await, |answer| Some(answer.unchanged))
    }

    /// The tries that were ever reserved for a card, and those that are used. A read, which no history records.
    pub async fn find(&self, side: usize, card: &str, deadline: Duration) -> Ended<(u64, u64)> {
        let request =
            proto::FindCardRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), plastic_id: card.into() };
        let mut cards = proto::card_service_client::CardServiceClient::new(self.channel(side));
        let found = grpc(deadline, cards.find_card(request)).await;
        map(found, |found| Some((found.reserved_try_count, found.used_try_count)))
    }

    /// Forgives the tries up to a number: those that are used after it.
    pub async fn reset(&self, side: usize, card: &str, up_to: u64, deadline: Duration) -> Ended<u64> {
        let request = proto::ResetTriesRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: card.into(),
            reserved_try_count: up_to,
        };
        let mut cards = proto::card_service_client::CardServiceClient::new(self.channel(side));
        map(grpc(deadline, cards.reset_tries(request)).await, |answer| Some(answer.used_try_count))
    }
}

fn map<T, U>(ended: Ended<T>, read: impl FnOnce(T) -> Option<U>) -> Ended<U> {
    match ended {
        Ended::Answered(answer) => match read(answer) {
            Some(value) => Ended::Answered(value),
            None => Ended::Unexpected(Unexpected("an answer lacks a member of the contract".to_owned())),
        },
        Ended::Other(end) => Ended::Other(end),
        Ended::Unexpected(unexpected) => Ended::Unexpected(unexpected),
    }
}

fn text(body: &Value, member: &str) -> Option<String> {
    Some(body.get(member)?.as_str()?.to_owned())
}

fn bytes(body: &Value, member: &str) -> Option<Vec<u8>> {
    STANDARD.decode(body.get(member)?.as_str()?).ok()
}

/// The errors of the contract, docs/openapi.json.
fn refused_by_http<T>(path: &str, status: StatusCode, body: &Value) -> Ended<T> {
    let end = match body.get("errorCode").and_then(Value::as_str) {
        Some("CONTROL_NOT_USABLE") => End::Refused(Refusal::ControlNotUsable),
        Some("TZPK_MISSING") => End::Refused(Refusal::TzpkMissing),
        Some("PIN_NOT_SET") => End::Refused(Refusal::PinNotSet),
        Some("CARD_UNKNOWN") => End::Refused(Refusal::CardUnknown),
        Some("PIN_BLOCK_MALFORMED") => End::Answered(Answer::Malformed),
        Some("PIN_REFUSED") => End::Answered(Answer::PinRefused),
        Some("BUSY" | "CLIENT_BUSY" | "TENANT_BUSY" | "CLIENT_RATE" | "TENANT_RATE" | "CARD_RATE" | "CONTROL_CAP") => {
            End::Refused(Refusal::TryLater)
        }
        Some("STORE_UNAVAILABLE" | "TOKEN_UNAVAILABLE" | "ENGINE_UNAVAILABLE") => End::GivenUp(GiveUp::Unavailable),
        _ => return Ended::Unexpected(Unexpected(format!("{path}: {status}: {body}"))),
    };
    Ended::Other(end)
}

async fn grpc<T>(deadline: Duration, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Ended<T> {
    match tokio::time::timeout(deadline, call).await {
        Err(_) => Ended::Other(End::GivenUp(GiveUp::DeadlinePassed)),
        Ok(Ok(answer)) => Ended::Answered(answer.into_inner()),
        Ok(Err(status)) => refused_by_grpc(&status),
    }
}

fn refused_by_grpc<T>(status: &Status) -> Ended<T> {
    let reason = status.get_details_error_info().and_then(|info| Reason::parse(&info.reason));
    let end = match (status.code(), reason) {
        (Code::Unavailable, Some(_)) => End::GivenUp(GiveUp::Unavailable),
        (Code::DeadlineExceeded, _) => End::GivenUp(GiveUp::DeadlinePassed),
        // Only the client's own status has a source.
        (Code::Unavailable | Code::Cancelled, None) => End::GivenUp(GiveUp::ConnectionLost),
        (_, None) if status.source().is_some() => End::GivenUp(GiveUp::ConnectionLost),
        // The engine gives a reason with every answer of its own.
        (code, None) => {
            return Ended::Unexpected(Unexpected(format!("{code:?} without a reason: {}", status.message())));
        }
        (_, Some(Reason::PinNotSet)) => End::Refused(Refusal::PinNotSet),
        (_, Some(Reason::CardUnknown)) => End::Refused(Refusal::CardUnknown),
        (_, Some(Reason::PinLocked)) => End::Refused(Refusal::PinLocked),
        (_, Some(Reason::CardChanged)) => End::Refused(Refusal::CardChanged),
        (_, Some(Reason::TryCountInvalid)) => End::Refused(Refusal::TryCountInvalid),
        (_, Some(Reason::PinBlockReplaced)) => End::Refused(Refusal::BlockReplaced),
        (_, Some(Reason::ControlNotUsable)) => End::Refused(Refusal::ControlNotUsable),
        (_, Some(Reason::TzpkMissing)) => End::Refused(Refusal::TzpkMissing),
        (_, Some(Reason::PinBlockMalformed)) => End::Answered(Answer::Malformed),
        (_, Some(Reason::PinRefused)) => End::Answered(Answer::PinRefused),
        (_, Some(Reason::Busy | Reason::TokenBusy | Reason::TenantRate | Reason::CardRate | Reason::WrongPinRate)) => {
            End::Refused(Refusal::TryLater)
        }
        (code, Some(reason)) => return Ended::Unexpected(Unexpected(format!("{code:?} {}", reason.as_str()))),
    };
    Ended::Other(end)
}
