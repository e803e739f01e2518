//! The changes of one transaction, applied in memory to the rows that it locked, and what it writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    connection::{QueryError, column},
    database_clock::millis,
    key_versions::KeyVersions,
};
use audit::{
    archive::ArchivedPart,
    chain::Checkpoint,
    entry::{self, Body, Event},
};
use domain::card::{CardKey, PlasticId, RegisteredAccount, StoredPin, Tenant};
use domain::control::{Control, ControlId, ControlState};
use domain::rules::{CardState, follow_account};
use domain::storage_key::{KeyWindow, LoadedKeys};
use domain::time::UnixMillis;
use store::codec::{
    PinRow, decode_card, decode_control, decode_pin, encode_card, encode_control, encode_pin, kind_code,
};
use store::rows::{Rows, make_change};
use store::{Change, KeysAtStart, ReportedKeys, StorageKeyError, StoreError};

use super::queue::{Command, Reply};

/// What the changes of a transaction read.
#[derive(Default)]
pub(crate) struct Needs {
    pub(crate) cards: BTreeSet<CardKey>,
    pub(crate) controls: BTreeSet<ControlId>,
    /// The tenants whose unregistered cards are counted.
    pub(crate) tenants: BTreeSet<Tenant>,
    /// The keys that a [`Change::SetKeysInUse`] reports last.
    pub(crate) keys: Option<LoadedKeys>,
    /// The last entries of archived parts.
    pub(crate) archived: Vec<i64>,
}

impl Needs {
    pub(crate) fn of(commands: &[Command]) -> Self {
        let mut needs = Self::default();
        commands.iter().for_each(|command| needs.add(&command.change));
        needs
    }

    fn add(&mut self, change: &Change) {
        match change {
            Change::OpenControl { control, .. } => {
                self.cards.insert(control.card);
                self.tenants.insert(control.card.tenant);
            }
            Change::Advance { control, .. }
            | Change::StartPage { control, .. }
            | Change::ConfirmRetry { control, .. } => {
                self.controls.insert(*control);
            }
            Change::Reencrypt(pins) => self.cards.extend(pins.iter().map(|pin| pin.card)),
            Change::SettleChange { card, control, .. } => {
                self.cards.insert(*card);
                self.controls.extend(control.iter().map(|control| control.id));
            }
            Change::TransferPin { from, to, .. } => self.cards.extend([*from, *to]),
            Change::RegisterCard { card, .. }
            | Change::SetPinByZone { card, .. }
            | Change::GivePin { card, .. }
            | Change::ReserveTry { card, .. }
            | Change::SettleTry { card, .. }
            | Change::ResetTries { card, .. }
            | Change::GeneratePin { card, .. }
            | Change::ReplaceAccount { card, .. } => {
                self.cards.insert(*card);
            }
            Change::SetKeysInUse { keys, .. } => self.keys = Some(keys.loaded.clone()),
            Change::RemoveArchived(part) => self.archived.extend(i64::try_from(part.end().sequence)),
            Change::ConfirmReads | Change::RecordEvent | Change::RecordAccess => {}
        }
    }
}

/// A row of `cards`, as it was locked and as the transaction leaves it.
pub(crate) struct CardRow {
    /// Generation and reserved tries of the locked row; `None` for a row that the transaction adds.
    pub(crate) read: Option<(i64, i64)>,
    pub(crate) registered: bool,
    pub(crate) state: CardState,
    pub(crate) pin: Option<PinRow>,
    pub(crate) written: Written,
}

/// What a transaction writes of a card.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Written {
    Nothing,
    State,
    StateAndPin,
}

/// The rows that a transaction locked, or one that a reader found.
pub(crate) struct LoadedCard {
    pub(crate) card: CardKey,
    /// `None` for a row whose columns and bytes differ, or whose bytes can't be read.
    pub(crate) row: Option<CardRow>,
}

