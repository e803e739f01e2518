//! The rule for a change of keys: the new keys must open all data that the former keys encrypted. A reload and a start on a
//! used store follow the same rule.

use hsm_protocol::{Kcv, KeyId};
use thiserror::Error;

/// Checks that an engine may use the keys `now` after it used the keys `before`.
///
/// A key in both lists has the same KCV. The newest version of each usage is still present; an older version may be missing,
/// because a retired key has no data under it. A usage that rotates may have additional versions.
///
/// # Errors
/// [`KeyMismatch`] with the first key that breaks the rule.
pub fn succeeds(before: &[KeyId], now: &[KeyId]) -> Result<(), KeyMismatch> {
    let has_version = |keys: &[KeyId], wanted: &KeyId| keys.iter().any(|key| is_version(key, wanted));
    agrees(before, now)?;
    let is_newest = |used: &KeyId| !before.iter().any(|key| key.usage == used.usage && key.version > used.version);
    if let Some(missing) = before.iter().find(|used| is_newest(used) && !has_version(now, used)) {
        return Err(KeyMismatch::Missing { key: missing.clone() });
    }
    let known = |key: &KeyId| {
        let rotated = key.usage.rotates() && before.iter().any(|used| used.usage == key.usage);
        rotated || has_version(before, key)
    };
    let unknown = now.iter().find(|key| !known(key));
    unknown.map_or(Ok(()), |key| Err(KeyMismatch::Unknown { key: key.clone() }))
}

/// Checks that two engines may use one store: a key in both lists has the same KCV.
///
/// # Errors
/// [`KeyMismatch::Other`] with the first key that differs.
pub fn agrees(other: &[KeyId], own: &[KeyId]) -> Result<(), KeyMismatch> {
    for used in other {
        if let Some(found) = own.iter().find(|key| is_version(key, used) && **key != *used) {
            return Err(KeyMismatch::Other { key: used.reference(), used: used.kcv, found: found.kcv });
        }
    }
    Ok(())
}

fn is_version(key: &KeyId, wanted: &KeyId) -> bool {
    key.usage == wanted.usage && key.version == wanted.version
}

/// A key that breaks the rule of [`succeeds`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyMismatch {
    /// A key that is still needed is missing.
    #[error("the key {key} was used last and is not there")]
    Missing {
        /// The missing key.
        key: KeyId,
    },
    /// Another key has the usage and version of a used key.
    #[error("the key {key} was used last with KCV {}, and has KCV {}", kcv_text(.used), kcv_text(.found))]
    Other {
        /// For example "storage/1".
        key: String,
        /// The KCV of the used key; none for a token key that may not encrypt.
        used: Option<Kcv>,
        /// The KCV of the present key.
        found: Option<Kcv>,
    },
    /// A key was not used before, and is not another version of a usage that rotates.
    #[error("the key {key} was not used before")]
    Unknown {
        /// The unexpected key.
        key: KeyId,
    },
}

fn kcv_text(kcv: &Option<Kcv>) -> String {
    kcv.map_or_else(|| "none".to_owned(), |kcv| kcv.to_string())
}

#[cfg(test)]
mod tests {
    use hsm_protocol::{KeyUsage, KeyVersion};

    use super::*;

    /// Parses a key such as `storage/1:AABBCC`. A token key that may not encrypt has no KCV.
    fn key(text: &str) -> KeyId {
        let (reference, kcv) = text.split_once(':').unwrap_or((text, ""));
        let (usage, version) = reference.split_once('/').unwrap();
        let kcv_of = |kcv: &str| {
            let [_, bytes @ ..] = u32::from_str_radix(kcv, 16).unwrap().to_be_bytes();
            Kcv::from_bytes(bytes)
        };
        KeyId {
            usage: KeyUsage::parse(usage).unwrap(),
            version: KeyVersion(version.parse().unwrap()),
            kcv: (!kcv.is_empty()).then(|| kcv_of(kcv)),
        }
    }

    const BEFORE: &[&str] =
        &["storage/2:BBBBBB", "storage/1:AAAAAA", "storage-3des/1:DDDDDD", "seal/1", "account/1:CCCCCC"];

    fn succession(removed: &[&str], added: &[&str]) -> Result<(), KeyMismatch> {
        let keys = |all: &[&str]| all.iter().map(|text| key(text)).collect::<Vec<_>>();
        let mut now: Vec<_> = BEFORE.iter().copied().filter(|text| !removed.contains(text)).collect();
        now.extend(added);
        succeeds(&keys(BEFORE), &keys(&now))
    }

    #[test]
    fn same_keys_fewer_old_and_additional_versions_succeed() {
        for (removed, added) in [
            (&[][..], &[][..]),
            (&["storage/1:AAAAAA"], &[]),
            (&[], &["storage/3:EEEEEE", "seal/2"]),
            (&["storage/1:AAAAAA"], &["storage/3:EEEEEE", "storage/4:FFFFFF"]),
        ] {
            assert_eq!(succession(removed, added), Ok(()), "-{removed:?} +{added:?}");
        }
    }

    #[test]
    fn a_different_key_or_a_missing_newest_key_is_named() {
        for (removed, added, message) in [
            (&["storage/2:BBBBBB"][..], &[][..], "the key storage/2:BBBBBB was used last and is not there"),
            (
                &["storage/2:BBBBBB"],
                &["storage/2:EEEEEE"],
                "the key storage/2 was used last with KCV BBBBBB, and has KCV EEEEEE",
            ),
            (&["storage/2:BBBBBB"], &["storage/3:EEEEEE"], "the key storage/2:BBBBBB was used last and is not there"),
            (
                &["storage/1:AAAAAA"],
                &["storage/1:EEEEEE"],
                "the key storage/1 was used last with KCV AAAAAA, and has KCV EEEEEE",
            ),
            (&["seal/1"], &[], "the key seal/1 was used last and is not there"),
            (&["seal/1"], &["seal/1:EEEEEE"], "the key seal/1 was used last with KCV none, and has KCV EEEEEE"),
            (&[], &["account/2:EEEEEE"], "the key account/2:EEEEEE was not used before"),
            (&[], &["storage-wrapped/1"], "the key storage-wrapped/1 was not used before"),
            (BEFORE, &[], "the key storage/2:BBBBBB was used last and is not there"),
        ] {
            assert_eq!(succession(removed, added).unwrap_err().to_string(), message);
        }
    }
}
