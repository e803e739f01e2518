//! The rules that a report cites.

use hsm::{KeyUsage, Place, StorageFormat, Translation, ZoneFormat, ZoneUse};
use serde::Serialize;

/// A rule: a clause of a standard, or a section of the documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Rule {
    /// A format 1 block gets the account number of its card.
    FormatOneIsBound,
    /// A bound block keeps its account number.
    SameAccount,
    /// A cardholder views the PIN.
    CardholderView,
    /// A party gets the PIN in format 1.
    PinGivenToZone,
    /// A party sets a PIN that it knows.
    PinSetByZone,
    /// A party verifies PINs.
    PinVerified,
    /// A party that proves the old PIN sets a new one.
    PinChanged,
    /// A PIN that can be verified only.
    OneWayRecord,
    /// A block that the token alone decrypts.
    WrappedRecord,
    /// Records under AES.
    StorageUnderAes,
    /// Records under 3DES, until a date.
    StorageUnderTdes,
    /// The digits of a PIN.
    PinLength,
    /// The number of tries.
    PinTries,
    /// A key has one usage.
    OneUsage,
    /// The cipher of a PIN block.
    CipherOfFormat,
    /// The algorithm of a verification value.
    VerificationValue,
    /// A key travels under one of at least its strength.
    KeyStrength,
    /// The key of a device, and its form of RSA-OAEP.
    DeviceKey,
    /// MGF1-SHA-1, until a date.
    OaepMgf1Sha1,
    /// The methods of a role.
    Roles,
    /// An engine without TLS.
    Loopback,
}

impl Rule {
    /// Every rule, in the order of the report.
    pub(super) const ALL: [Self; 21] = [
        Self::FormatOneIsBound,
        Self::SameAccount,
        Self::CardholderView,
        Self::PinGivenToZone,
        Self::PinSetByZone,
        Self::PinVerified,
        Self::PinChanged,
        Self::OneWayRecord,
        Self::WrappedRecord,
        Self::StorageUnderAes,
        Self::StorageUnderTdes,
        Self::PinLength,
        Self::PinTries,
        Self::OneUsage,
        Self::CipherOfFormat,
        Self::VerificationValue,
        Self::KeyStrength,
        Self::DeviceKey,
        Self::OaepMgf1Sha1,
        Self::Roles,
        Self::Loopback,
    ];