impl LoadedCard {
    /// Reads a row of [`super::sql::CARDS_LOCK`] or [`super::sql::CARD`].
    pub(crate) fn read(row: &Row) -> Result<Self, QueryError> {
        let card = card_of(column(row, 0)?, column(row, 1)?)?;
        let (registered, generation, reserved, forgiven): (bool, i64, i64, i64) =
            (column(row, 2)?, column(row, 3)?, column(row, 4)?, column(row, 5)?);
        let (state, pin) = (column::<&[u8]>(row, 6)?, column::<Option<&[u8]>>(row, 7)?);
        let key = column::<Option<i32>>(row, 8)?.zip(column::<Option<i32>>(row, 9)?);
        let state = decode_card(state).filter(|state| {
            let tries = state.tries.tries;
            (number(state.generation), number(tries.reserved), number(tries.forgiven))
                == (generation, reserved, forgiven)
        });
        let pin = match pin {
            None => Some(None),
            Some(bytes) => decode_pin(bytes).filter(|row| key == Some(key_columns(row))).map(Some),
        };
        let row = state.zip(pin).map(|(state, pin)| CardRow {
            read: Some((generation, reserved)),
            registered,
            state,
            pin,
            written: Written::Nothing,
        });
        Ok(Self { card, row })
    }
}

/// A card of two columns.
pub(crate) fn card_of(tenant: &str, plastic: &str) -> Result<CardKey, QueryError> {
    let parsed = Tenant::parse(tenant).ok().zip(PlasticId::parse(plastic).ok());
    let card = parsed.map(|(tenant, plastic)| CardKey { tenant, plastic });
    card.ok_or_else(|| QueryError::Row("the name of a card is malformed".to_owned()))
}

/// The columns of a PIN's storage key.
pub(crate) fn key_columns(row: &PinRow) -> (i32, i32) {
    (kind_code(row.pin.key.kind).into(), row.pin.key.version.into())
}

/// A number as a `bigint`.
pub(crate) fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A control with its card's account number, which the stored bytes do not have; a spent control has none.
pub(crate) fn with_account(control: Control, card: Option<&CardState>) -> Control {
    follow_account(control.clone(), card.and_then(|card| card.account.as_ref())).unwrap_or(control)
}

/// The column `phase` of a control.
pub(crate) fn phase(control: &Control) -> i32 {
    match control.state {
        ControlState::Open => 0,
        ControlState::Keyed { .. } => 1,
        ControlState::Spent(_) => 2,
    }
}

/// A row of `controls`.
struct ControlRow {
    control: Control,
    is_new: bool,
    is_written: bool,
}

/// What was locked for the changes of a transaction.
pub(crate) struct Loaded {
    /// Microseconds of the database's clock, read after the locks.
    pub(crate) now: i64,
    pub(crate) head: Checkpoint,
    pub(crate) window: KeyWindow,
    pub(crate) cards: Vec<LoadedCard>,
    /// Rows of [`super::sql::CONTROLS_LOCK`].
    pub(crate) controls: Vec<Row>,
    /// Rows of [`super::sql::UNREGISTERED`].
    pub(crate) unregistered: Vec<Row>,
    pub(crate) keys: Option<KeyVersions>,
    /// The lists of keys of the other engines that have started.
    pub(crate) other_keys: Vec<Vec<u8>>,
    /// The version of a record's key that the engine does not report.
    pub(crate) record_unopened: Option<u16>,
    /// Rows of [`super::sql::AUDIT_HASHES`].
    pub(crate) archived: Vec<Row>,
    /// The number of the last archived entry: rows up to it wait for the sweep.
    pub(crate) archived_end: u64,
}

/// The transaction's changes. Later ones see what earlier ones wrote, so a card may have several, and one row is written.
pub(crate) struct Batch {
    engine: String,
    now: UnixMillis,
    /// With the last report of the transaction.
    pub(crate) window: KeyWindow,
    cards: BTreeMap<CardKey, CardRow>,
    damaged: BTreeSet<CardKey>,
    controls: BTreeMap<ControlId, ControlRow>,
    unregistered: HashMap<Tenant, i64>,
    /// What the transaction adds to the number of unregistered cards.
    pub(crate) added: BTreeMap<Tenant, i64>,
    keys: Option<KeyVersions>,
    other_keys: Vec<Vec<u8>>,
    record_unopened: Option<u16>,
    pub(crate) report: Option<KeyReport>,
    /// The event of an activation by the present change.
    activation: Option<Body>,
    hashes: HashMap<u64, [u8; 32]>,
    /// By the last [`Change::RemoveArchived`].
    pub(crate) archived: Option<ArchivedPart>,
    pub(crate) head: Checkpoint,
    pub(crate) sequences: Vec<i64>,
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) hashes_of_entries: Vec<Vec<u8>>,
}

/// The keys that an engine reports.
pub(crate) struct KeyReport {
    pub(crate) keys: Vec<u8>,
    pub(crate) card_reference_key: Option<Vec<u8>>,
    pub(crate) loaded: LoadedKeys,
    /// The rows after the report.
    pub(crate) versions: KeyVersions,
}

