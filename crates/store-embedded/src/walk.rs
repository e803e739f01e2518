//! The walk through all rows of a database: decodes each, compares keyspaces with each other, verifies the audit chain.

use std::collections::{HashMap, HashSet};
use std::ops::Bound;

use fjall::{Keyspace, UserKey};

use super::{
    ARCHIVED_KEY, CARD_REFERENCE_KEY, HEAD_KEY, KEYS_KEY, MIN_KEY_VERSIONS_KEY, Tables, decode_head, number_of,
    page::{ControlPage, EntryPage},
};
use audit::{
    archive::ArchivedPart,
    chain::{ChainVerifier, Checkpoint},
    entry::{Body, Entry},
};
use domain::{
    control::{ControlId, ControlState},
    time::UnixMillis,
};
use store::codec::{card_of_key, decode_card, decode_card_reference_key, decode_control, decode_min, decode_pin};
use store::upkeep::{DAMAGE_MAX, Damage, RowCounts};

/// The result of a walk.
pub(super) struct Walk {
    pub(super) counts: RowCounts,
    /// The last entry of the audit chain that holds.
    pub(super) end: Checkpoint,
    /// The end of the archived entries, where the chain begins.
    pub(super) archived: Checkpoint,
    /// The largest committed time; zero where its row can't be read.
    pub(super) time: UnixMillis,
    pub(super) has_key_list: bool,
    pub(super) has_card_reference_key: bool,
    pub(super) damage: Vec<Damage>,
    /// The keys of the cards that have a PIN by their row, and no PIN record.
    pub(super) absent_pins: Vec<UserKey>,
    /// The number of places, those that `damage` does not name included.
    pub(super) damaged_places: u64,
}

/// A keyspace whose good rows a walk hands over. The rows of controls and the head of the chain are not handed over: no
/// salvaged store keeps them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RowKind {
    Card,
    Pin,
    /// Entries of the chain that hold, as one row.
    Audit,
    /// The list of keys, and the minimum key versions.
    Meta,
}

/// Takes a good row: its keyspace, key and value.
pub(super) type Keep<'a> = &'a mut dyn FnMut(RowKind, &[u8], &[u8]) -> Result<(), fjall::Error>;

/// Reads every row. What can't be read is damage.
///
/// # Errors
/// Those of `keep`.
pub(super) fn walk(tables: &Tables, keep: Keep<'_>) -> Result<Walk, fjall::Error> {
    let mut walk = Walk {
        counts: RowCounts::default(),
        end: Checkpoint::EMPTY,
        archived: Checkpoint::EMPTY,
        time: UnixMillis::default(),
        has_key_list: false,
        has_card_reference_key: false,
        damage: Vec::new(),
        absent_pins: Vec::new(),
        damaged_places: 0,
    };
    let head = walk.meta(tables, keep)?;
    walk.cards(tables, keep)?;
    walk.pins(tables, keep)?;
    walk.controls(tables);
    walk.audit(tables, keep)?;
    if head == Some(Checkpoint::EMPTY) && walk.end == Checkpoint::EMPTY {
        walk.note("audit", "there is no entry: the journal was emptied, or no engine has started on the store");
    }
    // A head that can't be read is damage already.
    if let Some(head) = head.filter(|head| *head != walk.end) {
        let end = walk.end.sequence;
        walk.note(
            "audit",
            format!("the store names entry {} as the last, and the chain holds to {end}", head.sequence),
        );
    }
    Ok(walk)
}

