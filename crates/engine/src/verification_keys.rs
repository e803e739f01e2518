//! The keys of verification values that each tenant may name. A key of another tenant is answered like an unknown one.

use config::{ConfigError, within};
use domain::card::Tenant;
use hsm_protocol::{Error, ExpectedValue, KeyUsage, Status, ValueMethod, ZoneName};

/// The most entries of `verification.keys`.
const KEYS_MAX: usize = 200;

/// The keys and their tenants. No tenant may name a key without an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantVerificationKeys(Vec<(NamedKey, Vec<Tenant>)>);

/// A key as an entry and a request name it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum NamedKey {
    /// Every PVK pair of a set.
    Pvk(ZoneName),
    /// An IBM 3624 key, with its table and validation data.
    Ibm3624(ZoneName),
}

impl NamedKey {
    fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("pvk", name) => ZoneName::parse(name).map(Self::Pvk),
            ("ibm-3624", name) => ZoneName::parse(name).map(Self::Ibm3624),
            _ => None,
        }
    }
}

impl TenantVerificationKeys {
    /// The entries of the configuration, each a key and its tenants.
    ///
    /// # Errors
    /// [`ConfigError`]: a key or a tenant is malformed, a key has two entries or no tenant, or there are too many entries.
    pub fn new(entries: impl ExactSizeIterator<Item = (String, Vec<String>)>) -> Result<Self, ConfigError> {
        within("verification.keys", entries.len(), 0..=KEYS_MAX)?;
        let mut keys = Vec::<(NamedKey, Vec<Tenant>)>::new();
        for (name, tenants) in entries {
            let wrong = |problem: &str| ConfigError::value("verification.keys.name", format!("{name:?}: {problem}"));
            let key = NamedKey::parse(&name).ok_or_else(|| wrong("a name is pvk:NAME or ibm-3624:NAME"))?;
            if keys.iter().any(|(listed, _)| *listed == key) {
                return Err(wrong("it has two entries: name all its tenants in one"));
            }
            if tenants.is_empty() {
                return Err(wrong("it has no tenant: name at least one"));
            }
            let tenant = |tenant: &String| {
                Tenant::parse(tenant).map_err(|error| ConfigError::value("verification.keys.tenants", error))
            };
            keys.push((key, tenants.iter().map(tenant).collect::<Result<_, _>>()?));
        }
        Ok(Self(keys))
    }

    /// Checks that a tenant may derive a value under the key of a method.
    ///
    /// # Errors
    /// [`Error::NoVerificationKey`]: no entry gives the key to the tenant.
    pub(crate) fn check_method(&self, tenant: &Tenant, method: &ValueMethod) -> Result<(), Error> {
        self.check(
            tenant,
            &match method {
                ValueMethod::Pvv(key) => NamedKey::Pvk(key.name.clone()),
                ValueMethod::Ibm3624Offset(name) => NamedKey::Ibm3624(name.clone()),
            },
        )
    }

    /// Checks that a tenant may compare a PIN with a value under its key; see [`Self::check_method`].
    ///
    /// # Errors
    /// [`Error::NoVerificationKey`]: no entry gives the key to the tenant.
    pub(crate) fn check_expected(&self, tenant: &Tenant, expected: &ExpectedValue) -> Result<(), Error> {
        self.check(
            tenant,
            &match expected {
                ExpectedValue::Pvv { key, .. } => NamedKey::Pvk(key.name.clone()),
                ExpectedValue::Ibm3624Offset { key, .. } | ExpectedValue::Ibm3624Natural { key, .. } => {
                    NamedKey::Ibm3624(key.clone())
                }
            },
        )
    }

    fn check(&self, tenant: &Tenant, key: &NamedKey) -> Result<(), Error> {
        let is_given = self.0.iter().any(|(named, tenants)| named == key && tenants.contains(tenant));
        if is_given { Ok(()) } else { Err(Error::NoVerificationKey) }
    }
}

/// Checks that the boundary has the key of an expected value, before the comparison uses a try of the card.
///
/// # Errors
/// [`Error::NoVerificationKey`]: no version of the key is active.
pub(crate) fn check_is_active(status: &Status, expected: &ExpectedValue) -> Result<(), Error> {
    let is_named = |usage: &KeyUsage| match (expected, usage) {
        (ExpectedValue::Pvv { key, .. }, KeyUsage::Pvk(active)) => key == active,
        (
            ExpectedValue::Ibm3624Offset { key, .. } | ExpectedValue::Ibm3624Natural { key, .. },
            KeyUsage::Ibm3624(active),
        ) => *key == active.name,
        _ => false,
    };
    let is_active = status.verification_keys().iter().any(|key| is_named(&key.usage));
    if is_active { Ok(()) } else { Err(Error::NoVerificationKey) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hsm_protocol::{PvkName, VerificationValue};

    fn keys(entries: &[(&str, &[&str])]) -> Result<TenantVerificationKeys, ConfigError> {
        let text = |text: &&str| (*text).to_owned();
        let entries: Vec<_> =
            entries.iter().map(|(name, tenants)| (text(name), tenants.iter().map(text).collect())).collect();
        TenantVerificationKeys::new(entries.into_iter())
    }

    #[test]
    fn a_key_is_named_by_its_own_tenants_alone() {
        let keys = keys(&[("pvk:visa", &["bank", "other"]), ("ibm-3624:visa", &["bank"])]).unwrap();
        let pvk = PvkName::parse("visa:1").unwrap();
        let name = ZoneName::parse("visa").unwrap();
        let value = VerificationValue::parse("0511").unwrap();
        for (tenant, has_pvk, has_ibm_3624) in [("bank", true, true), ("other", true, false), ("third", false, false)] {
            let tenant = Tenant::parse(tenant).unwrap();
            let is_known = |checked: Result<(), Error>| match checked {
                Ok(()) => true,
                Err(Error::NoVerificationKey) => false,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(is_known(keys.check_method(&tenant, &ValueMethod::Pvv(pvk.clone()))), has_pvk);
            assert_eq!(is_known(keys.check_method(&tenant, &ValueMethod::Ibm3624Offset(name.clone()))), has_ibm_3624);
            let expected = ExpectedValue::Pvv { key: pvk.clone(), value };
            assert_eq!(is_known(keys.check_expected(&tenant, &expected)), has_pvk);
            let expected = [
                ExpectedValue::Ibm3624Offset { key: name.clone(), value },
                ExpectedValue::Ibm3624Natural { key: name.clone(), digits: 4 },
            ];
            for expected in expected {
                assert_eq!(is_known(keys.check_expected(&tenant, &expected)), has_ibm_3624);
            }
        }
    }

    #[test]
    fn an_entry_has_a_key_and_tenants() {
        for wrong in [
            &[("visa", &["bank"][..])][..],
            &[("pvk:visa:1", &["bank"])],
            &[("storage", &["bank"])],
            &[("pvk:visa", &[])],
            &[("pvk:visa", &["Bank"])],
            &[("pvk:visa", &["bank"]), ("pvk:visa", &["other"])],
        ] {
            assert!(keys(wrong).is_err(), "{wrong:?}");
        }
    }
}
