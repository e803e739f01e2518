//! The zones of the engine's tenants, by name and by index. The boundary enforces their formats and uses.

use config::ConfigError;
use domain::card::Tenant;
use hsm_protocol::{KeyVersion, ZoneFormat, ZoneName, ZoneRules};
use zone_config::Zone;

/// The zones of all tenants: at most 200.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones(Vec<TenantZone>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct TenantZone {
    tenant: Tenant,
    index: u32,
    rules: ZoneRules,
}

/// The zone key that a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedZoneKey {
    /// The zone that the request names.
    pub zone: ZoneReference,
    /// The version of its key; `None` for the newest.
    pub version: Option<KeyVersion>,
}

/// How a request names a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZoneReference {
    /// By its name in the configuration.
    Name(ZoneName),
    /// By its index within the tenant.
    Index(u32),
}

/// The block of a request, and the zone that it names.
#[derive(Clone)]
pub struct NamedZoneBlock {
    /// The key that encrypts the block.
    pub key: NamedZoneKey,
    /// The format; `None` for the first format of the zone.
    pub format: Option<ZoneFormat>,
    /// The block, of any length.
    pub block: Vec<u8>,
}

impl Zones {
    /// The zones of the configuration.
    ///
    /// # Errors
    /// [`ConfigError`]: an entry has a tenant that no request can name.
    pub fn new(zones: Vec<Zone>) -> Result<Self, ConfigError> {
        let checked = zones.into_iter().map(|Zone { index, rules }| -> Result<_, ConfigError> {
            let tenant = Tenant::parse(&rules.tenant).map_err(|error| ConfigError::value("zones.tenant", error))?;
            Ok(TenantZone { tenant, index, rules })
        });
        checked.collect::<Result<_, _>>().map(Self)
    }

    /// The rules of a zone; `None` where the tenant has no such zone.
    pub(crate) fn rules(&self, tenant: &Tenant, zone: &ZoneReference) -> Option<&ZoneRules> {
        let is_named = |of: &&TenantZone| match zone {
            ZoneReference::Name(name) => of.rules.name == *name,
            ZoneReference::Index(index) => of.index == *index,
        };
        self.0.iter().filter(|of| of.tenant == *tenant).find(is_named).map(|of| &of.rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_found_by_its_own_tenant_alone() {
        let zone = |name: &str, tenant: &str, index| Zone {
            index,
            rules: ZoneRules {
                name: ZoneName::parse(name).unwrap(),
                tenant: tenant.into(),
                formats: vec![ZoneFormat::Iso1],
                uses: Vec::new(),
                parity: hsm_protocol::ParityPolicy::Ignore,
            },
        };
        let zones = Zones::new(vec![zone("app", "bank", 0), zone("bureau", "other", 0)]).unwrap();
        let found = |tenant: &str, reference| {
            let tenant = Tenant::parse(tenant).unwrap();
            zones.rules(&tenant, &reference).map(|rules| rules.name.as_str().to_owned())
        };
        let app = || ZoneReference::Name(ZoneName::parse("app").unwrap());
        assert_eq!(found("bank", app()).as_deref(), Some("app"));
        assert_eq!(found("bank", ZoneReference::Index(0)).as_deref(), Some("app"));
        assert_eq!(found("other", ZoneReference::Index(0)).as_deref(), Some("bureau"));
        assert_eq!((found("other", app()), found("bank", ZoneReference::Index(1))), (None, None));
        assert!(Zones::new(vec![zone("app", "Bank", 0)]).is_err(), "no request can name this tenant");
    }
}
