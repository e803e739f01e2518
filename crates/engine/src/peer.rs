//! The rights of a caller, by the certificate of its connection.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use thiserror::Error;
use tonic::Extensions;

use audit::entry::CallDenial;
use domain::card::Tenant;
use net::tls::Peer;

/// A role of a peer. The configuration file uses the names in lower case with hyphens, such as `edge-set`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// An edge whose clients set PINs.
    EdgeSet,
    /// An edge whose clients view PINs.
    EdgeView,
    /// The system that registers cards.
    CardSystem,
    /// The host that authorizes transactions: verifies, exports and translates PINs.
    AuthorizationHost,
    /// A back-end whose zone sets PINs; it knows each PIN that it sets.
    ZoneSet,
    /// A back-end whose zone gets PINs; it knows each PIN that it gets.
    ZoneGet,
    /// A custodian at a ceremony, who counts the records under a key before the key is retired.
    Custodian,
    /// A reader of the audit chain. An auditor without `tenants` reads the whole chain and can verify it. An auditor limited to
    /// tenants reads only the entries of these tenants, not those of the engine (start, stop, key reload, rotation). Each entry
    /// has its sequence and hash, but the chain has gaps, so this auditor cannot verify it.
    Auditor,
    /// An operator of the engine, who watches its keys and the rotation.
    Operator,
}

impl Role {
    /// Every role, in the order of the configuration's documentation.
    pub const ALL: [Self; 9] = [
        Self::EdgeSet,
        Self::EdgeView,
        Self::CardSystem,
        Self::AuthorizationHost,
        Self::ZoneSet,
        Self::ZoneGet,
        Self::Custodian,
        Self::Auditor,
        Self::Operator,
    ];

    /// The rights of the role.
    pub(super) const fn rights(self) -> &'static [Right] {
        match self {
            Self::EdgeSet => &[Right::SetPins],
            Self::EdgeView => &[Right::ViewPins],
            Self::CardSystem => &[Right::Cards, Right::ExportPins],
            Self::AuthorizationHost => &[Right::VerifyPins, Right::ExportPins, Right::TranslateBlocks],
            Self::ZoneSet => &[Right::SetPinsByZone],
            Self::ZoneGet => &[Right::GetPinsByZone],
            Self::Custodian => &[Right::Keys],
            Self::Auditor => &[Right::Audit],
            Self::Operator => &[Right::Keys, Right::Rotation],
        }
    }

    /// Whether the role covers all tenants, so that a peer with the role cannot be limited to some.
    pub(super) fn covers_all_tenants(self) -> bool {
        matches!(self, Self::Custodian | Self::Operator)
    }

    fn has_any(self, rights: &[Right]) -> bool {
        self.rights().iter().any(|right| rights.contains(right))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EdgeSet => "edge-set",
            Self::EdgeView => "edge-view",
            Self::CardSystem => "card-system",
            Self::AuthorizationHost => "authorization-host",
            Self::ZoneSet => "zone-set",
            Self::ZoneGet => "zone-get",
            Self::Custodian => "custodian",
            Self::Auditor => "auditor",
            Self::Operator => "operator",
        })
    }
}

/// A right, by which [`METHOD_TABLE`](super::method_table::METHOD_TABLE) admits a role to methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// The right to open controls to set a PIN, and to use them.
    SetPins,
    /// The right to open controls to view a PIN, and to use them.
    ViewPins,
    /// The right to register and find cards, to reset their tries, to generate and transfer their PINs, and to follow what
    /// happens to them.
    Cards,
    /// The right to set PINs by blocks of a zone.
    SetPinsByZone,
    /// The right to get PINs as blocks of a zone.
    GetPinsByZone,
    /// The right to verify PINs, and to change a PIN by blocks of a zone.
    VerifyPins,
    /// The right to export PINs as blocks that are bound to the account number, and to derive verification values.
    ExportPins,
    /// The right to translate blocks from zone to zone, for an account number that the caller seals.
    TranslateBlocks,
    /// The right to export audit entries.
    Audit,
    /// The right to list the keys in use and to count the records under each.
    Keys,
    /// The right to watch a rotation.
    Rotation,
}

/// The configured peers. With mutual TLS, the name on its certificate identifies a peer, and its entry in `[[peers]]` gives
/// its rights. An engine without TLS listens on loopback only: each process of the machine is the peer `loopback`, with every
/// right for every tenant.
#[derive(Clone)]
pub(super) struct Peers(Arc<RwLock<Vec<Arc<crate::Peer>>>>);

/// A caller that has the right for its call.
#[derive(Clone, Debug)]
pub(super) struct AdmittedPeer {
    /// The name on the certificate, or `loopback`.
    pub(super) name: Arc<str>,
    /// The configured roles and tenants; `None` for `loopback`, which has every right for every tenant.
    entry: Option<Arc<crate::Peer>>,
}

impl Peers {
    /// Any other certificate has no right.
    pub(super) fn new(peers: Vec<crate::Peer>) -> Self {
        let configured = Self(Arc::default());
        configured.replace(peers);
        configured
    }

    /// Replaces the configured peers in every clone. The next call of each connection is admitted by the new ones.
    pub(super) fn replace(&self, peers: Vec<crate::Peer>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = peers.into_iter().map(Arc::new).collect();
    }

