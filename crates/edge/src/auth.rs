//! Authentication of clients: Bearer and Basic credentials, compared in constant time, and client certificates.

use std::sync::{Arc, PoisonError, RwLock};

use axum::http::{HeaderMap, header::AUTHORIZATION, request::Parts};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use proto::OaepMgf1;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    api_error::{ApiError, Rejection},
    mistake::Mistake,
};
use domain::card::Tenant;
use net::tls::Peer;

/// A marker in the extensions of a response: the request had the credentials of a client.
#[derive(Clone, Copy)]
pub(super) struct Authenticated;

/// A client of the API. A request of the client has every credential that the client has. No `Debug`: the value holds the
/// hash of a credential.
pub struct Client {
    name: Box<str>,
    tenant: Tenant,
    /// The credential in the Authorization header; `None` for a client with a certificate alone.
    credential: Option<Credential>,
    /// The name on the certificate of the client; `None` for a client without one.
    certificate_name: Option<Box<str>>,
    wants_kcv: bool,
    /// The last day on which the devices of the client get RSA-OAEP with MGF1-SHA-1; `None` for MGF1-SHA-256.
    mgf1_sha1_until: Option<Date>,
    /// The zone keys of the client, each with its uses.
    zones: Arc<[ZoneGrant]>,
}

/// A zone key that a client may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneGrant {
    /// The `zpkIndex` of the zone, within the tenant of the client.
    pub index: u32,
    /// The operations that are granted, each once.
    pub uses: Vec<GrantedUse>,
}

/// An operation with a zone key that the configuration of an edge grants a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrantedUse {
    /// Set a PIN that the client knows.
    SetPin,
    /// Get a PIN that the client then knows.
    GetPin,
}

/// The clients of a running edge. A reload replaces them in every clone.
#[derive(Clone)]
pub(super) struct Clients(Arc<RwLock<Arc<[Client]>>>);

impl Clients {
    pub(super) fn new(clients: Vec<Client>) -> Self {
        clients.iter().for_each(Client::report_mgf1);
        Self(Arc::new(RwLock::new(clients.into())))
    }

    pub(super) fn current(&self) -> Arc<[Client]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the clients. The next request of each connection is authenticated by the new ones.
    pub(super) fn replace(&self, clients: Vec<Client>) {
        clients.iter().for_each(Client::report_mgf1);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = clients.into();
    }
}

/// The fewest characters of a bearer token or a password: 16 random characters of base64 are 96 bits, which cannot be guessed
/// over a network.
pub const SECRET_CHARACTERS_MIN: usize = 16;

/// The SHA-256 of a credential. Hashes have one length, so a constant-time comparison does not reveal the length of the
/// secret, and the secret does not stay in memory. Credentials are long and random, so the hash needs no salt and no
/// stretching.
pub struct Credential([u8; 32]);

impl Client {
    /// A client with its name in the log, its tenant and its credential in the Authorization header.
    pub fn new(name: &str, tenant: Tenant, credential: impl Into<Option<Credential>>) -> Self {
        Self {
            name: name.into(),
            tenant,
            credential: credential.into(),
            certificate_name: None,
            wants_kcv: false,
            mgf1_sha1_until: None,
            zones: Arc::default(),
        }
    }

    /// A client with these zone keys.
    pub(super) fn with_zones(self, zones: Vec<ZoneGrant>) -> Self {
        Self { zones: zones.into(), ..self }
    }

    /// The zone keys of the client.
    pub(super) fn zones(&self) -> &Arc<[ZoneGrant]> {
        &self.zones
    }

    /// A client that also presents the certificate with this name.
    pub(super) fn with_certificate(self, name: Option<String>) -> Self {
        Self { certificate_name: name.map(String::into_boxed_str), ..self }
    }

    /// A client whose devices decrypt RSA-OAEP with MGF1-SHA-1 alone, until the end of this day (UTC).
    pub(super) fn with_mgf1_sha1(self, until: Option<Date>) -> Self {
        Self { mgf1_sha1_until: until, ..self }
    }

    /// The form of RSA-OAEP for the devices of the client.
    ///
    /// # Errors
    /// OAEP_MGF1_EXPIRED: the last day for MGF1-SHA-1 has passed.
    pub(super) fn oaep_mgf1(&self) -> Result<OaepMgf1, ApiError> {
        match self.mgf1_sha1_until {
            None => Ok(OaepMgf1::Sha256),
            Some(until) if today() <= until => Ok(OaepMgf1::Sha1),
            Some(_) => Err(ApiError::OAEP_MGF1_EXPIRED),
        }
    }

    /// Logs the use of MGF1-SHA-1, when the client comes into use.
    pub(super) fn report_mgf1(&self) {
        let Some(until) = self.mgf1_sha1_until else { return };
        if today() <= until {
            tracing::info!(client = &*self.name, %until, "the devices of a client get RSA-OAEP with MGF1-SHA-1");
        } else {
            tracing::warn!(
                client = &*self.name,
                %until,
                "oaep_mgf1_until of a client has passed: its requests for a tzpk or a PIN are refused"
            );
        }
    }

