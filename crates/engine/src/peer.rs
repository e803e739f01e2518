//! A peer's certificate → who calls, and with what right.

use std::{fmt, sync::Arc};

use thiserror::Error;
use tonic::Extensions;

use domain::card::Tenant;
use net::tls::Peer;

/// What a caller may ask for. The names are those of the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Right {
    /// Open controls.
    Controls,
    /// Issue a tzpk, set and view a PIN.
    Pins,
    /// Register and find cards.
    Cards,
    /// Read audit entries. A peer without `tenants` reads the whole chain and can verify it. A peer limited to tenants reads
    /// the entries of these tenants alone, and none of the engine's own (start, stop, key reload, rotation): each entry
    /// has its sequence and hash, the chain has gaps, and the peer cannot verify it.
    Audit,
    /// See the keys in use, watch their rotation, count what is under them. This is of all tenants.
    Keys,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Controls => "controls",
            Self::Pins => "pins",
            Self::Cards => "cards",
            Self::Audit => "audit",
            Self::Keys => "keys",
        })
    }
}

/// Who may call. Behind mutual TLS a peer is known by the name on its certificate, and has the rights of its entry in
/// `[[peers]]`. An engine without TLS listens on loopback alone: each process of the machine is the peer `loopback`, with
/// every right for every tenant.
#[derive(Clone)]
pub(super) struct Peers(Arc<[crate::Peer]>);

/// A caller that has the right it asked with.
#[derive(Clone, Debug)]
pub(super) struct Admitted {
    /// The name on its certificate, or `loopback`.
    pub(super) name: Arc<str>,
    /// The tenants it may ask for; empty for all.
    tenants: Vec<Tenant>,
}

impl Peers {
    /// The configured ones; any other certificate has no right.
    pub(super) fn new(peers: Vec<crate::Peer>) -> Self {
        Self(peers.into())
    }

    /// The peer behind a request, if it has this right.
    pub(super) fn admit(&self, extensions: &Extensions, right: Right) -> Result<Admitted, Forbidden> {
        let name = match extensions.get::<Peer>() {
            Some(Peer::Certificate { name, .. }) => name,
            Some(Peer::Loopback) => return Ok(Admitted { name: "loopback".into(), tenants: Vec::new() }),
            Some(Peer::Anonymous) | None => return Err(Forbidden::Anonymous),
        };
        let peer = self.0.iter().find(|peer| *peer.certificate_name == **name);
        let peer = peer.ok_or_else(|| Forbidden::Unknown { name: Arc::clone(name) })?;
        if !peer.rights.contains(&right) {
            return Err(Forbidden::Right { name: Arc::clone(name), right });
        }
        Ok(Admitted { name: Arc::clone(name), tenants: peer.tenants.clone() })
    }
}

impl Admitted {
    /// Whether it may ask for this tenant.
    pub(super) fn for_tenant(&self, tenant: &Tenant) -> Result<(), Forbidden> {
        if self.sees(Some(tenant)) { Ok(()) } else { Err(Forbidden::Tenant { name: Arc::clone(&self.name) }) }
    }

    /// Whether it may ask for what belongs to every tenant.
    pub(super) fn for_all_tenants(&self) -> Result<(), Forbidden> {
        if self.sees(None) { Ok(()) } else { Err(Forbidden::AllTenants { name: Arc::clone(&self.name) }) }
    }

    /// Whether it may see what belongs to this tenant; `None` is the engine's own.
    pub(super) fn sees(&self, tenant: Option<&Tenant>) -> bool {
        self.tenants.is_empty() || tenant.is_some_and(|tenant| self.tenants.contains(tenant))
    }
}

/// Why a peer was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Forbidden {
    /// The connection has no client certificate.
    #[error(
        "a connection without a client certificate has no right: call with a certificate of the engine's client_roots"
    )]
    Anonymous,
    /// The certificate is not among the configured peers.
    #[error(
        "the certificate {name:?} has no right: add [[peers]] with certificate_name = {name:?} and its rights to the \
         engine's configuration, and restart the engine"
    )]
    Unknown {
        /// The name on the certificate.
        name: Arc<str>,
    },
    /// The peer does not have this right.
    #[error("the peer {name:?} does not have the right {right}: add it to the rights of this entry in [[peers]]")]
    Right {
        /// The name on the certificate.
        name: Arc<str>,
        /// What was missing.
        right: Right,
    },
    /// The peer may not ask for this tenant.
    #[error("the peer {name:?} may not ask for this tenant: add it to the tenants of this entry in [[peers]]")]
    Tenant {
        /// The name on the certificate.
        name: Arc<str>,
    },
    /// The peer is limited to tenants, and asked for what belongs to all of them.
    #[error(
        "the peer {name:?} is limited to tenants and may not ask for what belongs to all: use a peer without tenants"
    )]
    AllTenants {
        /// The name on the certificate.
        name: Arc<str>,
    },
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
        Peers::new(vec![crate::Peer {
            certificate_name: "edge".into(),
            rights: vec![Right::Pins],
            tenants: vec![Tenant::parse("bank").unwrap()],
        }])
    }

    #[test]
    fn a_listed_peer_has_its_rights_for_its_tenants_and_no_more() {
        let (bank, other) = (Tenant::parse("bank").unwrap(), Tenant::parse("other").unwrap());
        let name: Arc<str> = "edge".into();
        let edge = peers().admit(&behind("edge"), Right::Pins).unwrap();
        assert_eq!(edge.name, name);
        assert_eq!(edge.for_tenant(&bank), Ok(()));
        assert_eq!(edge.for_tenant(&other), Err(Forbidden::Tenant { name: name.clone() }));
        assert_eq!(edge.for_all_tenants(), Err(Forbidden::AllTenants { name: name.clone() }));
        assert_eq!((edge.sees(Some(&bank)), edge.sees(Some(&other)), edge.sees(None)), (true, false, false));
        for right in [Right::Cards, Right::Keys] {
            let refused = peers().admit(&behind("edge"), right).err();
            assert_eq!(refused, Some(Forbidden::Right { name: name.clone(), right }));
        }
    }

    #[test]
    fn a_certificate_without_a_role_is_refused_by_its_name() {
        let stranger = Forbidden::Unknown { name: "stranger".into() };
        for peers in [peers(), Peers::new(Vec::new())] {
            assert_eq!(peers.admit(&behind("stranger"), Right::Pins).err(), Some(stranger.clone()));
        }
        assert!(stranger.to_string().contains("add [[peers]] with certificate_name = \"stranger\""));
    }

    #[test]
    fn a_request_of_unknown_origin_has_no_right() {
        let nobody = Extensions::default();
        assert_eq!(peers().admit(&nobody, Right::Audit).err(), Some(Forbidden::Anonymous));
    }
}