    /// The name in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FormatOneIsBound => "format-one-is-bound",
            Self::SameAccount => "same-account",
            Self::CardholderView => "cardholder-view",
            Self::PinGivenToZone => "pin-given-to-zone",
            Self::PinSetByZone => "pin-set-by-zone",
            Self::PinVerified => "pin-verified",
            Self::PinChanged => "pin-changed",
            Self::OneWayRecord => "one-way-record",
            Self::WrappedRecord => "wrapped-record",
            Self::StorageUnderAes => "storage-under-aes",
            Self::StorageUnderTdes => "storage-under-tdes",
            Self::PinLength => "pin-length",
            Self::PinTries => "pin-tries",
            Self::OneUsage => "one-usage",
            Self::CipherOfFormat => "cipher-of-format",
            Self::VerificationValue => "verification-value",
            Self::KeyStrength => "key-strength",
            Self::DeviceKey => "device-key",
            Self::OaepMgf1Sha1 => "oaep-mgf1-sha1",
            Self::Roles => "roles",
            Self::Loopback => "loopback",
        }
    }

    /// The clause of a standard, or the document with its section.
    pub(super) fn source(self) -> &'static str {
        match self {
            Self::FormatOneIsBound | Self::SameAccount => "PCI PIN Security, requirement 3-3",
            Self::CardholderView => "SECURITY.md, \"View under PCI's translation table\" (judged)",
            Self::PinGivenToZone => "SECURITY.md, \"A PIN given to a zone\" (judged)",
            Self::PinSetByZone => "Card PIN API, pre-shared key; docs/pre-shared-key.md",
            Self::PinVerified => "proto/pinseal/v1/pin.proto, VerifyPin",
            Self::PinChanged => "proto/pinseal/v1/pin.proto, ChangePin",
            Self::OneWayRecord => "SECURITY.md, \"What one-way storage promises\"",
            Self::WrappedRecord => "docs/decisions/0003-stored-pin-block.md; RFC 5649",
            Self::StorageUnderAes => "NIST SP 800-131A; docs/decisions/0003-stored-pin-block.md",
            Self::StorageUnderTdes => "NIST SP 800-131A and SP 800-67; examples/engine.toml, form_until",
            Self::PinLength => "ISO 9564-1, 8.1",
            Self::PinTries => "examples/engine.toml, [verification]",
            Self::OneUsage => "PCI PIN Security, requirement 19",
            Self::CipherOfFormat => "ISO 9564-1, formats 0, 1, 3 and 4",
            Self::VerificationValue => "Visa PVV; IBM 3624; docs/ceremony.md",
            Self::KeyStrength => "PCI PIN Security, annex C; NIST SP 800-57 part 1, table 2; ANSI X9.143",
            Self::DeviceKey => "Card PIN API, set/tzpk; RFC 8017, 7.1",
            Self::OaepMgf1Sha1 => "README.md, \"Old Android devices\"",
            Self::Roles => "README.md, \"Running edge and engine\"",
            Self::Loopback => "README.md, \"Running edge and engine\"",
        }
    }

    /// The rule in a sentence.
    pub(super) fn statement(self) -> &'static str {
        match self {
            Self::FormatOneIsBound => {
                "A format 1 block becomes a block of format 0, 3 or 4, with the account number of its card."
            }
            Self::SameAccount => {
                "A block of format 0, 3 or 4 becomes another of these formats with the same account number only."
            }
            Self::CardholderView => {
                "A stored PIN becomes a format 1 block for its cardholder's device, under a one-time key. The requirement \
                 names no such translation; the assessor decides."
            }
            Self::PinGivenToZone => {
                "A stored PIN becomes a format 1 block for a party that then knows the PIN. The requirement names no such \
                 translation; the capability is off by default, and the assessor decides."
            }
            Self::PinSetByZone => "A party that knows the PIN sets it. The capability is off by default.",
            Self::PinVerified => {
                "A party has PINs compared. Each comparison uses one of the card's tries, which is on disk before it."
            }
            Self::PinChanged => {
                "A party that proves the old PIN sets the new one, both in blocks of its own zone. Each proof uses a try, as a \
                 verification does."
            }
            Self::OneWayRecord => {
                "A record that is a salted CMAC of the PIN is compared only: no view, no export, no re-encryption."
            }
            Self::WrappedRecord => {
                "At level token the record is the device's block, wrapped inside the token under a key of its account."
            }
            Self::StorageUnderAes => "Records are under AES-256; NIST disallows 3DES encryption after 2023.",
            Self::StorageUnderTdes => {
                "Records under 3DES are an exception with an end date, and end at 2^20 blocks of a key."
            }
            Self::PinLength => {
                "A PIN has 4 to 12 digits; the operator narrows the range and refuses PINs that are easy to guess."
            }
            Self::PinTries => "A wrong PIN uses a try; without tries left the PIN is locked.",
            Self::OneUsage => "A key has one usage, and no key of one usage is used for another.",
            Self::CipherOfFormat => "Format 4 is under AES, formats 0, 1 and 3 are under 3DES.",
            Self::VerificationValue => "The algorithm is defined with a 3DES key of 16 bytes.",
            Self::KeyStrength => {
                "A key leaves or enters under a key of at least its strength, in an ANSI X9.143 key block. Versions D and \
                 E are written; a 3DES key in a vault only unwraps versions A, B and C."
            }
            Self::DeviceKey => "A tzpk goes to a device under RSA-OAEP with SHA-256 and a key of 2048 to 4096 bits.",
            Self::OaepMgf1Sha1 => "A client's devices get MGF1-SHA-1 until the last day that the configuration names.",
            Self::Roles => "A certificate may call the methods of its roles, for its tenants.",
            Self::Loopback => "An engine without [[peers]] listens on loopback, where each process has every right.",
        }
    }

    /// The rule of a translation; `None` for a pair of places that has none.
    pub(super) fn of_translation(translation: &Translation) -> Option<Self> {
        use Place::{Device, Record, Zone};
        Some(match (translation.source, translation.target) {
            (_, Record(StorageFormat::OneWay)) => Self::OneWayRecord,
            (Device | Zone(_), Record(StorageFormat::Wrapped)) => Self::WrappedRecord,
            (Device | Zone(ZoneFormat::Iso1), Record(_)) => Self::FormatOneIsBound,
            (Record(_), Device) => Self::CardholderView,
            (Record(_), Zone(ZoneFormat::Iso1)) => Self::PinGivenToZone,
            (Zone(ZoneFormat::Iso1), Zone(format)) if format.binds_account() => Self::FormatOneIsBound,
            (Record(_), Record(_)) | (Zone(_), Record(_)) => Self::SameAccount,
            (Record(_) | Zone(_), Zone(format)) if format.binds_account() => Self::SameAccount,
            (Device, Device | Zone(_)) | (Zone(_), Device | Zone(_)) | (Record(_), Zone(_)) => return None,
        })
    }

    /// The rule of the format of new records.
    pub(super) fn of_record(format: StorageFormat) -> Self {
        match format {
            StorageFormat::Wrapped => Self::WrappedRecord,
            StorageFormat::Iso4 => Self::StorageUnderAes,
            StorageFormat::Iso3 | StorageFormat::Iso0 => Self::StorageUnderTdes,
            StorageFormat::OneWay => Self::OneWayRecord,
        }
    }

    /// The rule of the algorithms of a key.
    pub(super) fn of_key(usage: &KeyUsage) -> Self {
        match usage {
            KeyUsage::Storage | KeyUsage::StorageIso4 => Self::StorageUnderAes,
            KeyUsage::StorageWrapped => Self::WrappedRecord,
            KeyUsage::StorageOneWay => Self::OneWayRecord,
            KeyUsage::StorageTdes | KeyUsage::StorageIso3 => Self::StorageUnderTdes,
            KeyUsage::Zone(_) => Self::CipherOfFormat,
            KeyUsage::Exchange(_) => Self::KeyStrength,
            KeyUsage::Pvk(_) | KeyUsage::Ibm3624(_) => Self::VerificationValue,
            KeyUsage::Seal
            | KeyUsage::SealEncrypting
            | KeyUsage::Account
            | KeyUsage::Record
            | KeyUsage::Retry
            | KeyUsage::Mac => Self::OneUsage,
        }
    }

    /// The rule of a zone's use.
    pub(super) fn of_use(zone_use: ZoneUse) -> Self {
        match zone_use {
            ZoneUse::SetPin => Self::PinSetByZone,
            ZoneUse::GetPin => Self::PinGivenToZone,
            ZoneUse::Verify => Self::PinVerified,
            ZoneUse::Change => Self::PinChanged,
            ZoneUse::Export | ZoneUse::Translate => Self::SameAccount,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_translation_has_a_rule() {
        for translation in hsm::TRANSLATIONS {
            assert!(Rule::of_translation(translation).is_some(), "{translation:?}");
        }
        let pair = |source, target| Translation { source, target, level: hsm::BoundaryLevel::Host };
        let illegal = pair(Place::Zone(ZoneFormat::Iso0), Place::Zone(ZoneFormat::Iso1));
        assert_eq!(Rule::of_translation(&illegal), None);
        assert_eq!(Rule::of_translation(&pair(Place::Device, Place::Device)), None);
    }

    #[test]
    fn each_rule_is_listed_once_under_its_name() {
        for (at, rule) in Rule::ALL.into_iter().enumerate() {
            assert_eq!(serde_json::to_value(rule).unwrap(), rule.name());
            assert!(!Rule::ALL[..at].contains(&rule) && !rule.statement().is_empty(), "{rule:?}");
        }
    }
}