/// A control was opened between the statements that locked: its card was not, so the transaction begins again.
#[derive(Debug)]
pub(crate) struct Unlocked;

impl Batch {
    /// The rows, before the first change. `may_be_unlocked` until enough attempts found a control whose card is not locked.
    pub(crate) fn new(
        engine: &str,
        loaded: Loaded,
        may_be_unlocked: bool,
    ) -> Result<Result<Self, Unlocked>, QueryError> {
        let Loaded { now, head, window, cards, controls, unregistered, archived, archived_end, .. } = loaded;
        let Loaded { keys, other_keys, record_unopened, .. } = loaded;
        let mut batch = Self {
            engine: engine.to_owned(),
            now: millis(now),
            window,
            cards: BTreeMap::new(),
            damaged: BTreeSet::new(),
            controls: BTreeMap::new(),
            unregistered: HashMap::new(),
            added: BTreeMap::new(),
            keys,
            other_keys,
            record_unopened,
            report: None,
            activation: None,
            hashes: HashMap::new(),
            archived: None,
            head,
            sequences: Vec::new(),
            entries: Vec::new(),
            hashes_of_entries: Vec::new(),
        };
        for LoadedCard { card, row } in cards {
            match row {
                Some(row) => drop(batch.cards.insert(card, row)),
                None => drop(batch.damaged.insert(card)),
            }
        }
        for row in &controls {
            let (bytes, phase_column, expires_at): (&[u8], i32, i64) =
                (column(row, 0)?, column(row, 1)?, column(row, 2)?);
            // A control that can't be read is not usable.
            let control = decode_control(bytes)
                .filter(|control| (phase(control), number(control.expires_at.0)) == (phase_column, expires_at));
            let Some(control) = control else { continue };
            let has_card = batch.cards.contains_key(&control.card) || batch.damaged.contains(&control.card);
            if !has_card && may_be_unlocked {
                return Ok(Err(Unlocked));
            }
            // A control whose card is absent again and again has lost it.
            if !has_card {
                continue;
            }
            batch.controls.insert(control.id, ControlRow { control, is_new: false, is_written: false });
        }
        for row in &unregistered {
            if let Ok(tenant) = Tenant::parse(column(row, 0)?) {
                batch.unregistered.insert(tenant, column(row, 1)?);
            }
        }
        for row in &archived {
            let (sequence, hash): (i64, &[u8]) = (column(row, 0)?, column(row, 1)?);
            if let (Ok(sequence), Ok(hash)) = (u64::try_from(sequence), hash.try_into())
                && sequence > archived_end
            {
                batch.hashes.insert(sequence, hash);
            }
        }
        Ok(Ok(batch))
    }

    /// Applies a change, and adds its event to the chain. The command is kept: the transaction may be repeated.
    pub(crate) fn apply(&mut self, command: &Command) -> Reply {
        // The deadline may have passed while the transaction waited for the rows (R5).
        if !command.is_due() {
            return Err(StoreError::DeadlinePassed);
        }
        let answer = make_change(self, command.change.clone());
        if let Some(event) = answer.as_ref().ok().and_then(|outcome| outcome.event(command.event.clone())) {
            self.record(&event);
            if let Some(body) = self.activation.take() {
                self.record(&Event { body, ..event });
            }
        }
        answer
    }

    fn record(&mut self, event: &Event) {
        let sequence = self.head.sequence.saturating_add(1);
        let mut bytes = Vec::with_capacity(512);
        let hash = entry::append(&mut bytes, sequence, &self.head.hash, event);
        self.head = Checkpoint { sequence, hash };
        self.sequences.push(number(sequence));
        self.entries.push(bytes);
        self.hashes_of_entries.push(hash.to_vec());
    }

    fn row(&self, card: &CardKey) -> Result<Option<&CardRow>, StoreError> {
        if self.damaged.contains(card) {
            return Err(damaged("cards: the columns and the bytes of a card differ"));
        }
        Ok(self.cards.get(card))
    }

    fn write_card(&mut self, card: CardKey, state: CardState, registered: bool) {
        let (row, was_unregistered) = match self.cards.entry(card) {
            std::collections::btree_map::Entry::Occupied(row) => {
                let row = row.into_mut();
                let was_unregistered = !row.registered;
                (row, was_unregistered)
            }
            std::collections::btree_map::Entry::Vacant(place) => {
                let state = CardState::default();
                let row = CardRow { read: None, registered, state, pin: None, written: Written::Nothing };
                // A new row, counted where it is unregistered.
                if !registered {
                    *self.added.entry(card.tenant).or_default() += 1;
                }
                (place.insert(row), false)
            }
        };
        if registered && was_unregistered {
            *self.added.entry(card.tenant).or_default() -= 1;
        }
        row.registered = registered;
        row.state = state;
        row.written = row.written.max(Written::State);
    }

