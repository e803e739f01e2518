//! The PIN records of a store, counted by what they are. A walk of pages: whoever walks lets others run in between.

use std::collections::{BTreeMap, BTreeSet};

use crate::pin::{Pins, RecordKind};
use domain::card::CardKey;
use store::StoreError;

/// How many cards are read at a time.
const PAGE_CARDS: usize = 256;
/// How many audit entries are read at a time.
const PAGE_ENTRIES: usize = 1_024;

/// Counts, as far as the walk has come.
#[derive(Clone, Default)]
pub struct Census {
    after: Option<CardKey>,
    /// There are few kinds: forms, levels, and the versions of a key in use.
    counts: Vec<(RecordKind, u64)>,
    unreadable: u64,
}

/// What else needs an older key: live controls by the version of the seal key, and the engines in the audit chain.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// How many live controls have a tzpk under each version of the seal key.
    pub sealed: BTreeMap<u16, u64>,
    /// Live controls with a tzpk that this release can't read.
    pub unreadable: u64,
    /// Each engine that started on this store, by its name.
    pub engines: BTreeSet<String>,
}

impl Users {
    /// Walks the live controls and the whole audit chain; other tasks run between two pages.
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

/// Whether a walk is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// There may be more.
    More,
    /// There is none.
    Last,
}

impl Census {
    /// Counts the records of the next cards.
    pub async fn take_page(&mut self, pins: &Pins) -> Result<Page, StoreError> {
        let page = pins.kinds_page(self.after.as_ref(), PAGE_CARDS).await?;
        page.kinds.into_iter().for_each(|kind| self.count(kind));
        match page.last {
            Some(last) => {
                self.after = Some(last);
                Ok(Page::More)
            }
            None => Ok(Page::Last),
        }
    }

    /// All records.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|(_, records)| records).sum::<u64>().saturating_add(self.unreadable)
    }

    /// How many there are of each kind.
    pub fn counts(&self) -> &[(RecordKind, u64)] {
        &self.counts
    }

    /// Those that this release can't read.
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
    fn records_are_counted_apart_by_form_level_and_key_and_one_that_cannot_be_read_counts_in_the_total() {
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