impl Walk {
    fn note(&mut self, place: &str, problem: impl Into<String>) {
        self.damaged_places += 1;
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(Damage::at(place, problem));
        }
    }

    /// Returns the head of the chain; `None` where its row can't be read.
    fn meta(&mut self, tables: &Tables, keep: Keep<'_>) -> Result<Option<Checkpoint>, fjall::Error> {
        let mut read = |key: &str| {
            let row = tables.meta.get(key);
            row.inspect_err(|error| self.note("meta", format!("the row {key:?} can't be read: {error}"))).ok()
        };
        let (head, keys, min) = (read(HEAD_KEY), read(KEYS_KEY), read(MIN_KEY_VERSIONS_KEY));
        let (card_references, archived) = (read(CARD_REFERENCE_KEY), read(ARCHIVED_KEY));
        if let Some(Some(keys)) = keys {
            keep(RowKind::Meta, KEYS_KEY.as_bytes(), &keys)?;
            self.has_key_list = true;
        }
        if let Some(Some(min)) = min {
            match decode_min(&min) {
                Some(_) => keep(RowKind::Meta, MIN_KEY_VERSIONS_KEY.as_bytes(), &min)?,
                None => self.note("meta", "the minimum key versions can't be read"),
            }
        }
        if let Some(Some(key)) = card_references {
            match decode_card_reference_key(&key) {
                Some(_) => {
                    keep(RowKind::Meta, CARD_REFERENCE_KEY.as_bytes(), &key)?;
                    self.has_card_reference_key = true;
                }
                None => self.note("meta", "the card reference key can't be read"),
            }
        }
        if let Some(Some(archived)) = archived {
            match ArchivedPart::decode(&archived) {
                Some(part) => {
                    self.archived = part.end();
                    keep(RowKind::Meta, ARCHIVED_KEY.as_bytes(), &archived)?;
                }
                None => self.note("meta", "the end of the archived audit entries can't be read"),
            }
        }
        // A store without a head has no entry.
        let Some(Some(head)) = head else { return Ok(head.map(|_| Checkpoint::EMPTY)) };
        let decoded = decode_head(&head);
        if decoded.is_none() {
            self.note("meta", "the head of the audit chain can't be read");
        }
        self.time = decoded.map(|(_, time)| time).unwrap_or_default();
        Ok(decoded.map(|(head, _)| head))
    }

    fn cards(&mut self, tables: &Tables, keep: Keep<'_>) -> Result<(), fjall::Error> {
        self.each_row(&tables.cards, "cards", |walk, key, row| {
            let Some(card) = decode_card(row).filter(|_| card_of_key(key).is_some()) else {
                walk.note("cards", "a card can't be read");
                return Ok(());
            };
            if card.set_by.is_some() && matches!(tables.pins.contains_key(key), Ok(false)) {
                walk.note("pins", "a card has a PIN by its row, and no PIN record");
                walk.absent_pins.push(key.into());
            }
            walk.counts.cards += 1;
            keep(RowKind::Card, key, row)
        })?;
        // Not handed over: without a control they say nothing.
        self.each_row(&tables.unregistered, "unregistered", |walk, key, row| {
            if decode_card(row).is_none() || card_of_key(key).is_none() {
                walk.note("unregistered", "an unregistered card can't be read");
            }
            Ok(())
        })
    }

    fn pins(&mut self, tables: &Tables, keep: Keep<'_>) -> Result<(), fjall::Error> {
        self.each_row(&tables.pins, "pins", |walk, key, row| {
            if decode_pin(row).is_none() || card_of_key(key).is_none() {
                walk.note("pins", "a PIN record can't be read");
                return Ok(());
            }
            if matches!(tables.cards.contains_key(key), Ok(false)) {
                walk.note("cards", "a PIN record has no card");
            }
            walk.counts.pins += 1;
            keep(RowKind::Pin, key, row)
        })
    }

    fn controls(&mut self, tables: &Tables) {
        let (mut states, mut set) = (HashMap::<ControlId, bool>::new(), HashSet::new());
        for (keyspace, name) in [(&tables.controls, "controls"), (&tables.set, "set")] {
            let outcome = self.each_row(keyspace, name, |walk, number, page| {
                let page = ControlPage::read(page).filter(|_| number_of(number).is_some());
                let Some((_, rows)) = page else {
                    walk.note(name, "a page of controls can't be read");
                    return Ok(());
                };
                for row in rows {
                    let Some(control) = decode_control(row) else {
                        walk.note(name, "a control can't be read");
                        continue;
                    };
                    match control.state {
                        ControlState::Spent(_) if name == "set" => {
                            set.insert(control.id);
                        }
                        // Pages come in the order of their commits: the last state of a control stands.
                        ControlState::Spent(_) => {
                            states.insert(control.id, false);
                        }
                        _ => {
                            states.insert(control.id, walk.time < control.expires_at);
                        }
                    }
                }
                Ok(())
            });
            // The closure returns no error.
            let Ok(()) = outcome else { return };
        }
        let open = states.iter().filter(|(id, is_open)| **is_open && !set.contains(*id)).count();
        self.counts.open_controls = u64::try_from(open).unwrap_or(u64::MAX);
        self.counts.retry_controls = u64::try_from(set.len()).unwrap_or(u64::MAX);
    }

    /// Verifies the chain, and that an event of it explains why the entries before its first are absent.
    fn audit(&mut self, tables: &Tables, keep: Keep<'_>) -> Result<(), fjall::Error> {
        let by_row = self.archived;
        if by_row == Checkpoint::EMPTY {
            self.archived = before_first_entry(tables).unwrap_or(by_row);
        }
        let (start, places) = (self.archived, self.damaged_places);
        let (mut named, mut is_salvaged) = (Checkpoint::EMPTY, false);
        self.entries(tables, keep, |entry| match &entry.event.body {
            Body::AuditArchived(segment) => named = Checkpoint { sequence: segment.last, hash: segment.hash },
            // A salvage keeps the end of the archived entries, and may lose the event or the row that names the end.
            Body::StoreSalvaged(_) => (named, is_salvaged) = (start, true),
            _ => {}
        })?;
        // A chain that does not hold is damage already, and may lack the event.
        let is_explained = named == start && (by_row == start || is_salvaged);
        if self.damaged_places == places && !is_explained {
            let problem = "the newest event audit_archived and the stored end of the archived entries differ";
            self.note("audit", format!("{problem}, and the chain begins behind entry {}", start.sequence));
        }
        Ok(())
    }

    /// Verifies the chain to its first entry that does not hold. Entries behind that one prove nothing, and are not kept.
    fn entries(&mut self, tables: &Tables, keep: Keep<'_>, mut visit: impl FnMut(&Entry)) -> Result<(), fjall::Error> {
        let mut chain = ChainVerifier::after(self.archived, Vec::new());
        self.end = self.archived;
        // Archived entries are passed over: their rows, and the first ones of the row that has entries behind them too.
        let first_kept = self.archived.sequence.saturating_add(1);
        let first_row = tables.audit.range(..=first_kept.to_be_bytes()).next_back();
        let first_row = match first_row.map(|row| row.key()) {
            Some(Ok(key)) => number_of(&key).unwrap_or_default(),
            _ => first_kept,
        };
        for row in tables.audit.range(first_row.to_be_bytes()..) {
            let next = self.end.sequence.saturating_add(1);
            let (key, row) = match row.into_inner() {
                Ok(row) => row,
                Err(error) => {
                    self.note("audit", format!("entry {next} can't be read: {error}"));
                    return Ok(());
                }
            };
            let page = EntryPage::read(&row);
            let entries = page.as_ref().and_then(EntryPage::entries);
            let archived = number_of(&key).and_then(|first| next.checked_sub(first)).filter(|archived| {
                // Only the row of the first kept entry has archived ones.
                *archived == 0 || next == first_kept
            });
            let entries = entries.zip(archived.and_then(|archived| usize::try_from(archived).ok()));
            let mut good = EntryPage::new();
            let mut problem = entries.is_none().then(|| format!("entry {next} can't be read"));
            for bytes in entries.into_iter().flat_map(|(entries, archived)| entries.into_iter().skip(archived)) {
                let next = self.end.sequence.saturating_add(1);
                let checked = match Entry::decode(bytes) {
                    Ok(entry) => chain.check(&entry).map(|()| entry).map_err(|error| error.to_string()),
                    Err(error) => Err(format!("entry {next}: {error}")),
                };
                match checked {
                    Ok(entry) => {
                        self.end = Checkpoint { sequence: entry.sequence, hash: entry.hash };
                        visit(&entry);
                    }
                    Err(error) => {
                        problem = Some(error);
                        break;
                    }
                }
                good.push(|row| row.extend_from_slice(bytes));
            }
            self.counts.audit_entries = self.end.sequence.saturating_sub(self.archived.sequence);
            if !good.is_empty() {
                keep(RowKind::Audit, &next.to_be_bytes(), &good.row())?;
            }
            if let Some(problem) = problem {
                self.note("audit", problem);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Visits the rows of a keyspace: up to the first that can't be read, then from the end back to the last that can't.
    /// A row between two damaged blocks may be an older version of a row in a damaged block, so none of them is visited.
    fn each_row(
        &mut self,
        keyspace: &Keyspace,
        name: &str,
        mut visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<(), fjall::Error>,
    ) -> Result<(), fjall::Error> {
        let mut last: Option<UserKey> = None;
        let mut failed = false;
        for row in keyspace.iter() {
            match row.into_inner() {
                Ok((key, row)) => {
                    visit(self, &key, &row)?;
                    last = Some(key);
                }
                Err(error) => {
                    self.note(name, format!("rows can't be read: {error}"));
                    failed = true;
                    break;
                }
            }
        }
        if !failed {
            return Ok(());
        }
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        for row in keyspace.range((from, Bound::Unbounded)).rev() {
            let Ok((key, row)) = row.into_inner() else { break };
            visit(self, &key, &row)?;
        }
        Ok(())
    }
}

/// The checkpoint before the first entry, as that entry names it; `None` where the first row can't be read.
fn before_first_entry(tables: &Tables) -> Option<Checkpoint> {
    let (_, row) = tables.audit.iter().next()?.into_inner().ok()?;
    let page = EntryPage::read(&row)?;
    let first = Entry::decode(page.entries()?.first()?).ok()?;
    Some(Checkpoint { sequence: first.sequence.checked_sub(1)?, hash: first.previous })
}
