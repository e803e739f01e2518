//! Keys of one use in every version that is in use: the newest makes, each opens what it made.
//!
//! What is clear comes here in a box: a move leaves a copy behind, where no drop wipes it, and of a box only a pointer.

use crate::sealed::KeyVersion;

/// One key at least.
pub(crate) struct Versioned<T> {
    newest: (KeyVersion, T),
    older: Vec<(KeyVersion, T)>,
}

impl<T> Versioned<T> {
    /// Of all versions, in any order; none where there is no key.
    pub(crate) fn of(mut all: Vec<(KeyVersion, T)>) -> Option<Self> {
        all.sort_by_key(|(KeyVersion(version), _)| *version);
        let newest = all.pop()?;
        Some(Self { newest, older: all })
    }

    /// The version that makes.
    pub(crate) fn version(&self) -> KeyVersion {
        self.newest.0
    }

    /// The key that makes.
    pub(crate) fn newest(&self) -> &T {
        &self.newest.1
    }

    /// The key of a version.
    pub(crate) fn get(&self, version: KeyVersion) -> Option<&T> {
        if self.newest.0 == version {
            return Some(&self.newest.1);
        }
        self.older.iter().find(|(older, _)| *older == version).map(|(_, key)| key)
    }

    /// All of them, the newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (KeyVersion, &T)> {
        let older = self.older.iter().rev().map(|(version, key)| (*version, key));
        std::iter::once((self.newest.0, &self.newest.1)).chain(older)
    }

    /// Each prepared for its use.
    pub(crate) fn prepared<U, E>(&self, prepare: impl Fn(&T) -> Result<U, E>) -> Result<Versioned<U>, E> {
        // As long as it will be: a vector that grows leaves key schedules behind.
        let mut older = Vec::with_capacity(self.older.len());
        for (version, key) in &self.older {
            older.push((*version, prepare(key)?));
        }
        Ok(Versioned { newest: (self.newest.0, prepare(&self.newest.1)?), older })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clear::Clear;

    #[test]
    fn a_clear_key_stays_where_it_was_filled_and_the_newest_makes() {
        let place = |key: &Clear<32>| std::ptr::from_ref(key.bytes()).addr();
        let keys: Vec<_> = [2, 3, 1].map(|version| (KeyVersion(version), Box::new(Clear::<32>::zeroed()))).into();
        let filled: Vec<_> = keys.iter().map(|(version, key)| (*version, place(key))).collect();
        let versioned = Versioned::of(keys).unwrap();
        for (version, at) in filled {
            assert_eq!(versioned.get(version).map(|key| place(key)), Some(at));
        }
        assert_eq!(versioned.version(), KeyVersion(3));
        let all: Vec<_> = versioned.iter().map(|(KeyVersion(version), _)| version).collect();
        assert_eq!(all, [3, 2, 1]);
    }
}
