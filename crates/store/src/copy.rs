//! The copy of a store into a store of another kind.
//!
//! The source is stopped and is not changed. An engine refuses the target until the copy is complete; a copy that ended early is
//! continued by the same copy again. Rules:
//! - The rows of cards and PINs have the same bytes in the target, so no card has fewer used tries or another generation.
//! - Controls that were usable are over, as after a restore: they might be used in both stores. Those that have set a PIN are kept
//!   for their retries.
//! - Cards that were never registered and have no PIN are left out. Without a control they hold the rate of their controls alone.
//! - The audit chain goes along, and its next event, `store_restored`, states the source.
//! - Each row is read back from the target and compared before the event is written.
//! - Moments are copied as they are, and the target reads them by its own clock. Only the five minutes in which a retry is confirmed
//!   depend on them: they end earlier or later by the difference of the clocks. A confirmed retry stays true, because it needs the
//!   tag of its block and a PIN that no later change has replaced; one that is not confirmed is answered as not usable.

use std::sync::Arc;

use thiserror::Error;

use super::{
    open_error::StoreOpenError,
    upkeep::{Damage, UpkeepError},
};
use audit::{
    chain::Checkpoint,
    entry::{self, Body, Event, Isolation, Level, Outcome, Stamp, StoreOrigin},
};
use domain::{card::CardKey, storage_key::MinKeyVersions, time::UnixMillis};

/// The rows that are read and written at a time.
const PAGE_ROWS: usize = 1_024;
/// The caller of the event that a copy records.
const CALLER: &str = "store";

/// What a copy takes along beside cards, controls and audit entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyFacts {
    /// The name of the source's engine.
    pub source: String,
    /// The last entry of the audit chain.
    pub end: Checkpoint,
    /// The end of the archived entries, as [`audit::archive::ArchivedPart::encode`] writes it.
    pub archived: Option<Vec<u8>>,
    /// The number of the last archived entry.
    pub archived_end: u64,
    /// The list of keys of the last report.
    pub keys: Option<Vec<u8>>,
    /// The 32 bytes of the key of the card references.
    pub card_reference_key: Option<Vec<u8>>,
    /// The lowest versions that a record may be written under.
    pub min: MinKeyVersions,
    /// The newest time of the source's changes.
    pub time: UnixMillis,
    /// The number of rows to copy: cards, controls that are kept, audit entries. For a progress bar alone: a source may count every
    /// spent control.
    pub rows: u64,
}

/// A card, and its PIN record, in the bytes of [`super::codec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedCard {
    /// The name of the card.
    pub card: CardKey,
    /// The row of the card.
    pub state: Vec<u8>,
    /// The PIN record.
    pub pin: Option<Vec<u8>>,
}

/// The store that is copied.
#[expect(async_fn_in_trait, reason = "a copy runs on the runtime of its caller")]
pub trait CopySource {
    /// What is copied once.
    fn facts(&self) -> &CopyFacts;

    /// Registered cards and cards with a PIN, by tenant and plasticId, behind `after`.
    async fn cards(&mut self, after: Option<&CardKey>, limit: usize) -> Result<Vec<CopiedCard>, CopyError>;

    /// The next controls that have set a PIN; empty at the end, and after that from the first control again.
    async fn controls(&mut self) -> Result<Vec<Vec<u8>>, CopyError>;

    /// The number of controls that were usable, once all controls were read.
    fn ended_controls(&self) -> u64;

    /// Audit entries behind a number.
    async fn entries(&mut self, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, CopyError>;

    /// Checks that nothing has changed since the copy began.
    async fn check_unchanged(&mut self) -> Result<(), CopyError>;
}

/// The store that a copy fills.
#[expect(async_fn_in_trait, reason = "a copy runs on the runtime of its caller")]
pub trait CopyTarget {
    /// Reserves the empty target for the copy of this source, or continues an earlier copy of this source.
    async fn begin(&mut self, facts: &CopyFacts) -> Result<Begun, CopyError>;

    /// Writes cards behind those that are there.
    async fn put_cards(&mut self, cards: &[CopiedCard]) -> Result<(), CopyError>;

    /// Writes controls; those of an earlier copy may be there.
    async fn put_controls(&mut self, controls: &[Vec<u8>]) -> Result<(), CopyError>;

    /// Writes the audit entries from this number on.
    async fn put_entries(&mut self, first: u64, entries: &[Vec<u8>]) -> Result<(), CopyError>;

    /// Cards as [`CopySource::cards`].
    async fn cards(&mut self, after: Option<&CardKey>, limit: usize) -> Result<Vec<CopiedCard>, CopyError>;

    /// Whether these controls are there, and how many controls there are.
    async fn has_controls(&mut self, controls: &[Vec<u8>]) -> Result<(bool, u64), CopyError>;

