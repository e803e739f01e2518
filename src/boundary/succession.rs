//! Which boundary may take another's place: one that opens whatever the other made and may still be there.

/// Whether a boundary with the keys of `now` may follow on one with those of `before`, each such as `storage/1:8CA64D`.
/// Newer versions may have come, put into use by a ceremony; an older one may be gone, retired with nothing under it. The
/// newest is there still, and every key is the one it was.
pub(super) fn takes_over(before: &[String], now: &[String]) -> bool {
    let newest = |keys: &[String], name: &str| keys.iter().filter_map(|key| version_of(key, name)).max();
    let stays = before.iter().all(|key| {
        let is_newest = name_of(key).is_some_and(|name| version_of(key, name) == newest(before, name));
        !is_newest || now.contains(key)
    });
    let known_or_newer = |key: &String| {
        let Some(name) = name_of(key) else { return false };
        let came = newest(before, name).is_some_and(|before| version_of(key, name) > Some(before));
        before.contains(key) || (came && rotates(name))
    };
    stays && !now.is_empty() && now.iter().all(known_or_newer)
}

/// Of what the others made nothing is made anew: they have one version.
fn rotates(name: &str) -> bool {
    name.starts_with("storage") || name.starts_with("seal")
}

fn name_of(key: &str) -> Option<&str> {
    key.split_once('/').map(|(name, _)| name)
}

fn version_of(key: &str, name: &str) -> Option<u16> {
    let version = key.strip_prefix(name)?.strip_prefix('/')?;
    version.split(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(all: &[&str]) -> Vec<String> {
        all.iter().map(|key| (*key).to_owned()).collect()
    }

    /// A key without a check value is one in a token that may not encrypt there.
    const BEFORE: &[&str] = &["storage/2:BB", "storage/1:AA", "storage-3des/1:DD", "seal/1", "account/1:CC"];

    fn changed(out: &[&str], r#in: &[&str]) -> Vec<String> {
        let mut now = keys(BEFORE);
        now.retain(|key| !out.contains(&key.as_str()));
        now.extend(keys(r#in));
        now
    }

    #[test]
    fn a_boundary_takes_over_with_the_same_keys_without_an_older_one_and_with_newer_ones() {
        for (out, r#in) in [
            (&[][..], &[][..]),
            (&["storage/1:AA"], &[]),
            (&[], &["storage/3:EE", "seal/2"]),
            (&["storage/1:AA"], &["storage/3:EE", "storage/4:FF"]),
        ] {
            assert!(takes_over(&keys(BEFORE), &changed(out, r#in)), "-{out:?} +{in:?}");
        }
    }

    #[test]
    fn a_boundary_with_another_key_or_without_the_newest_does_not_take_over() {
        for (out, r#in) in [
            (&["storage/2:BB"][..], &[][..]),
            (&["storage/2:BB"], &["storage/2:EE"]),
            (&["storage/2:BB"], &["storage/3:EE"]),
            (&["storage/1:AA"], &["storage/1:EE"]),
            (&["seal/1"], &[]),
            (&[], &["account/2:EE"]),
            (&[], &["storage-wrapped/1"]),
            (BEFORE, &[]),
        ] {
            assert!(!takes_over(&keys(BEFORE), &changed(out, r#in)), "-{out:?} +{in:?}");
        }
    }
}
