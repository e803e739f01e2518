//! The identity of a key: usage, version and KCV. It is what an engine compares before it trusts the keys it is offered.

use std::fmt;

use crate::frame::{Crosses, Reader};
use crate::kcv::Kcv;
use crate::key_usage::KeyUsage;
use crate::sealed::{KeyVersion, PinRecord};

/// A key of an engine. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyId {
    /// The one use of the key.
    pub usage: KeyUsage,
    /// The highest version of a usage encrypts.
    pub version: KeyVersion,
    /// The KCV; `None` for a key in a token that may not encrypt.
    pub kcv: Option<Kcv>,
}

impl KeyId {
    /// Usage and version, for example `storage/1`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.usage, self.version.0)
    }

    /// Whether a record is under this key.
    pub fn encrypts(&self, record: &PinRecord) -> bool {
        self.version == record.storage_key()
            && self.usage == KeyUsage::storage_of(record.made_at().level, record.form())
    }

    /// The bytes of a list: of each key a u16 length and the usage in UTF-8, the version (2 bytes, big-endian),
    /// and the KCV after a byte that says whether there is one.
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

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.usage, self.version.0)?;
        self.kcv.map_or(Ok(()), |kcv| write!(f, ":{kcv}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_back_and_a_cut_one_is_refused() {
        let key = |usage, kcv| KeyId { usage, version: KeyVersion(258), kcv };
        let keys = [key(KeyUsage::Storage, Some(Kcv::first_of(&[1, 2, 3]))), key(KeyUsage::Account, None)];
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