    /// The cards whose rows the transaction locked or adds.
    pub(crate) fn locked_cards(&self) -> impl Iterator<Item = &CardKey> {
        self.cards.keys().chain(&self.damaged)
    }

    /// The cards that the transaction writes, in the order of their keys.
    pub(crate) fn written_cards(&self) -> impl Iterator<Item = (&CardKey, &CardRow)> {
        self.cards.iter().filter(|(_, row)| row.written != Written::Nothing)
    }
}

fn damaged(place: &str) -> StoreError {
    StoreError::Damaged { place: place.to_owned() }
}

impl Rows for Batch {
    fn now(&self) -> UnixMillis {
        self.now
    }

    fn wall_now(&self) -> UnixMillis {
        self.now
    }

    fn key_window(&self) -> KeyWindow {
        self.window
    }

    fn known_card(&self, card: &CardKey) -> Result<Option<CardState>, StoreError> {
        Ok(self.row(card)?.filter(|row| row.registered).map(|row| row.state.clone()))
    }

    fn unregistered_card(&self, card: &CardKey) -> Result<Option<CardState>, StoreError> {
        Ok(self.row(card)?.filter(|row| !row.registered).map(|row| row.state.clone()))
    }

    /// Of all engines, as the transaction found it. Engines that add cards at once may exceed a limit by one batch each.
    fn unregistered_cards_of(&self, tenant: &Tenant) -> u32 {
        let of = |counts: Option<&i64>| counts.copied().unwrap_or_default();
        let count = of(self.unregistered.get(tenant)).saturating_add(of(self.added.get(tenant)));
        u32::try_from(count.max(0)).unwrap_or(u32::MAX)
    }

    fn pin(&self, card: &CardKey) -> Result<Option<PinRow>, StoreError> {
        let pin = self.row(card)?.and_then(|row| row.pin.as_ref());
        Ok(pin.map(|row| PinRow { set_at: row.set_at, pin: row.pin.clone() }))
    }

    fn control(&self, id: ControlId) -> Option<Control> {
        let row = self.controls.get(&id)?;
        Some(with_account(row.control.clone(), self.cards.get(&row.control.card).map(|row| &row.state)))
    }

    fn put_card(&mut self, card: CardKey, state: CardState) {
        self.write_card(card, state, true);
    }

    fn put_unregistered_card(&mut self, card: CardKey, state: CardState) {
        self.write_card(card, state, false);
    }

    fn put_pin(&mut self, card: CardKey, set_at: UnixMillis, pin: &StoredPin) {
        if !self.cards.contains_key(&card) {
            self.write_card(card, CardState::default(), true);
        }
        if let Some(row) = self.cards.get_mut(&card) {
            row.pin = Some(PinRow { set_at, pin: pin.clone() });
            row.written = Written::StateAndPin;
        }
    }

