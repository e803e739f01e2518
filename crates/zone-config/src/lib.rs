//! The section `[[zones]]` of the configuration. The engine reads a zone's tenant and index, the key boundary its formats,
//! uses and parity; each checks the whole section. What must never enter: a cipher, because the engine links none.
//!
//! ```
//! use zone_config::{ZoneFile, check_zones};
//!
//! #[derive(serde::Deserialize)]
//! struct File {
//!     zones: Vec<ZoneFile>,
//! }
//!
//! let file: File = toml::from_str(
//!     "[[zones]]
//!     name = \"app-bank\"
//!     tenant = \"bank\"
//!     index = 0
//!     uses = [\"set-pin\", \"get-pin\"]",
//! )?;
//! let zones = check_zones(file.zones)?;
//! assert_eq!(zones[0].rules.formats, [hsm_protocol::ZoneFormat::Iso1]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::HashSet;

use config::{ConfigError, within};
use hsm_protocol::{ParityPolicy, ZoneFormat, ZoneName, ZoneRules, ZoneUse};
use serde::Deserialize;

/// The most zones of a configuration.
const ZONES_MAX: usize = 200;
/// The largest index of a zone.
const INDEX_MAX: u32 = 9_999;
/// The most bytes of a tenant.
const TENANT_BYTES_MAX: usize = 64;

/// A checked entry of `[[zones]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// The `zpkIndex` of the Card PIN API: it names the zone within its tenant.
    pub index: u32,
    /// The part that the boundary enforces.
    pub rules: ZoneRules,
}

/// An entry of `[[zones]]`, as written.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZoneFile {
    /// The zone: its key is `zone:NAME` of the key inventory.
    name: String,
    /// The tenant whose cards the zone may name.
    tenant: String,
    /// The `zpkIndex`, unique within the tenant.
    index: u32,
    /// The formats of its blocks: `iso-4` alone, or some of `iso-0`, `iso-1`, `iso-3`. The first is the format of a request
    /// that names none.
    #[serde(default = "iso_1")]
    formats: Vec<FormatFile>,
    /// Some of `set-pin`, `get-pin`, `verify`, `change`, `export`, `translate`.
    #[serde(default)]
    uses: Vec<UseFile>,
    /// The treatment of a 3DES key with a byte of even parity: `ignore`, `warn` or `reject`.
    #[serde(default)]
    parity: ParityFile,
}

