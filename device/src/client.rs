//! A client of the Card PIN API: the back-end between the cardholder's device and the edge.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    crypto::{CryptoProvider, aws_lc_rs},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use ureq::{
    Agent,
    tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig},
};
use zeroize::Zeroizing;

/// The time limit of one request.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(15);

/// A back-end that sends requests to an edge.
pub struct Backend {
    agent: Agent,
    edge: String,
    /// `None` for a back-end whose certificate is its only credential.
    authorization: Option<String>,
    audit_user: String,
}

/// The TLS of a back-end: the roots of the edge's certificate, and the certificate of the back-end.
pub struct BackendTls(TlsConfig);

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
        Self::with_authorization(edge, Some(format!("Bearer {token}")), audit_user)
    }

    /// A back-end with HTTP Basic credentials (RFC 7617).
    pub fn with_basic(edge: &str, user: &str, password: &str, audit_user: &str) -> Self {
        let pair = STANDARD.encode(format!("{user}:{password}"));
        Self::with_authorization(edge, Some(format!("Basic {pair}")), audit_user)
    }

    /// A back-end whose certificate is its only credential: see [`Backend::over_tls`].
    pub fn with_certificate(edge: &str, audit_user: &str) -> Self {
        Self::with_authorization(edge, None, audit_user)
    }

    fn with_authorization(edge: &str, authorization: Option<String>, audit_user: &str) -> Self {
        let edge = edge.trim_end_matches('/').to_owned();
        Self { agent: agent(TlsConfig::builder().build()), edge, authorization, audit_user: audit_user.to_owned() }
    }

    /// The back-end with this TLS, for an edge whose URL has `https`.
    #[must_use]
    pub fn over_tls(self, tls: BackendTls) -> Self {
        Self { agent: agent(tls.0), ..self }
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
        let mut post = self.agent.post(format!("{}{path}", self.edge)).query("auditUser", &self.audit_user);
        if let Some(authorization) = &self.authorization {
            post = post.header("authorization", authorization);
        }
        let mut answer = post.content_type("application/json").send(request.to_string()).map_err(no_answer)?;
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

fn agent(tls: TlsConfig) -> Agent {
    let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(REQUEST_TIME_MAX));
    config.tls_config(tls).build().into()
}

impl BackendTls {
    /// Reads PEM files: the roots of the edge's certificate, and the certificate chain of the back-end with its private key,
    /// for an edge that asks for a client certificate.
    ///
    /// # Errors
    /// [`BackendTlsError`]: a file can't be read or lacks the PEM section, or the certificate and the key do not fit together.
    pub fn load(roots: &Path, certificate: Option<(&Path, &Path)>) -> Result<Self, BackendTlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let client = certificate.map(|(chain, key)| client_certificate(chain, key, &provider)).transpose()?;
        let roots: Vec<_> = certificates(roots)?.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
        Ok(Self(tls.root_certs(RootCerts::new_with_certs(&roots)).client_cert(client).build()))
    }
}

fn client_certificate(chain: &Path, key: &Path, provider: &CryptoProvider) -> Result<ClientCert, BackendTlsError> {
    let unusable = |path: &Path, problem: String| BackendTlsError { path: path.to_owned(), problem };
    let text = Zeroizing::new(fs::read(key).map_err(|error| unusable(key, error.to_string()))?);
    let der = PrivateKeyDer::from_pem_slice(&text).map_err(|error| unusable(key, error.to_string()))?;
    let private_key = PrivateKey::from_pem(&text).map_err(|error| unusable(key, error.to_string()))?;
    let certificates = certificates(chain)?;
    let shown: Vec<_> = certificates.iter().map(|found| Certificate::from_der(found).to_owned()).collect();
    // ureq panics on a certificate that does not fit the key.
    CertifiedKey::from_der(certificates, der, provider).map_err(|error| unusable(chain, error.to_string()))?;
    Ok(ClientCert::new_with_certs(&shown, private_key))
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BackendTlsError> {
    let unusable = |problem: String| BackendTlsError { path: path.to_owned(), problem };
    let text = fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| unusable(error.to_string()))?;
    if found.is_empty() { Err(unusable("the file has no certificate in PEM".to_owned())) } else { Ok(found) }
}

/// A file of the TLS of a back-end can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}: {problem}; name another file", path.display())]
pub struct BackendTlsError {
    /// The PEM file that can't be used.
    pub path: PathBuf,
    /// The error of the operating system, of the PEM parser or of rustls.
    pub problem: String,
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