    /// The peer of a request, by the extensions of its connection. It has one of these rights.
    ///
    /// # Errors
    /// The connection has no certificate, or its peer is not configured or has none of the rights.
    pub(super) fn admit(&self, extensions: &Extensions, rights: &'static [Right]) -> Result<AdmittedPeer, Forbidden> {
        let name = match extensions.get::<Peer>() {
            Some(Peer::Certificate { name, .. }) => name,
            Some(Peer::Loopback) => return Ok(AdmittedPeer { name: "loopback".into(), entry: None }),
            Some(Peer::Anonymous) | None => return Err(Forbidden::Anonymous),
        };
        self.admit_name(name, rights)
    }

    /// The present entry of a peer that was admitted before.
    ///
    /// # Errors
    /// The peer is not configured any more, or has none of the rights any more.
    pub(super) fn admit_again(
        &self,
        admitted: &AdmittedPeer,
        rights: &'static [Right],
    ) -> Result<AdmittedPeer, Forbidden> {
        match admitted.entry {
            Some(_) => self.admit_name(&admitted.name, rights),
            None => Ok(admitted.clone()),
        }
    }

    fn admit_name(&self, name: &Arc<str>, rights: &'static [Right]) -> Result<AdmittedPeer, Forbidden> {
        let peers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let entry = peers.iter().find(|peer| *peer.certificate_name == **name).cloned();
        drop(peers);
        let entry = entry.ok_or_else(|| Forbidden::Unknown { name: Arc::clone(name) })?;
        let admitted = AdmittedPeer { name: Arc::clone(name), entry: Some(entry) };
        admitted.for_rights(rights).map(|()| admitted)
    }
}

impl AdmittedPeer {
    /// Checks that the caller has one of these rights.
    ///
    /// # Errors
    /// The caller has none of them.
    pub(super) fn for_rights(&self, rights: &'static [Right]) -> Result<(), Forbidden> {
        let has_one = self.entry.as_ref().is_none_or(|peer| peer.roles.iter().any(|role| role.has_any(rights)));
        has_one.then_some(()).ok_or_else(|| Forbidden::Right { name: Arc::clone(&self.name), rights })
    }

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
        let Some(peer) = &self.entry else { return true };
        peer.tenants.is_empty() || tenant.is_some_and(|tenant| peer.tenants.contains(tenant))
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
        "the certificate {name:?} has no rights: add [[peers]] with certificate_name = {name:?} and its roles to the \
         engine's configuration, and send SIGHUP to the engine"
    )]
    Unknown {
        /// The name on the certificate.
        name: Arc<str>,
    },
    /// No role of the peer has a right for the call.
    #[error(
        "the peer {name:?} has no role for this call: add {} to the roles of this entry in [[peers]]", RolesWith(.rights)
    )]
    Right {
        /// The name on the certificate.
        name: Arc<str>,
        /// The rights that admit the call; the peer needs one.
        rights: &'static [Right],
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

/// The roles that have one of the rights, for people.
struct RolesWith<'a>(&'a [Right]);

impl fmt::Display for RolesWith<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut roles = Role::ALL.iter().filter(|role| role.has_any(self.0));
        let first = roles.next().into_iter().try_for_each(|role| write!(f, "`{role}`"));
        first.and_then(|()| roles.try_for_each(|role| write!(f, " or `{role}`")))
    }
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

    /// The name of a peer that is configured; `None` for any other certificate.
    pub(super) fn configured_peer(&self) -> Option<Arc<str>> {
        match self {
            Self::Anonymous | Self::Unknown { .. } => None,
            Self::Right { name, .. } | Self::Tenant { name } | Self::AllTenants { name } => Some(Arc::clone(name)),
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
            roles: vec![Role::EdgeSet],
            tenants: vec![Tenant::parse("bank").unwrap()],
        }])
    }

    #[test]
    fn a_peer_has_only_the_rights_of_its_roles_and_its_tenants() {
        let (bank, other) = (Tenant::parse("bank").unwrap(), Tenant::parse("other").unwrap());
        let name: Arc<str> = "edge".into();
        let edge = peers().admit(&extensions_of("edge"), &[Right::ViewPins, Right::SetPins]).unwrap();
        assert_eq!(edge.name, name);
        assert_eq!(edge.for_tenant(&bank), Ok(()));
        assert_eq!(edge.for_tenant(&other), Err(Forbidden::Tenant { name: name.clone() }));
        assert_eq!(edge.for_all_tenants(), Err(Forbidden::AllTenants { name: name.clone() }));
        assert_eq!(
            (edge.may_read(Some(&bank)), edge.may_read(Some(&other)), edge.may_read(None)),
            (true, false, false)
        );
        for rights in [&[Right::Cards][..], &[Right::ViewPins, Right::Keys]] {
            let refused = Forbidden::Right { name: name.clone(), rights };
            assert_eq!(peers().admit(&extensions_of("edge"), rights).err(), Some(refused.clone()));
            assert_eq!(edge.for_rights(rights), Err(refused));
        }
        let keys = Forbidden::Right { name, rights: &[Right::Keys] }.to_string();
        assert!(keys.contains("add `custodian` or `operator` to the roles"), "{keys}");
    }

    #[test]
    fn an_unknown_certificate_is_rejected_by_name() {
        let stranger = Forbidden::Unknown { name: "stranger".into() };
        for peers in [peers(), Peers::new(Vec::new())] {
            assert_eq!(peers.admit(&extensions_of("stranger"), &[Right::SetPins]).err(), Some(stranger.clone()));
        }
        assert!(stranger.to_string().contains("add [[peers]] with certificate_name = \"stranger\""));
    }

    #[test]
    fn a_request_without_a_peer_is_rejected() {
        assert_eq!(peers().admit(&Extensions::default(), &[Right::Audit]).err(), Some(Forbidden::Anonymous));
    }
}