fn iso_1() -> Vec<FormatFile> {
    vec![FormatFile::Iso1]
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum FormatFile {
    #[serde(rename = "iso-0")]
    Iso0,
    #[serde(rename = "iso-1")]
    Iso1,
    #[serde(rename = "iso-3")]
    Iso3,
    #[serde(rename = "iso-4")]
    Iso4,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum UseFile {
    SetPin,
    GetPin,
    Verify,
    Change,
    Export,
    Translate,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ParityFile {
    #[default]
    Ignore,
    Warn,
    Reject,
}

/// Checks the entries of a file.
///
/// # Errors
/// A value is out of range, two entries have one name, two zones of a tenant have one index, a list has an entry twice, the
/// formats need keys of two algorithms, or a use needs a format that the zone does not have.
pub fn check_zones(files: Vec<ZoneFile>) -> Result<Vec<Zone>, ConfigError> {
    within("zones", files.len(), 0..=ZONES_MAX)?;
    let zones = files.into_iter().map(ZoneFile::check).collect::<Result<Vec<_>, _>>()?;
    let (mut names, mut indexes) = (HashSet::new(), HashSet::new());
    for Zone { index, rules } in &zones {
        if !names.insert(&rules.name) {
            return Err(ConfigError::value(
                "zones.name",
                format!("{} has two entries: a key has one zone", rules.name),
            ));
        }
        let tenant = &rules.tenant;
        if !indexes.insert((tenant, index)) {
            let problem = format!("{index} is the index of two zones of the tenant {tenant}: give each zone its own");
            return Err(ConfigError::value("zones.index", problem));
        }
    }
    Ok(zones)
}

impl ZoneFile {
    fn check(self) -> Result<Zone, ConfigError> {
        let name = ZoneName::parse(&self.name)
            .ok_or_else(|| ConfigError::value("zones.name", "a name is 1 to 31 characters of a to z, 0 to 9 and -"))?;
        within("zones.tenant (bytes)", self.tenant.len(), 1..=TENANT_BYTES_MAX)?;
        within("zones.index", self.index, 0..=INDEX_MAX)?;
        let formats: Vec<_> = self.formats.iter().map(|format| format.checked()).collect();
        let uses: Vec<_> = self.uses.iter().map(|one| one.checked()).collect();
        let wrong = |key, problem: &str| Err(ConfigError::value(key, format!("zone {name}: {problem}")));
        if formats.is_empty() || has_twice(&formats) {
            return wrong("zones.formats", "name each format once, and at least one");
        }
        if formats.iter().any(|format| format.needs_aes() != formats.iter().all(|format| format.needs_aes())) {
            return wrong("zones.formats", "iso-4 needs an AES key, the others a 3DES key: configure two zones");
        }
        if has_twice(&uses) {
            return wrong("zones.uses", "name each use once");
        }
        if uses.contains(&ZoneUse::GetPin) && !formats.contains(&ZoneFormat::Iso1) {
            return wrong("zones.uses", "get-pin gives blocks of iso-1: add iso-1 to the formats, or use export");
        }
        if uses.contains(&ZoneUse::Export) && !formats.iter().any(|format| format.binds_account()) {
            return wrong("zones.uses", "export needs iso-0, iso-3 or iso-4: add one to the formats");
        }
        let parity = match self.parity {
            ParityFile::Ignore => ParityPolicy::Ignore,
            ParityFile::Warn => ParityPolicy::Warn,
            ParityFile::Reject => ParityPolicy::Reject,
        };
        Ok(Zone { index: self.index, rules: ZoneRules { name, tenant: self.tenant, formats, uses, parity } })
    }
}

fn has_twice<T: PartialEq>(list: &[T]) -> bool {
    list.iter().enumerate().any(|(at, one)| list.iter().take(at).any(|before| before == one))
}

impl FormatFile {
    fn checked(self) -> ZoneFormat {
        match self {
            Self::Iso0 => ZoneFormat::Iso0,
            Self::Iso1 => ZoneFormat::Iso1,
            Self::Iso3 => ZoneFormat::Iso3,
            Self::Iso4 => ZoneFormat::Iso4,
        }
    }
}

impl UseFile {
    fn checked(self) -> ZoneUse {
        match self {
            Self::SetPin => ZoneUse::SetPin,
            Self::GetPin => ZoneUse::GetPin,
            Self::Verify => ZoneUse::Verify,
            Self::Change => ZoneUse::Change,
            Self::Export => ZoneUse::Export,
            Self::Translate => ZoneUse::Translate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        zones: Vec<ZoneFile>,
    }

    fn checked(text: &str) -> Result<Vec<Zone>, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        check_zones(file.zones).map_err(|error| error.to_string())
    }

    fn zone(name: &str, tenant: &str, index: u32, more: &str) -> String {
        format!("[[zones]]\nname = \"{name}\"\ntenant = \"{tenant}\"\nindex = {index}\n{more}\n")
    }

    #[test]
    fn a_zone_has_format_1_and_no_use_by_default() {
        let zones = checked(&zone("app-bank", "bank", 0, "")).unwrap();
        let rules = ZoneRules {
            name: ZoneName::parse("app-bank").unwrap(),
            tenant: "bank".into(),
            formats: vec![ZoneFormat::Iso1],
            uses: Vec::new(),
            parity: ParityPolicy::Ignore,
        };
        assert_eq!(zones, [Zone { index: 0, rules }]);
        assert_eq!(checked(""), Ok(Vec::new()));
    }

    #[test]
    fn each_format_use_and_parity_is_read() {
        let more = "formats = [\"iso-3\", \"iso-0\", \"iso-1\"]\nparity = \"reject\"\n\
                    uses = [\"set-pin\", \"get-pin\", \"verify\", \"change\", \"export\", \"translate\"]";
        let rules = checked(&zone("bureau", "bank", 7, more)).unwrap().remove(0).rules;
        assert_eq!(rules.formats, [ZoneFormat::Iso3, ZoneFormat::Iso0, ZoneFormat::Iso1]);
        assert_eq!((&rules.uses[..], rules.parity), (&ZoneUse::ALL[..], ParityPolicy::Reject));
        let host = checked(&zone("host", "bank", 1, "formats = [\"iso-4\"]\nparity = \"warn\"")).unwrap().remove(0);
        assert_eq!((host.rules.formats, host.rules.parity), (vec![ZoneFormat::Iso4], ParityPolicy::Warn));
    }

    #[test]
    fn a_name_or_an_index_belongs_to_one_zone() {
        let two = |a: String, b: String| checked(&(a + &b));
        let refused = two(zone("a", "bank", 0, ""), zone("a", "bank", 1, "")).unwrap_err();
        assert!(refused.contains("a has two entries"), "{refused}");
        let refused = two(zone("a", "bank", 0, ""), zone("b", "bank", 0, "")).unwrap_err();
        assert!(refused.contains("0 is the index of two zones of the tenant bank"), "{refused}");
        assert!(two(zone("a", "bank", 0, ""), zone("b", "other", 0, "")).is_ok());
    }

    #[test]
    fn a_wrong_zone_is_refused_by_name() {
        for (more, named) in [
            ("formats = []", "name each format once"),
            ("formats = [\"iso-1\", \"iso-1\"]", "name each format once"),
            ("formats = [\"iso-1\", \"iso-4\"]", "configure two zones"),
            ("formats = [\"iso-4\", \"iso-0\"]", "configure two zones"),
            ("uses = [\"verify\", \"verify\"]", "name each use once"),
            ("formats = [\"iso-0\"]\nuses = [\"get-pin\"]", "add iso-1 to the formats"),
            ("uses = [\"export\"]", "export needs iso-0, iso-3 or iso-4"),
        ] {
            let refused = checked(&zone("a", "bank", 0, more)).unwrap_err();
            assert!(refused.contains("zone a: ") && refused.contains(named), "{more}: {refused}");
        }
        for wrong in [zone("A", "bank", 0, ""), zone("a", "", 0, ""), zone("a", "bank", 10_000, "")] {
            assert!(checked(&wrong).unwrap_err().starts_with("zones."), "{wrong}");
        }
        for unknown in ["formats = [\"iso-2\"]", "uses = [\"view\"]", "parity = \"odd\"", "key = \"0011\""] {
            assert!(checked(&zone("a", "bank", 0, unknown)).is_err(), "{unknown}");
        }
    }
}
