//! A peer's certificate → who calls, and with what right.

use std::sync::Arc;

use thiserror::Error;
use tonic::Extensions;

use crate::{card::Tenant, config, tls::Peer};

/// What a caller may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Right {
    /// Open controls.
    Controls,
    /// Issue a tzpk, set and view a PIN.
    Pins,
    /// Register and find cards.
    Cards,
    /// Read the audit chain.
    Audit,
    /// See the keys in use, watch their rotation, count what is under them.
    Keys,
}

/// Who may call. Behind mutual TLS a peer is known by the name on its certificate; on loopback without TLS everyone is
/// `loopback` and has every right.
#[derive(Clone)]
pub(super) struct Peers(Arc<[config::Peer]>);

impl Peers {
    /// The configured ones; where none is, every certificate that the client roots vouch for has every right.
    pub(super) fn new(peers: Vec<config::Peer>) -> Self {
        Self(peers.into())
    }

    /// The name of the peer behind a request, if it has this right, for this tenant.
    pub(super) fn admit(
        &self,
        extensions: &Extensions,
        right: Right,
        tenant: Option<&Tenant>,
    ) -> Result<Arc<str>, Forbidden> {
        let name = match extensions.get::<Peer>() {
            Some(Peer::Certificate { name, .. }) => name.clone(),
            Some(Peer::Loopback) => return Ok("loopback".into()),
            Some(Peer::Anonymous) | None => return Err(Forbidden::Unknown),
        };
        if self.0.is_empty() {
            return Ok(name);
        }
        let peer = self.0.iter().find(|peer| *peer.certificate_name == *name).ok_or(Forbidden::Unknown)?;
        if !peer.rights.contains(&right) {
            return Err(Forbidden::Right);
        }
        match tenant {
            Some(tenant) if !peer.tenants.is_empty() && !peer.tenants.contains(tenant) => Err(Forbidden::Tenant),
            _ => Ok(name),
        }
    }
}

/// Why a peer was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Forbidden {
    /// Not among the configured peers.
    #[error("this certificate is not among the engine's peers")]
    Unknown,
    /// Without this right.
    #[error("this certificate does not have the right to ask for this")]
    Right,
    /// Not for this tenant.
    #[error("this certificate may not ask for this tenant")]
    Tenant,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(name: &str) -> Extensions {
        let mut extensions = Extensions::default();
        extensions.insert(Peer::Certificate { name: name.into(), sha256: [0; 32] });
        extensions
    }

    fn peers() -> Peers {
        Peers::new(vec![config::Peer {
            certificate_name: "edge".into(),
            rights: vec![Right::Pins],
            tenants: vec![Tenant::parse("bank").unwrap()],
        }])
    }

    #[test]
    fn a_listed_peer_has_its_rights_for_its_tenants_and_no_more() {
        let (bank, other) = (Tenant::parse("bank").unwrap(), Tenant::parse("other").unwrap());
        assert_eq!(&*peers().admit(&behind("edge"), Right::Pins, Some(&bank)).unwrap(), "edge");
        assert_eq!(peers().admit(&behind("edge"), Right::Pins, Some(&other)), Err(Forbidden::Tenant));
        assert_eq!(peers().admit(&behind("edge"), Right::Cards, Some(&bank)), Err(Forbidden::Right));
        assert_eq!(peers().admit(&behind("edge"), Right::Keys, None), Err(Forbidden::Right));
        assert_eq!(peers().admit(&behind("stranger"), Right::Pins, Some(&bank)), Err(Forbidden::Unknown));
    }

    #[test]
    fn a_request_of_unknown_origin_has_no_right() {
        let nobody = Extensions::default();
        assert_eq!(Peers::new(vec![]).admit(&nobody, Right::Audit, None), Err(Forbidden::Unknown));
    }
}
