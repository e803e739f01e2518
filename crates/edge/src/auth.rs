//! Authentication of clients: Bearer and Basic credentials, compared in constant time.

use axum::http::{HeaderMap, header::AUTHORIZATION};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{api_error::ApiError, mistake::Mistake};
use domain::card::Tenant;

/// A marker in the extensions of a response: the request had the credentials of a client.
#[derive(Clone, Copy)]
pub(super) struct Authenticated;

/// A client of the API. No `Debug`: the value holds the hash of a credential.
pub struct Client {
    name: Box<str>,
    tenant: Tenant,
    credential: Credential,
    wants_kcv: bool,
}

/// The fewest characters of a bearer token or a password: 16 random characters of base64 are 96 bits, which cannot be guessed
/// over a network.
pub const SECRET_CHARACTERS_MIN: usize = 16;

/// The SHA-256 of a credential. Hashes have one length, so a constant-time comparison does not reveal the length of the
/// secret, and the secret does not stay in memory. Credentials are long and random, so the hash needs no salt and no
/// stretching.
pub struct Credential([u8; 32]);

impl Client {
    /// A client with its name in the log, its tenant and its credential.
    pub fn new(name: &str, tenant: Tenant, credential: Credential) -> Self {
        Self { name: name.into(), tenant, credential, wants_kcv: false }
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

    /// The credential of a request. If the header is missing or malformed, a credential that no client has.
    fn from_headers(headers: &HeaderMap) -> Self {
        let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (scheme, rest) = value.split_once(' ').unwrap_or_default();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Self::bearer(rest.trim());
        }
        if scheme.eq_ignore_ascii_case("basic") {
            let pair = STANDARD.decode(rest.trim()).map(Zeroizing::new).unwrap_or_default();
            return Self::hash("basic", &pair);
        }
        Self::hash("nothing", &[])
    }
}

/// Finds the client of a request. All clients are compared, so the time does not depend on which one matches.
///
/// # Errors
/// UNAUTHENTICATED: no client has the credentials, or the request has more than one Authorization header, of which a proxy
/// may have checked another one.
pub(super) fn authenticate<'a>(clients: &'a [Client], headers: &HeaderMap) -> Result<&'a Client, ApiError> {
    if headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Mistake::AuthorizationRepeated.into());
    }
    let credential = Credential::from_headers(headers);
    let mut found = None;
    for client in clients {
        if client.credential.is_same(&credential) {
            found = Some(client);
        }
    }
    found.ok_or(ApiError::UNAUTHENTICATED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Vec<Client> {
        let tenant = Tenant::parse("bank").unwrap();
        vec![
            Client::new("app", tenant, Credential::bearer("token-1")),
            Client::new("backend", tenant, Credential::basic("backend", "pass:word")),
        ]
    }

    fn headers_with(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_client_is_found_by_its_token_or_its_password() {
        let clients = clients();
        let name = |value: &str| authenticate(&clients, &headers_with(value)).ok().map(Client::name);
        assert_eq!(name("Bearer token-1"), Some("app"));
        assert_eq!(name("bearer token-1"), Some("app"));
        assert_eq!(name(&format!("Basic {}", STANDARD.encode("backend:pass:word"))), Some("backend"));
    }

    #[test]
    fn other_credentials_match_no_client() {
        let clients = clients();
        for value in ["", "Bearer", "Bearer ", "Bearer token-2", "Basic !!!", "Basic token-1", "Digest token-1"] {
            assert!(authenticate(&clients, &headers_with(value)).is_err(), "{value:?}");
        }
        let crossed = format!("Basic {}", STANDARD.encode("token-1"));
        assert!(authenticate(&clients, &headers_with(&crossed)).is_err());
        assert!(authenticate(&clients, &HeaderMap::new()).is_err());
    }
    #[test]
    fn two_authorization_headers_match_no_client() {
        let clients = clients();
        for second in ["Bearer token-1", "Bearer wrong"] {
            let mut headers = headers_with("Bearer token-1");
            headers.append(AUTHORIZATION, second.parse().unwrap());
            assert_eq!(authenticate(&clients, &headers).err(), Some(Mistake::AuthorizationRepeated.into()), "{second}");
        }
    }
}