    /// Audit entries behind a number.
    async fn entries(&mut self, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, CopyError>;

    /// Writes the last entry and the facts, and opens the target for engines.
    async fn finish(&mut self, facts: &CopyFacts, entry: Vec<u8>, head: Checkpoint) -> Result<(), CopyError>;
}

/// The state of a target at the begin of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Rows up to these are there.
    At {
        /// The last card.
        card: Option<CardKey>,
        /// The number of the last audit entry; or of the last archived one.
        entry: u64,
    },
    /// The same copy was completed before, with this last entry.
    Complete(Checkpoint),
}

/// The result of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyReport {
    /// The number of cards in the target.
    pub cards: u64,
    /// The number of PIN records in the target.
    pub pins: u64,
    /// The number of controls that are kept for retries.
    pub retry_controls: u64,
    /// The number of audit entries, without the event of the copy.
    pub audit_entries: u64,
    /// The number of controls that were open, and are over.
    pub ended_controls: u64,
    /// The last entry of the source's chain.
    pub end: Checkpoint,
    /// The event of the copy.
    pub event: Checkpoint,
    /// Whether an earlier copy had written rows, which were compared too.
    pub continued: bool,
}

/// The outcome of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// The target is complete, and was compared with the source.
    Now(CopyReport),
    /// The same copy was completed before. The target may have changed since.
    Before(Checkpoint),
}