    pub(super) fn certificate_name(&self) -> Option<&str> {
        self.certificate_name.as_deref()
    }

    /// Whether the answers to this client have the KCV of each tzpk.
    pub(super) fn with_kcv(self, wants_kcv: bool) -> Self {
        Self { wants_kcv, ..self }
    }

    pub(super) fn wants_kcv(&self) -> bool {
        self.wants_kcv
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn tenant(&self) -> Tenant {
        self.tenant
    }
}

fn today() -> Date {
    TimeZone::UTC.to_datetime(Timestamp::now()).date()
}

impl Credential {
    /// A bearer token (RFC 6750).
    pub fn bearer(token: &str) -> Self {
        Self::hash("bearer", token.as_bytes())
    }

    /// A user and a password (RFC 7617).
    pub fn basic(user: &str, password: &str) -> Self {
        Self::hash("basic", Zeroizing::new(format!("{user}:{password}")).as_bytes())
    }

    /// Compares two credentials in constant time.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    fn hash(scheme: &str, secret: &[u8]) -> Self {
        Self(Sha256::new().chain_update(scheme).chain_update([0]).chain_update(secret).finalize().into())
    }

    /// The credential of a request; `None` without the header.
    ///
    /// # Errors
    /// The header occurs more than once, or has neither scheme.
    fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, NotAuthenticated> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(NotAuthenticated::HeaderRepeated);
        }
        let (scheme, rest) = value.to_str().unwrap_or_default().split_once(' ').unwrap_or_default();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Some(Self::bearer(rest.trim())));
        }
        if scheme.eq_ignore_ascii_case("basic") {
            let pair = STANDARD.decode(rest.trim()).map(Zeroizing::new).unwrap_or_default();
            return Ok(Some(Self::hash("basic", &pair)));
        }
        Err(NotAuthenticated::SchemeUnknown)
    }
}

/// Why a request has no client. The log has the reason; the client gets one answer for all but the repeated header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum NotAuthenticated {
    /// A proxy may have checked another one of the headers.
    #[error("the Authorization header occurs more than once")]
    HeaderRepeated,
    #[error("the Authorization header has neither a Bearer token nor Basic credentials")]
    SchemeUnknown,
    #[error("no credentials: no Authorization header and no client certificate")]
    Missing,
    #[error("no client has this token or password")]
    SecretUnknown,
    #[error("no client has this certificate, and the Authorization header is missing")]
    CertificateUnknown,
    /// The secret is right.
    #[error("the client of this token or password also has a certificate, which the request lacks")]
    CertificateMissing,
    /// The secret is right.
    #[error("the certificate and the token or password are those of two clients")]
    CertificateOfOther,
    /// The certificate is right.
    #[error("the client of this certificate also has a token or password, and the Authorization header is missing")]
    SecretMissing,
}

impl From<NotAuthenticated> for Rejection {
    fn from(reason: NotAuthenticated) -> Self {
        let error = match reason {
            NotAuthenticated::HeaderRepeated => Mistake::AuthorizationRepeated.into(),
            _ => ApiError::UNAUTHENTICATED,
        };
        Self { error, cause: Some(reason.to_string()) }
    }
}

