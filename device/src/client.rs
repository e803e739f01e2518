//! The Card PIN API, as a client's back-end calls it.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use ureq::Agent;

/// How long one request may take.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(15);

/// A back-end that talks to an edge.
pub struct Backend {
    agent: Agent,
    edge: String,
    authorization: String,
    audit_user: String,
}

/// What a control is to be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `SET_PIN`.
    SetPin,
    /// `VIEW_PIN`.
    ViewPin,
}

/// One request and its answer, for people to read.
pub struct Exchange {
    /// Method and path.
    pub request_line: String,
    /// The request's JSON.
    pub request: Value,
    /// The answer's status.
    pub status: u16,
    /// The answer's JSON.
    pub response: Value,
}

/// The response of `POST /pin/v3/view`.
pub struct ViewResponse {
    /// RSA-OAEP of the fresh tzpk.
    pub encrypted_tzpk: Vec<u8>,
    /// The PIN's block under it.
    pub block: [u8; 8],
}

impl Backend {
    /// To the edge at this URL, such as `http://127.0.0.1:8080`, with a bearer token.
    pub fn with_bearer(edge: &str, token: &str, audit_user: &str) -> Self {
        Self::with_authorization(edge, format!("Bearer {token}"), audit_user)
    }

    /// With HTTP Basic credentials.
    pub fn with_basic(edge: &str, user: &str, password: &str, audit_user: &str) -> Self {
        Self::with_authorization(edge, format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))), audit_user)
    }

    fn with_authorization(edge: &str, authorization: String, audit_user: &str) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(REQUEST_TIME_MAX)).build();
        let edge = edge.trim_end_matches('/').to_owned();
        Self { agent: config.into(), edge, authorization, audit_user: audit_user.to_owned() }
    }

    /// Opens a control; its controlId is answered.
    pub fn open_control(&self, plastic_id: &str, scope: Scope) -> Result<(String, Exchange), ClientError> {
        let scope = match scope {
            Scope::SetPin => "SET_PIN",
            Scope::ViewPin => "VIEW_PIN",
        };
        let path = format!("/pincontrol/v2/plastic/{plastic_id}");
        let exchange = self.post(&path, json!({ "scope": scope }))?;
        Ok((text(&exchange, "id")?, exchange))
    }

    /// Asks for a tzpk for a device's public key; it comes encrypted to that key.
    pub fn set_tzpk(&self, control_id: &str, public_key: &[u8]) -> Result<(Vec<u8>, Exchange), ClientError> {
        let request = json!({ "controlId": control_id, "publicKey": STANDARD.encode(public_key) });
        let exchange = self.post("/pin/v3/set/tzpk", request)?;
        Ok((bytes(&exchange, "tzpk")?, exchange))
    }

    /// Sends the block.
    pub fn set(&self, control_id: &str, block: &[u8; 8]) -> Result<Exchange, ClientError> {
        self.post("/pin/v3/set", json!({ "controlId": control_id, "pinBlock": STANDARD.encode(block) }))
    }

    /// Asks for the PIN, for a device's public key.
    pub fn view(&self, control_id: &str, public_key: &[u8]) -> Result<(ViewResponse, Exchange), ClientError> {
        let request = json!({ "controlId": control_id, "publicKey": STANDARD.encode(public_key) });
        let exchange = self.post("/pin/v3/view", request)?;
        let block = bytes(&exchange, "pinBlock")?.try_into().map_err(|_| ClientError::Answer { member: "pinBlock" })?;
        Ok((ViewResponse { encrypted_tzpk: bytes(&exchange, "tzpk")?, block }, exchange))
    }

    fn post(&self, path: &str, request: Value) -> Result<Exchange, ClientError> {
        let no_answer =
            |error: ureq::Error| ClientError::NoAnswer { edge: self.edge.clone(), reason: error.to_string() };
        let mut answer = self
            .agent
            .post(format!("{}{path}", self.edge))
            .query("auditUser", &self.audit_user)
            .header("authorization", &self.authorization)
            .content_type("application/json")
            .send(request.to_string())
            .map_err(no_answer)?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().read_to_string().map_err(no_answer)?;
        let response: Value = serde_json::from_str(&body).map_err(|_| ClientError::Answer { member: "body" })?;
        if status >= 400 {
            let error: ErrorBody =
                serde_json::from_value(response).map_err(|_| ClientError::Answer { member: "body" })?;
            return Err(ClientError::Refused { status, code: error.error_code, message: error.message, id: error.id });
        }
        Ok(Exchange { request_line: format!("POST {path}"), request, status, response })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ErrorBody {
    error_code: String,
    message: String,
    id: String,
}

fn text(exchange: &Exchange, member: &'static str) -> Result<String, ClientError> {
    let value = exchange.response.get(member).and_then(Value::as_str);
    value.map(str::to_owned).ok_or(ClientError::Answer { member })
}

fn bytes(exchange: &Exchange, member: &'static str) -> Result<Vec<u8>, ClientError> {
    STANDARD.decode(text(exchange, member)?).map_err(|_| ClientError::Answer { member })
}

/// Why the edge did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// The edge sent no HTTP response within 15 seconds, or the connection failed.
    #[error("no answer from {edge}: {reason}")]
    NoAnswer {
        /// The base URL of the edge.
        edge: String,
        /// The reason the HTTP client reports.
        reason: String,
    },
    /// The response body lacks a member of the contract, or the member is malformed.
    #[error("the edge's answer has no readable {member}")]
    Answer {
        /// The name of the JSON member.
        member: &'static str,
    },
    /// An error of the contract.
    #[error("the edge refused: {status} {code}: {message} (id {id})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The `errorCode` of the contract.
        code: String,
        /// The text for people, from `message`.
        message: String,
        /// Its id, also in the edge's log.
        id: String,
    },
}
