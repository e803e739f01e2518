//! The identity of a key: usage, version and KCV. It is what an engine compares before it trusts the keys it is offered.

use std::fmt;

use crate::binding::BoundaryLevel;
use crate::check_value::Kcv;
use crate::form::StorageFormat;
use crate::frame::{Crosses, Reader};
use crate::sealed::PinRecord;

/// A key of an engine. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyId {
    /// For example "storage", "storage-3des", "seal" or "account".
    pub usage: String,
    /// 1 to 65535; the highest of a usage encrypts.
    pub version: u16,
    /// Whether a newer version can replace this one while the engine keeps what this one encrypted.
    pub rotates: bool,
    /// The KCV, 3 bytes; none of a key in a token that may not encrypt.
    pub kcv: Option<Kcv>,
}

impl KeyId {
    /// Usage and version, for example `storage/1`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.usage, self.version)
    }

    /// Whether a record is under this key.
    pub fn encrypts(&self, record: &PinRecord) -> bool {
        self.version == record.storage_key().0 && self.usage == storage_usage(record.made_at().level, record.form())
    }

    /// The bytes of a list: of each key a u16 length and the usage in UTF-8, the version (2 bytes, big-endian), 1 byte
    /// whether it rotates, and the KCV after a byte that says whether there is one.
    pub fn list_to_bytes(keys: &[Self]) -> Vec<u8> {
        let mut bytes = Vec::new();
        keys.iter().for_each(|key| key.write(&mut bytes));
        bytes
    }

    /// Reads what [`KeyId::list_to_bytes`] wrote; none where it is anything else.
    pub fn list_from_bytes(bytes: &[u8]) -> Option<Vec<Self>> {
        let (mut read, mut keys) = (Reader(bytes), Vec::new());
        while !read.0.is_empty() {
            keys.push(Self::read(&mut read).ok()?);
        }
        Some(keys)
    }

    /// A list for people, for example `storage/1:8CA64D seal/1:51BB20`.
    pub fn list_to_text(keys: &[Self]) -> String {
        keys.iter().map(Self::to_string).collect::<Vec<_>>().join(" ")
    }
}

/// The usage of the storage key of a form, at a level.
pub fn storage_usage(level: BoundaryLevel, form: StorageFormat) -> &'static str {
    match (level, form) {
        (BoundaryLevel::Host, StorageFormat::Wrapped | StorageFormat::Iso4) => "storage",
        (BoundaryLevel::Host, StorageFormat::Iso3 | StorageFormat::Iso0) => "storage-3des",
        (BoundaryLevel::Token, StorageFormat::Wrapped) => "storage-wrapped",
        (BoundaryLevel::Token, StorageFormat::Iso4) => "storage-iso-4",
        (BoundaryLevel::Token, StorageFormat::Iso3 | StorageFormat::Iso0) => "storage-iso-3",
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.usage, self.version)?;
        self.kcv.map_or(Ok(()), |kcv| write!(f, ":{kcv}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_back_and_a_cut_one_is_refused() {
        let key = |usage: &str, rotates, kcv| KeyId { usage: usage.into(), version: 258, rotates, kcv };
        let keys = [key("storage", true, Some(Kcv::first_of(&[1, 2, 3]))), key("account", false, None)];
        let bytes = KeyId::list_to_bytes(&keys);
        assert_eq!(KeyId::list_from_bytes(&bytes).unwrap(), keys);
        assert_eq!(KeyId::list_from_bytes(&[]).unwrap(), []);
        let first = KeyId::list_to_bytes(&keys[..1]).len();
        for cut in (1..bytes.len()).filter(|cut| *cut != first) {
            assert!(KeyId::list_from_bytes(&bytes[..cut]).is_none(), "cut at {cut}");
        }
        assert_eq!(KeyId::list_to_text(&keys), "storage/258:010203 account/258");
    }
}