/// Finds the client of a request. The request has every credential of its client and none of another one: a certificate
/// alone, an Authorization header alone, or both of the same client. A certificate that no client has is no credential; an
/// edge whose TLS requires certificates may have clients that present only a token to the API.
///
/// The headers of all clients are compared, so the time does not depend on which one matches.
///
/// # Errors
/// [`NotAuthenticated`]: no client has the credentials, or the header is malformed.
pub(super) fn authenticate<'a>(clients: &'a [Client], request: &Parts) -> Result<&'a Client, NotAuthenticated> {
    let presented = match request.extensions.get::<Peer>() {
        Some(Peer::Certificate { name, .. }) => Some(name),
        Some(Peer::Loopback | Peer::Anonymous) | None => None,
    };
    let certified = presented.and_then(|name| clients.iter().find(|client| client.certificate_name() == Some(&**name)));
    let Some(credential) = Credential::from_headers(&request.headers)? else {
        return match certified {
            Some(client) if client.credential.is_none() => Ok(client),
            Some(_) => Err(NotAuthenticated::SecretMissing),
            None if presented.is_some() => Err(NotAuthenticated::CertificateUnknown),
            None => Err(NotAuthenticated::Missing),
        };
    };
    let mut found = None;
    for client in clients {
        if client.credential.as_ref().is_some_and(|of_client| of_client.is_same(&credential)) {
            found = Some(client);
        }
    }
    let client = found.ok_or(NotAuthenticated::SecretUnknown)?;
    match certified {
        Some(certified) if std::ptr::eq(certified, client) => Ok(client),
        Some(_) => Err(NotAuthenticated::CertificateOfOther),
        None if client.certificate_name.is_none() => Ok(client),
        None => Err(NotAuthenticated::CertificateMissing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN_1: &str = "Bearer token-1";
    const BOTH: &str = "Bearer token-of-both";

    fn clients() -> Vec<Client> {
        let tenant = Tenant::parse("bank").unwrap();
        let with = |client: Client, name: &str| client.with_certificate(Some(name.to_owned()));
        vec![
            Client::new("app", tenant, Credential::bearer("token-1")),
            Client::new("backend", tenant, Credential::basic("backend", "pass:word")),
            with(Client::new("wallet", tenant, None), "wallet.test"),
            with(Client::new("both", tenant, Credential::bearer("token-of-both")), "both.test"),
        ]
    }

    /// The name of the client whose request has these Authorization headers and the certificate with this name.
    fn found(authorization: &[&str], certificate: Option<&str>) -> Result<String, NotAuthenticated> {
        let mut request = axum::http::Request::new(()).into_parts().0;
        for value in authorization {
            request.headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        let peer = |name: &str| Peer::Certificate { name: name.into(), sha256: [0; 32] };
        request.extensions.insert(certificate.map_or(Peer::Anonymous, peer));
        authenticate(&clients(), &request).map(|client| client.name().to_owned())
    }

    #[test]
    fn a_client_is_found_by_its_token_or_its_password() {
        assert_eq!(found(&[TOKEN_1], None), Ok("app".into()));
        assert_eq!(found(&["bearer token-1"], None), Ok("app".into()));
        assert_eq!(found(&[&format!("Basic {}", STANDARD.encode("backend:pass:word"))], None), Ok("backend".into()));
    }

    #[test]
    fn other_credentials_match_no_client() {
        for value in ["", "Bearer", "Bearer ", "Bearer token-2", "Basic !!!", "Basic token-1", "Digest token-1"] {
            assert!(found(&[value], None).is_err(), "{value:?}");
        }
        assert!(found(&[&format!("Basic {}", STANDARD.encode("token-1"))], None).is_err());
        assert!(found(&[], None).is_err());
    }

    #[test]
    fn a_certificate_is_the_credential_of_its_client() {
        assert_eq!(found(&[], Some("wallet.test")), Ok("wallet".into()));
        assert_eq!(found(&[BOTH], Some("both.test")), Ok("both".into()));
        // A certificate that no client has is no credential.
        assert_eq!(found(&[TOKEN_1], Some("other.test")), Ok("app".into()));
    }

    #[test]
    fn missing_credentials_and_those_of_another_client_are_rejected() {
        use NotAuthenticated::{
            CertificateMissing, CertificateOfOther, CertificateUnknown, Missing, SchemeUnknown, SecretMissing,
            SecretUnknown,
        };
        for (authorization, certificate, reason) in [
            (None, None, Missing),
            (None, Some("other.test"), CertificateUnknown),
            (None, Some(""), CertificateUnknown),
            // One of two credentials.
            (None, Some("both.test"), SecretMissing),
            (Some(BOTH), Some("other.test"), CertificateMissing),
            (Some(BOTH), None, CertificateMissing),
            // The certificate and the token of different clients.
            (Some(BOTH), Some("wallet.test"), CertificateOfOther),
            (Some(TOKEN_1), Some("wallet.test"), CertificateOfOther),
            (Some(TOKEN_1), Some("both.test"), CertificateOfOther),
            // A wrong token beside the right certificate.
            (Some("Bearer wrong"), Some("wallet.test"), SecretUnknown),
            (Some("Bearer wrong"), Some("both.test"), SecretUnknown),
            (Some(""), Some("wallet.test"), SchemeUnknown),
            (Some("Digest token-1"), None, SchemeUnknown),
        ] {
            let outcome = found(authorization.as_slice(), certificate);
            assert_eq!(outcome, Err(reason), "{authorization:?} {certificate:?}");
            let rejection = Rejection::from(reason);
            assert_eq!(rejection.error, ApiError::UNAUTHENTICATED, "{reason:?}: one answer");
            assert!(rejection.cause.is_some());
        }
    }

    #[test]
    fn mgf1_sha1_ends_with_its_last_day() {
        let until = |until: Option<Date>| {
            Client::new("app", Tenant::parse("bank").unwrap(), None).with_mgf1_sha1(until).oaep_mgf1()
        };
        assert!(until(None) == Ok(OaepMgf1::Sha256));
        assert!(until(Some(today().tomorrow().unwrap())) == Ok(OaepMgf1::Sha1));
        assert!(until(Some(today().yesterday().unwrap())) == Err(ApiError::OAEP_MGF1_EXPIRED));
    }

    #[test]
    fn two_authorization_headers_match_no_client() {
        for second in [TOKEN_1, "Bearer wrong"] {
            assert_eq!(found(&[TOKEN_1, second], None), Err(NotAuthenticated::HeaderRepeated), "{second}");
        }
    }
}
