//! The rights of a caller, by the certificate of its connection.

use std::{fmt, sync::Arc};

use thiserror::Error;
use tonic::Extensions;

use audit::entry::CallDenial;
use domain::card::Tenant;
use net::tls::Peer;

/// A right of a peer. The configuration file uses the names in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Right {
    /// The right to call OpenControl.
    Controls,
    /// The right to call IssueTzpk, SetPin and ViewPin.
    Pins,
    /// The right to call RegisterCard and FindCard.
    Cards,
    /// The right to call ExportAudit. A peer without `tenants` reads the whole chain and can verify it. A peer limited to tenants reads only the
    /// entries of these tenants, not those of the engine (start, stop, key reload, rotation). Each entry has its sequence
    /// and hash, but the chain has gaps, so this peer cannot verify it.
    Audit,
    /// The right to call ListKeys, WatchRotation and CountRecords, which cover all tenants.
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

/// The configured peers. With mutual TLS, the name on its certificate identifies a peer, and its entry in `[[peers]]` gives
/// its rights. An engine without TLS listens on loopback only: each process of the machine is the peer `loopback`, with every
/// right for every tenant.
#[derive(Clone)]
pub(super) struct Peers(Arc<[crate::Peer]>);

/// A caller that has the right for its call.
#[derive(Clone, Debug)]
pub(super) struct AdmittedPeer {
    /// The name on the certificate, or `loopback`.
    pub(super) name: Arc<str>,
    /// The tenants that the caller may name; empty for all.
    tenants: Vec<Tenant>,
}

impl Peers {
    /// Any other certificate has no right.
    pub(super) fn new(peers: Vec<crate::Peer>) -> Self {
        Self(peers.into())
    }

    /// The peer of a request, by the extensions of its connection.
    ///
    /// # Errors
    /// The connection has no certificate, or its peer is not configured or does not have the right.
    pub(super) fn admit(&self, extensions: &Extensions, right: Right) -> Result<AdmittedPeer, Forbidden> {
        let name = match extensions.get::<Peer>() {
            Some(Peer::Certificate { name, .. }) => name,
            Some(Peer::Loopback) => return Ok(AdmittedPeer { name: "loopback".into(), tenants: Vec::new() }),
            Some(Peer::Anonymous) | None => return Err(Forbidden::Anonymous),
        };
        let peer = self.0.iter().find(|peer| *peer.certificate_name == **name);
        let peer = peer.ok_or_else(|| Forbidden::Unknown { name: Arc::clone(name) })?;
        if !peer.rights.contains(&right) {
            return Err(Forbidden::Right { name: Arc::clone(name), right });
        }
        Ok(AdmittedPeer { name: Arc::clone(name), tenants: peer.tenants.clone() })
    }
}

impl AdmittedPeer {
    /// Checks that the caller may name this tenant.
    ///
    /// # Errors
    /// The caller is limited to other tenants.
    pub(super) fn for_tenant(&self, tenant: &Tenant) -> Result<(), Forbidden> {
        if self.may_read(Some(tenant)) { Ok(()) } else { Err(Forbidden::Tenant { name: Arc::clone(&self.name) }) }
    }

    /// Checks that the caller may call what covers all tenants.
    ///
    /// # Errors
    /// The caller is limited to tenants.
    pub(super) fn for_all_tenants(&self) -> Result<(), Forbidden> {
        if self.may_read(None) { Ok(()) } else { Err(Forbidden::AllTenants { name: Arc::clone(&self.name) }) }
    }

    /// Whether the caller may read data of this tenant; `None` for data of the engine.
    pub(super) fn may_read(&self, tenant: Option<&Tenant>) -> bool {
        self.tenants.is_empty() || tenant.is_some_and(|tenant| self.tenants.contains(tenant))
    }
}

/// The rejection of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Forbidden {
    /// The connection has no client certificate.
    #[error(
        "a connection without a client certificate has no rights: use a certificate that the engine's client_roots verify"
    )]
    Anonymous,
    /// The certificate is not among the configured peers.
    #[error(
        "the certificate {name:?} has no rights: add [[peers]] with certificate_name = {name:?} and its rights to the \
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
        /// The missing right.
        right: Right,
    },
    /// The peer is limited to other tenants.
    #[error("the peer {name:?} may not name this tenant: add it to the tenants of this entry in [[peers]]")]
    Tenant {
        /// The name on the certificate.
        name: Arc<str>,
    },
    /// The peer is limited to tenants, and the call covers all tenants.
    #[error("the peer {name:?} is limited to tenants, and this call covers all tenants: use a peer without tenants")]
    AllTenants {
        /// The name on the certificate.
        name: Arc<str>,
    },
}

impl Forbidden {
    /// The reason in an audit event.
    pub(super) fn reason(&self) -> CallDenial {
        match self {
            Self::Anonymous => CallDenial::NoCertificate,
            Self::Unknown { .. } => CallDenial::UnknownPeer,
            Self::Right { .. } => CallDenial::Right,
            Self::Tenant { .. } => CallDenial::Tenant,
            Self::AllTenants { .. } => CallDenial::AllTenants,
        }
    }

    /// The name on the certificate; `anonymous` for a connection without one.
    pub(super) fn peer_name(&self) -> Arc<str> {
        match self {
            Self::Anonymous => "anonymous".into(),
            Self::Unknown { name } | Self::Right { name, .. } | Self::Tenant { name } | Self::AllTenants { name } => {
                Arc::clone(name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extensions_of(name: &str) -> Extensions {
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
    fn a_peer_has_only_its_rights_and_tenants() {
        let (bank, other) = (Tenant::parse("bank").unwrap(), Tenant::parse("other").unwrap());
        let name: Arc<str> = "edge".into();
        let edge = peers().admit(&extensions_of("edge"), Right::Pins).unwrap();
        assert_eq!(edge.name, name);
        assert_eq!(edge.for_tenant(&bank), Ok(()));
        assert_eq!(edge.for_tenant(&other), Err(Forbidden::Tenant { name: name.clone() }));
        assert_eq!(edge.for_all_tenants(), Err(Forbidden::AllTenants { name: name.clone() }));
        assert_eq!(
            (edge.may_read(Some(&bank)), edge.may_read(Some(&other)), edge.may_read(None)),
            (true, false, false)
        );
        for right in [Right::Cards, Right::Keys] {
            let refused = peers().admit(&extensions_of("edge"), right).err();
            assert_eq!(refused, Some(Forbidden::Right { name: name.clone(), right }));
        }
    }

    #[test]
    fn an_unknown_certificate_is_rejected_by_name() {
        let stranger = Forbidden::Unknown { name: "stranger".into() };
        for peers in [peers(), Peers::new(Vec::new())] {
            assert_eq!(peers.admit(&extensions_of("stranger"), Right::Pins).err(), Some(stranger.clone()));
        }
        assert!(stranger.to_string().contains("add [[peers]] with certificate_name = \"stranger\""));
    }

    #[test]
    fn a_request_without_a_peer_is_rejected() {
        assert_eq!(peers().admit(&Extensions::default(), Right::Audit).err(), Some(Forbidden::Anonymous));
    }
}
