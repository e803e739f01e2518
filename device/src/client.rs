//! A client of the Card PIN API: the back-end between the cardholder's device and the edge.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use ureq::Agent;

/// The time limit of one request.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(15);

/// A back-end that sends requests to an edge.
pub struct Backend {
    agent: Agent,
    edge: String,
    authorization: String,
    audit_user: String,
}

/// The purpose of a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The control sets a PIN: `SET_PIN`.
    SetPin,
    /// The control shows a PIN: `VIEW_PIN`.
    ViewPin,
}

/// One request and its response, for people to read.
pub struct Exchange {
    /// The method and the path, such as `POST /pin/v3/set`.
    pub request_line: String,
    /// The JSON body of the request.
    pub request: Value,
    /// The HTTP status of the response.
    pub status: u16,
    /// The JSON body of the response.
    pub response: Value,
}

/// The response of `POST /pin/v3/view`.
pub struct ViewResponse {
    /// The fresh tzpk, encrypted to the device with RSA-OAEP.
    pub encrypted_tzpk: Vec<u8>,
    /// The ISO 9564 format 1 block, encrypted under the tzpk.
    pub block: [u8; 8],
}

impl Backend {
    /// A back-end for the edge at this base URL, such as `http://127.0.0.1:8080`, with a bearer token.
    pub fn with_bearer(edge: &str, token: &str, audit_user: &str) -> Self {
        Self::with_authorization(edge, format!("Bearer {token}"), audit_user)
    }

    /// A back-end with HTTP Basic credentials (RFC 7617).
    pub fn with_basic(edge: &str, user: &str, password: &str, audit_user: &str) -> Self {
        Self::with_authorization(edge, format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))), audit_user)
    }

    fn with_authorization(edge: &str, authorization: String, audit_user: &str) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(REQUEST_TIME_MAX)).build();
        let edge = edge.trim_end_matches('/').to_owned();
        Self { agent: config.into(), edge, authorization, audit_user: audit_user.to_owned() }
    }

    /// Opens a control for a card. Returns its controlId.
    ///
    /// # Errors
    /// The edge does not answer, refuses, or its response lacks the id.
    pub fn open_control(&self, plastic_id: &str, scope: Scope) -> Result<(String, Exchange), ClientError> {
        let scope = match scope {
            Scope::SetPin => "SET_PIN",
            Scope::ViewPin => "VIEW_PIN",
        };
        let path = format!("/pincontrol/v2/plastic/{plastic_id}");
        let exchange = self.post(&path, json!({ "scope": scope }))?;
        Ok((text(&exchange, "id")?, exchange))
    }

    /// Requests a tzpk for a device's public key, a DER SubjectPublicKeyInfo. Returns the tzpk, encrypted to that key.
    ///
    /// # Errors
    /// The edge does not answer, refuses, or its response lacks the tzpk.
    pub fn set_tzpk(&self, control_id: &str, public_key: &[u8]) -> Result<(Vec<u8>, Exchange), ClientError> {
        let request = json!({ "controlId": control_id, "publicKey": STANDARD.encode(public_key) });
        let exchange = self.post("/pin/v3/set/tzpk", request)?;
        Ok((bytes(&exchange, "tzpk")?, exchange))
    }

    /// Sends the encrypted PIN block, which sets the PIN and spends the control.
    ///
    /// # Errors
    /// The edge does not answer, or refuses.
    pub fn set(&self, control_id: &str, block: &[u8; 8]) -> Result<Exchange, ClientError> {
        self.post("/pin/v3/set", json!({ "controlId": control_id, "pinBlock": STANDARD.encode(block) }))
    }

    /// Requests the PIN for a device's public key, a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// The edge does not answer, refuses, or its response lacks the tzpk or the block.
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

/// A request to the edge failed.
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
    /// The edge returned an error of the Card PIN API.
    #[error("the edge refused: {status} {code}: {message} (id {id})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The `errorCode` of the contract.
        code: String,
        /// The text for people, from `message`.
        message: String,
        /// The id of the error, which is also in the edge's log.
        id: String,
    },
}