    fn put_control(&mut self, control: &Control) {
        let control = Control { account: None, ..control.clone() };
        match self.controls.entry(control.id) {
            std::collections::btree_map::Entry::Occupied(mut row) => {
                let row = row.get_mut();
                (row.control, row.is_written) = (control, true);
            }
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(ControlRow { control, is_new: true, is_written: true });
            }
        }
    }

    /// A control has the account number of its card's row: see [`with_account`].
    fn controls_follow(&mut self, _: &CardKey, _: Option<&RegisteredAccount>) {}

    fn put_keys_in_use(&mut self, keys: &ReportedKeys, start: Option<&KeysAtStart>) -> Result<(), StoreError> {
        let versions = match &self.report {
            Some(report) => Some(&report.versions),
            None => self.keys.as_ref(),
        };
        let Some(mut versions) = versions.cloned() else { return Err(damaged("key_versions: the row is absent")) };
        let stored = versions.card_reference_key.clone();
        let given = start.map(|start| start.card_reference_key.as_bytes().to_vec());
        // Two engines that start at once both find none, and make one each.
        if stored.is_some() && given.is_some() && stored != given {
            return Err(StorageKeyError::OtherCardReferenceKey.into());
        }
        if self.other_keys.iter().any(|list| !keys.compared.iter().any(|compared| **compared == **list)) {
            return Err(StorageKeyError::NotCompared.into());
        }
        if let Some(version) = self.record_unopened {
            return Err(StorageKeyError::RecordUnopened { version }.into());
        }
        if start.is_some() {
            versions.check_retired(&keys.loaded)?;
        }
        let before = versions.clone();
        versions.report(&self.engine, &keys.loaded)?;
        self.activation = versions.activation_since(&before);
        versions.card_reference_key = stored.or(given.clone());
        let (min, max) = versions.window();
        if let Ok(window) = super::key_versions::window_of(&min, &max) {
            self.window = window;
        }
        let (list, loaded) = (keys.list.to_vec(), keys.loaded.clone());
        self.report = Some(KeyReport { keys: list, card_reference_key: given, loaded, versions });
        Ok(())
    }

    fn remove_archived(&mut self, part: &ArchivedPart) -> Result<(), StoreError> {
        let end = part.end();
        if self.hashes.get(&end.sequence) != Some(&end.hash) {
            return Err(damaged("audit: the archive ends with another entry than the store"));
        }
        self.hashes.retain(|sequence, _| *sequence > end.sequence);
        self.archived = Some(part.clone());
        Ok(())
    }
}

/// The columns of cards, for `unnest`.
#[derive(Default)]
pub(crate) struct CardColumns<'a> {
    pub(crate) tenants: Vec<&'a str>,
    pub(crate) plastics: Vec<&'a str>,
    pub(crate) registered: Vec<bool>,
    pub(crate) hours: Vec<i64>,
    pub(crate) generations: Vec<i64>,
    pub(crate) reserved: Vec<i64>,
    pub(crate) forgiven: Vec<i64>,
    pub(crate) states: Vec<Vec<u8>>,
    pub(crate) read_generations: Vec<i64>,
    pub(crate) read_reserved: Vec<i64>,
    pub(crate) pins: Vec<Option<Vec<u8>>>,
    pub(crate) kinds: Vec<Option<i32>>,
    pub(crate) versions: Vec<Option<i32>>,
}

impl<'a> CardColumns<'a> {
    pub(crate) fn of(rows: impl Iterator<Item = (&'a CardKey, &'a CardRow)>) -> Self {
        let mut columns = Self::default();
        for (card, row) in rows {
            columns.tenants.push(card.tenant.as_str());
            columns.plastics.push(card.plastic.as_str());
            columns.registered.push(row.registered);
            columns.hours.push(number(row.state.hour));
            columns.generations.push(number(row.state.generation));
            columns.reserved.push(number(row.state.tries.tries.reserved));
            columns.forgiven.push(number(row.state.tries.tries.forgiven));
            columns.states.push(encode_card(&row.state));
            let (generation, reserved) = row.read.unwrap_or_default();
            columns.read_generations.push(generation);
            columns.read_reserved.push(reserved);
            let key = row.pin.as_ref().map(key_columns);
            columns.pins.push(row.pin.as_ref().map(|row| encode_pin(row.set_at, &row.pin)));
            columns.kinds.push(key.map(|(kind, _)| kind));
            columns.versions.push(key.map(|(_, version)| version));
        }
        columns
    }
}

/// The columns of controls, for `unnest`.
#[derive(Default)]
pub(crate) struct ControlColumns<'a> {
    pub(crate) ids: Vec<Uuid>,
    pub(crate) tenants: Vec<&'a str>,
    pub(crate) plastics: Vec<&'a str>,
    pub(crate) expiries: Vec<i64>,
    pub(crate) generations: Vec<i64>,
    pub(crate) phases: Vec<i32>,
    pub(crate) states: Vec<Vec<u8>>,
}

impl<'a> ControlColumns<'a> {
    /// The controls that the transaction adds, or those that it changes.
    pub(crate) fn of(batch: &'a Batch, is_new: bool) -> Self {
        let mut columns = Self::default();
        for row in batch.controls.values().filter(|row| row.is_written && row.is_new == is_new) {
            let control = &row.control;
            columns.ids.push(Uuid::from_bytes(*control.id.as_bytes()));
            columns.tenants.push(control.card.tenant.as_str());
            columns.plastics.push(control.card.plastic.as_str());
            columns.expiries.push(number(control.expires_at.0));
            columns.generations.push(number(control.opened_generation));
            columns.phases.push(phase(control));
            columns.states.push(encode_control(control).into_vec());
        }
        columns
    }
}