/// Copies every row, compares each, and writes the event. `audit_user` names the person or program. `progress` gets the number of
/// rows that were written or compared since its last call; in all twice [`CopyFacts::rows`].
///
/// # Errors
/// See [`CopyError`]. The same copy may be started again, and continues.
pub async fn copy(
    source: &mut impl CopySource,
    target: &mut impl CopyTarget,
    audit_user: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, CopyError> {
    let facts = source.facts().clone();
    let (mut card, mut entry) = match target.begin(&facts).await? {
        Begun::At { card, entry } => (card, entry),
        Begun::Complete(head) => return Ok(Copied::Before(head)),
    };
    let continued = card.is_some() || entry > facts.archived_end;
    loop {
        let page = source.cards(card.as_ref(), PAGE_ROWS).await?;
        let Some(last) = page.last() else { break };
        target.put_cards(&page).await?;
        card = Some(last.card);
        progress(rows_of(&page));
    }
    loop {
        let page = source.controls().await?;
        if page.is_empty() {
            break;
        }
        target.put_controls(&page).await?;
        progress(rows_of(&page));
    }
    loop {
        let page = source.entries(entry, PAGE_ROWS).await?;
        if page.is_empty() {
            break;
        }
        target.put_entries(entry.saturating_add(1), &page).await?;
        entry = entry.saturating_add(rows_of(&page));
        progress(rows_of(&page));
    }
    let mut report = compare(source, target, &facts, progress).await?;
    source.check_unchanged().await?;
    let (bytes, event) = event(&facts, source.ended_controls(), audit_user);
    target.finish(&facts, bytes, event).await?;
    (report.event, report.continued) = (event, continued);
    Ok(Copied::Now(report))
}

/// Reads every row back.
async fn compare(
    source: &mut impl CopySource,
    target: &mut impl CopyTarget,
    facts: &CopyFacts,
    progress: &mut dyn FnMut(u64),
) -> Result<CopyReport, CopyError> {
    let (mut cards, mut pins, mut card) = (0, 0, None);
    loop {
        let page = source.cards(card.as_ref(), PAGE_ROWS).await?;
        if target.cards(card.as_ref(), PAGE_ROWS).await? != page {
            return Err(CopyError::Differs { rows: "cards" });
        }
        let Some(last) = page.last() else { break };
        card = Some(last.card);
        cards += rows_of(&page);
        pins += u64::try_from(page.iter().filter(|card| card.pin.is_some()).count()).unwrap_or(u64::MAX);
        progress(rows_of(&page));
    }
    let mut retry_controls = 0;
    loop {
        let page = source.controls().await?;
        let (found, count) = target.has_controls(&page).await?;
        retry_controls += rows_of(&page);
        if !found || (page.is_empty() && count != retry_controls) {
            return Err(CopyError::Differs { rows: "controls" });
        }
        if page.is_empty() {
            break;
        }
        progress(rows_of(&page));
    }
    let mut entry = facts.archived_end;
    loop {
        let page = source.entries(entry, PAGE_ROWS).await?;
        if target.entries(entry, PAGE_ROWS).await? != page {
            return Err(CopyError::Differs { rows: "audit entries" });
        }
        if page.is_empty() {
            break;
        }
        entry = entry.saturating_add(rows_of(&page));
        progress(rows_of(&page));
    }
    if entry != facts.end.sequence {
        return Err(CopyError::Differs { rows: "audit entries" });
    }
    Ok(CopyReport {
        cards,
        pins,
        retry_controls,
        audit_entries: entry.saturating_sub(facts.archived_end),
        ended_controls: source.ended_controls(),
        end: facts.end,
        event: facts.end,
        continued: false,
    })
}

fn rows_of<T>(page: &[T]) -> u64 {
    u64::try_from(page.len()).unwrap_or(u64::MAX)
}

/// The event behind the chain of the source.
fn event(facts: &CopyFacts, ended_controls: u64, audit_user: &str) -> (Vec<u8>, Checkpoint) {
    let Checkpoint { sequence, hash } = facts.end;
    let origin = StoreOrigin { source: facts.source.as_str().into(), sequence, hash, ended_controls };
    // No boundary takes part.
    let stamp = Stamp { level: Level::Host, token: "none".into(), isolation: Isolation::Inline, keys: [].into() };
    let event = Event {
        at: clock::now(),
        caller: CALLER.into(),
        tenant: None,
        audit_user: audit_user.into(),
        request: None,
        outcome: Outcome::Done,
        stamp: Arc::new(stamp),
        body: Body::StoreRestored(origin),
    };
    let (sequence, mut bytes) = (sequence.saturating_add(1), Vec::new());
    let hash = entry::append(&mut bytes, sequence, &facts.end.hash, &event);
    (bytes, Checkpoint { sequence, hash })
}

/// Whether an entry is the event of the copy of this source.
pub fn is_event_of(facts: &CopyFacts, body: &Body) -> bool {
    let Checkpoint { sequence, hash } = facts.end;
    matches!(body, Body::StoreRestored(origin) if (origin.sequence, origin.hash) == (sequence, hash))
}

/// Why a store was not copied. The source is as it was, and no engine serves the target.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The embedded store can't be opened, read or written.
    #[error(transparent)]
    Upkeep(#[from] UpkeepError),
    /// The database does not answer, or refuses.
    #[error("{place}: {problem}; the same command continues the copy")]
    Database {
        /// The database.
        place: String,
        /// The error.
        problem: String,
    },
    /// A row of the source database can't be read.
    #[error("{place} is damaged ({damage}): `pinseal store check` lists the damage")]
    Damaged {
        /// The database.
        place: String,
        /// The first place.
        damage: Damage,
    },
    /// The target has rows that no copy of this source wrote.
    #[error("{place} is not empty: name an empty database or another schema")]
    NotEmpty {
        /// The target.
        place: String,
    },
    /// The target has a part of the copy of another source, or of an earlier state of this one.
    #[error(
        "{place} has a part of the copy of {source_name} up to audit entry {end}: continue that copy, or drop the target's rows"
    )]
    OtherSource {
        /// The target.
        place: String,
        /// The name of the source's engine.
        source_name: String,
        /// The number of the last audit entry of that source.
        end: u64,
    },
    /// Engines are registered on the source.
    #[error(
        "the engines {engines} are registered on {place}: stop them, and deregister those that did not close their store"
    )]
    EnginesRegistered {
        /// The database.
        place: String,
        /// Their names.
        engines: String,
    },
    /// The source has chains that the target can't hold.
    #[error(
        "{place} has the audit chains of {engines} too, and the copy takes only one: export each (`pinseal audit export \
         --config FILE --engine NAME`), keep the exports, and repeat with --leave-chains"
    )]
    OtherChains {
        /// The database.
        place: String,
        /// The names of their engines.
        engines: String,
    },
    /// The source is itself the unfinished target of a copy.
    #[error("{place} has a part of a copy: finish that copy first")]
    Unfinished {
        /// The database.
        place: String,
    },
    /// An engine has changed the source.
    #[error("{place} changed during the copy: stop its engines, drop the target's rows, and copy again")]
    Changed {
        /// The source.
        place: String,
    },
    /// A PIN record is under a storage key that the target has retired.
    #[error(
        "a PIN record of the source is under version {version} of a storage key, which the target has retired: rotate the source first"
    )]
    Retired {
        /// The version of the record's key.
        version: u16,
    },
    /// Another process continues the copy.
    #[error("another process copies into {place}: one copy at a time")]
    Displaced {
        /// The target.
        place: String,
    },
    /// A row of the target is not the row of the source.
    #[error("the {rows} of the target differ from those of the source: drop the target's rows, and copy again")]
    Differs {
        /// The kind of row.
        rows: &'static str,
    },
}

impl From<StoreOpenError> for CopyError {
    fn from(error: StoreOpenError) -> Self {
        Self::Upkeep(error.into())
    }
}
