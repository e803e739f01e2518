//! Which keys may follow those used before: those that open whatever the others encrypted and may still be there. One rule
//! for a reload of a running engine and for a start on a store that was used.

use hsm_protocol::{Kcv, KeyId};
use thiserror::Error;

/// Checks that an engine may go on with the keys `now` after it used those of `before`.
///
/// Every key that is in both is the same. The newest of each usage is there still: an older one may be gone, retired with
/// nothing under it. Of a usage that rotates other versions may have come.
///
/// # Errors
/// The first key that does not fit.
pub fn succeeds(before: &[KeyId], now: &[KeyId]) -> Result<(), KeyMismatch> {
    let same = |keys: &[KeyId], wanted: &KeyId| keys.iter().find(|key| is_version(key, wanted)).cloned();
    for used in before {
        match same(now, used) {
            Some(found) if found == *used => {}
            Some(found) => {
                return Err(KeyMismatch::Other { key: used.reference(), used: used.kcv, found: found.kcv });
            }
            None if before.iter().any(|key| key.usage == used.usage && key.version > used.version) => {}
            None => return Err(KeyMismatch::Missing { key: used.clone() }),
        }
    }
    let known = |key: &KeyId| {
        let rotated = key.usage.rotates() && before.iter().any(|used| used.usage == key.usage);
        rotated || same(before, key).is_some()
    };
    let unknown = now.iter().find(|key| !known(key));
    unknown.map_or(Ok(()), |key| Err(KeyMismatch::Unknown { key: key.clone() }))
}

fn is_version(key: &KeyId, wanted: &KeyId) -> bool {
    key.usage == wanted.usage && key.version == wanted.version
}

/// Why keys may not follow those used before.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyMismatch {
    /// It is needed, and not there.
    #[error("the key {key} was used last and is not there")]
    Missing {
        /// The key that was used.
        key: KeyId,
    },
    /// It is another key of the same name.
    #[error("the key {key} was used last with KCV {}, and has KCV {}", kcv_text(.used), kcv_text(.found))]
    Other {
        /// For example "storage/1".
        key: String,
        /// The KCV of the key that was used; none where its token tells none.
        used: Option<Kcv>,
        /// The KCV of the key that is there.
        found: Option<Kcv>,
    },
    /// It was not used, and is no other version of one that was and rotates.
    #[error("the key {key} was not used before")]
    Unknown {
        /// The key that is there.
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

    /// A key such as `storage/1:AABBCC`. One without a KCV is in a token, where it may not encrypt.
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

    fn after(out: &[&str], r#in: &[&str]) -> Result<(), KeyMismatch> {
        let keys = |all: &[&str]| all.iter().map(|text| key(text)).collect::<Vec<_>>();
        let mut now: Vec<_> = BEFORE.iter().copied().filter(|text| !out.contains(text)).collect();
        now.extend(r#in);
        succeeds(&keys(BEFORE), &keys(&now))
    }

    #[test]
    fn the_same_keys_fewer_old_ones_and_other_versions_follow() {
        for (out, r#in) in [
            (&[][..], &[][..]),
            (&["storage/1:AAAAAA"], &[]),
            (&[], &["storage/3:EEEEEE", "seal/2"]),
            (&["storage/1:AAAAAA"], &["storage/3:EEEEEE", "storage/4:FFFFFF"]),
        ] {
            assert_eq!(after(out, r#in), Ok(()), "-{out:?} +{in:?}");
        }
    }

    #[test]
    fn another_key_or_a_missing_newest_is_named() {
        for (out, r#in, message) in [
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
            assert_eq!(after(out, r#in).unwrap_err().to_string(), message);
        }
    }
}
