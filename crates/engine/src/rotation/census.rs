//! Counts the PIN records of a store by kind, page by page.

use std::collections::{BTreeMap, BTreeSet};

use crate::pin::{Pins, RecordKind};
use domain::card::CardKey;
use store::StoreError;

/// The number of cards that one read of the store returns.
const PAGE_CARDS: usize = 256;
/// The number of audit entries that one read of the store returns.
const PAGE_ENTRIES: usize = 1_024;

/// The counts so far. The caller yields to other tasks between two pages.
#[derive(Clone, Default)]
pub struct Census {
    after: Option<CardKey>,
    /// There are few kinds: format, level and key version.
    counts: Vec<(RecordKind, u64)>,
    unreadable: u64,
}

/// What needs an older key besides records: live controls, and other engines that started on this store.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeyUsers {
    /// The number of live controls with a tzpk, by the version of the seal key.
    pub sealed: BTreeMap<u16, u64>,
    /// Live controls with a tzpk of an unknown format.
    pub unreadable: u64,
    /// The names of the engines that started on this store, from the audit chain.
    pub engines: BTreeSet<String>,
}

impl KeyUsers {
    /// Scans the live controls and the whole audit chain. Other tasks run between two pages.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn find(pins: &Pins) -> Result<Self, StoreError> {
        let mut users = Self::default();
        for version in pins.live_seal_versions().await? {
            match version {
                Some(version) => *users.sealed.entry(version).or_default() += 1,
                None => users.unreadable += 1,
            }
        }
        let mut next = Some(1);
        while let Some(from) = next {
            let (names, after) = pins.started_engines(from, PAGE_ENTRIES).await?;
            users.engines.extend(names);
            next = after;
            tokio::task::yield_now().await;
        }
        Ok(users)
    }
}

impl Census {
    /// Counts the records of the next cards. Returns false after the last card.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn count_page(&mut self, pins: &Pins) -> Result<bool, StoreError> {
        let page = pins.kinds_page(self.after.as_ref(), PAGE_CARDS).await?;
        page.kinds.into_iter().for_each(|kind| self.count(kind));
        self.after = page.last.or(self.after);
        Ok(page.last.is_some())
    }

    /// The number of all records.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|(_, records)| records).sum::<u64>().saturating_add(self.unreadable)
    }

    /// The number of records of each kind.
    pub fn counts(&self) -> &[(RecordKind, u64)] {
        &self.counts
    }

    /// The number of records of an unknown format.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    fn count(&mut self, kind: Option<RecordKind>) {
        let Some(kind) = kind else { return self.unreadable += 1 };
        match self.counts.iter_mut().find(|(counted, _)| *counted == kind) {
            Some((_, records)) => *records += 1,
            None => self.counts.push((kind, 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_by_format_level_and_key() {
        let kind = |form, level, storage_key_version| RecordKind { form, level, storage_key_version };
        let first = kind(hsm_protocol::StorageFormat::Iso4, hsm_protocol::BoundaryLevel::Host, 1);
        let others = [
            kind(hsm_protocol::StorageFormat::Iso4, hsm_protocol::BoundaryLevel::Host, 2),
            kind(hsm_protocol::StorageFormat::Iso4, hsm_protocol::BoundaryLevel::Token, 1),
            kind(hsm_protocol::StorageFormat::Iso3, hsm_protocol::BoundaryLevel::Host, 1),
        ];
        let mut census = Census::default();
        others.into_iter().chain([first, first]).for_each(|kind| census.count(Some(kind)));
        census.count(None);
        assert_eq!(census.counts().len(), 4);
        assert!(census.counts().contains(&(first, 2)));
        assert_eq!((census.total(), census.unreadable()), (6, 1));
    }
}
