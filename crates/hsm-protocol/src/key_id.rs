//! The identity of a key: usage, version and KCV. An engine compares them with its stored list before it uses the keys of a
//! boundary.

use std::fmt;

use crate::kcv::Kcv;
use crate::key_usage::KeyUsage;
use crate::sealed::{KeyVersion, PinRecord};

/// A key of an engine. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyId {
    /// The usage of the key.
    pub usage: KeyUsage,
    /// The version. The highest version of a usage encrypts.
    pub version: KeyVersion,
    /// The KCV; `None` for a key in a token that may not encrypt.
    pub kcv: Option<Kcv>,
}

impl KeyId {
    /// Usage and version, for example `storage/1`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.usage, self.version.0)
    }

    /// Whether a record is encrypted under this key.
    pub fn encrypts(&self, record: &PinRecord) -> bool {
        self.version == record.storage_key()
            && self.usage == KeyUsage::storage_of(record.made_at().level, record.form())
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
    fn a_list_of_keys_reads_as_text() {
        let key = |usage, kcv| KeyId { usage, version: KeyVersion(258), kcv };
        let keys = [key(KeyUsage::Storage, Some(Kcv::first_of(&[1, 2, 3]))), key(KeyUsage::Account, None)];
        assert_eq!(KeyId::list_to_text(&keys), "storage/258:010203 account/258");
    }
}
