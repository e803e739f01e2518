//! Who calls: Bearer and Basic credentials, compared in constant time.

use axum::http::{HeaderMap, header::AUTHORIZATION};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use domain::card::Tenant;

/// In the extensions of an answer: its request had the credentials of a client.
#[derive(Clone, Copy)]
pub(super) struct Authenticated;

/// Someone who may call. No `Debug`: it knows a credential.
pub struct Client {
    name: Box<str>,
    tenant: Tenant,
    credential: Credential,
}

/// The fewest characters that a bearer token or a password has: 16 random characters of base64 are 96 bits, which cannot be
/// guessed over a network.
pub const SECRET_CHARACTERS_MIN: usize = 16;

/// What a client shows. Only its SHA-256 is kept: hashes have one length, so comparing them in constant time tells
/// nothing of the secret's, and the secret itself does not rest in memory. A credential here is long and random, not a
/// password to be guessed from its hash.
pub struct Credential([u8; 32]);

impl Client {
    /// A client, its tenant, and what it shows.
    pub fn new(name: &str, tenant: Tenant, credential: Credential) -> Self {
        Self { name: name.into(), tenant, credential }
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
        Self::of("bearer", token.as_bytes())
    }

    /// A user and a password (RFC 7617).
    pub fn basic(user: &str, password: &str) -> Self {
        Self::of("basic", Zeroizing::new(format!("{user}:{password}")).as_bytes())
    }

    /// Whether both are the same, compared in constant time.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    fn of(scheme: &str, secret: &[u8]) -> Self {
        Self(Sha256::new().chain_update(scheme).chain_update([0]).chain_update(secret).finalize().into())
    }

    /// What a request shows; something that no client has where it shows nothing readable.
    fn shown(headers: &HeaderMap) -> Self {
        let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (scheme, rest) = value.split_once(' ').unwrap_or_default();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Self::bearer(rest.trim());
        }
        if scheme.eq_ignore_ascii_case("basic") {
            let pair = STANDARD.decode(rest.trim()).map(Zeroizing::new).unwrap_or_default();
            return Self::of("basic", &pair);
        }
        Self::of("nothing", &[])
    }
}

/// The client a request comes from. Every client is compared, whichever it is, and whether or not it is one.
pub(super) fn authenticate<'a>(clients: &'a [Client], headers: &HeaderMap) -> Option<&'a Client> {
    let shown = Credential::shown(headers);
    let mut found = None;
    for client in clients {
        if client.credential.is_same(&shown) {
            found = Some(client);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Vec<Client> {
        let tenant = Tenant::parse("bank").unwrap();
        vec![
            Client::new("app", tenant, Credential::bearer("token-1")),
            Client::new("desk", tenant, Credential::basic("desk", "pass:word")),
        ]
    }

    fn showing(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_client_is_known_by_its_token_or_its_user_and_password() {
        let clients = clients();
        let name = |value: &str| authenticate(&clients, &showing(value)).map(Client::name);
        assert_eq!(name("Bearer token-1"), Some("app"));
        assert_eq!(name("bearer token-1"), Some("app"));
        assert_eq!(name(&format!("Basic {}", STANDARD.encode("desk:pass:word"))), Some("desk"));
    }

    #[test]
    fn anything_else_is_nobody() {
        let clients = clients();
        for value in ["", "Bearer", "Bearer ", "Bearer token-2", "Basic !!!", "Basic token-1", "Digest token-1"] {
            assert!(authenticate(&clients, &showing(value)).is_none(), "{value:?}");
        }
        let crossed = format!("Basic {}", STANDARD.encode("token-1"));
        assert!(authenticate(&clients, &showing(&crossed)).is_none());
        assert!(authenticate(&clients, &HeaderMap::new()).is_none());
    }
}
