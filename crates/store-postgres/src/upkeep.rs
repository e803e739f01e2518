//! The check of a database, its migration, and the list of its engines.

use std::{collections::BTreeMap, time::Duration};

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    EngineChain, PostgresConfig, PostgresOpenError,
    batch::{LoadedCard, number, phase},
    connection::{Connection, QueryError, column},
    database_clock::{millis, transaction_time},
    key_versions::{KINDS, KeyVersions, Versions, connect, loaded_of, min_of, versions_of},
    migration::{self, Migrated},
    operator_chain::checkpoint,
    sql,
};
use audit::{
    archive::ArchivedPart,
    chain::{ChainVerifier, Checkpoint},
    entry::{Body, Entry},
    tree_head::{TreeHead, origin_of},
};
use domain::{
    control::{ControlState, Spent},
    storage_key::{LoadedKeys, StorageKeyKind},
    time::UnixMillis,
};
use store::StoreOpenError;
use store::codec::{decode_card_reference_key, decode_control};
use store::upkeep::{DAMAGE_MAX, Damage, RowCounts, UpkeepError};

/// The rows that are read at a time.
const PAGE_ROWS: i64 = 1_024;
/// How long a command waits for a statement at least.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);

/// Makes or migrates the tables, whatever `config` says about migrations.
///
/// # Errors
/// The configuration is wrong, no host accepts writes, the tables are of a newer release, or the database refuses.
pub async fn migrate(config: &PostgresConfig) -> Result<Migrated, PostgresOpenError> {
    let config = PostgresConfig { migrates: true, ..patient(config) };
    let (connection, _) = connect(&config).await?;
    migration::migrate(&connection, &config).await
}

/// The configuration of a command, which no caller waits for: the server ends a transaction that is silent for a third of this
/// time.
pub(crate) fn patient(config: &PostgresConfig) -> PostgresConfig {
    PostgresConfig { statement_timeout: config.statement_timeout.max(STATEMENT_TIMEOUT), ..config.clone() }
}

/// An engine of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineReport {
    /// The last entry of its chain, and its name.
    pub chain: EngineChain,
    /// Whether a process has registered the name and not closed its store.
    pub registered: bool,
    /// Whether the lease of that process has not expired.
    pub has_lease: bool,
    /// The storage keys that it has reported since its start; `None` before its report.
    pub loaded_keys: Option<LoadedKeys>,
    /// The database's time of its last transaction.
    pub last_transaction: UnixMillis,
}

/// The engines that have ever registered, by name.
///
/// # Errors
/// The configuration is wrong, no host answers, the tables are of another release, or a row can't be read.
pub async fn engines(config: &PostgresConfig) -> Result<Vec<EngineReport>, PostgresOpenError> {
    let (connection, _) = connect(config).await?;
    migration::check_version(&connection, config).await?;
    let database = |error: QueryError| PostgresOpenError::database(config, &error);
    let rows = connection.query_text(sql::ENGINES_READ, &[]).await.map_err(database)?;
    rows.iter().map(|row| read_engine(row).map_err(database)).collect()
}

fn read_engine(row: &Row) -> Result<EngineReport, QueryError> {
    Ok(EngineReport {
        chain: EngineChain { engine: column(row, 0)?, head: checkpoint(column(row, 6)?, column(row, 7)?)? },
        registered: column(row, 2)?,
        has_lease: column(row, 10)?,
        loaded_keys: loaded_of(row, 3)?,
        last_transaction: millis(column(row, 11)?),
    })
}

/// The result of a check of a database.
#[derive(Clone, Debug)]
pub struct DatabaseCheck {
    /// The numbers of rows. Audit entries are those of all chains.
    pub counts: RowCounts,
    /// The end of each chain that holds, by engine.
    pub chains: Vec<EngineChain>,
    /// PIN records under a storage key that is older than the lowest version in use: an engine re-encrypts them, but for
    /// one-way records.
    pub older_records: u64,
    /// At most [`DAMAGE_MAX`] places; empty for a database that is whole.
    pub damage: Vec<Damage>,
}

/// Reads every row of a database, in one transaction that changes nothing; engines may serve. With a checkpoint, the chain of its
/// origin must hold the checkpoint's entry.
///
/// # Errors
/// The database can't be opened or read, or the checkpoint is older than the archived entries. Damage is in the report.
pub async fn check(config: &PostgresConfig, expected: Option<&TreeHead>) -> Result<DatabaseCheck, UpkeepError> {
    let opened = |error: PostgresOpenError| UpkeepError::from(StoreOpenError::Database(error.into()));
    let config = &patient(config);
    let (connection, _) = connect(config).await.map_err(opened)?;
    migration::check_version(&connection, config).await.map_err(opened)?;
    let database = |error: QueryError| opened(PostgresOpenError::database(config, &error));
    connection.within(connection.send(sql::BEGIN_SNAPSHOT)).await.map_err(database)?;
    let mut check = Check::new(&connection);
    check.run(expected).await.map_err(database)?;
    connection.within(connection.send(sql::COMMIT)).await.map_err(database)?;
    if let (Some(archived), Some(expected)) = (check.archived_checkpoint, expected) {
        return Err(UpkeepError::CheckpointArchived { checkpoint: expected.head.sequence, archived });
    }
    let Check { counts, chains, older_records, damage, .. } = check;
    Ok(DatabaseCheck { counts, chains, older_records, damage })
}

/// A check that runs.
struct Check<'a> {
    connection: &'a Connection,
    now: UnixMillis,
    versions: Option<KeyVersions>,
    /// The highest versions that an engine may write under or has reported.
    known: Versions,
    counts: RowCounts,
    chains: Vec<EngineChain>,
    older_records: u64,
    /// By tenant: the counted rows less the numbers in `unregistered_cards`.
    unregistered: BTreeMap<String, i64>,
    /// The number of the last archived entry, where the expected entry is before it.
    archived_checkpoint: Option<u64>,
    damage: Vec<Damage>,
}

impl<'a> Check<'a> {
    fn new(connection: &'a Connection) -> Self {
        Self {
            connection,
            now: UnixMillis::default(),
            versions: None,
            known: [0; 4],
            counts: RowCounts::default(),
            chains: Vec::new(),
            older_records: 0,
            unregistered: BTreeMap::new(),
            archived_checkpoint: None,
            damage: Vec::new(),
        }
    }

    fn note(&mut self, place: impl Into<String>, problem: impl Into<String>) {
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(Damage::at(place, problem));
        }
    }

    async fn run(&mut self, expected: Option<&TreeHead>) -> Result<(), QueryError> {
        let time = self.connection.query_text(sql::CLOCK, &[]).await?;
        self.now = millis(transaction_time(time.first())?);
        let engines = self.connection.query_text(sql::ENGINES_READ, &[]).await?;
        if !self.connection.query_text(sql::COPY_MARK, &[]).await?.is_empty() {
            self.note("store_copy", "a copy into this database is not complete: repeat `pinseal store copy`");
        }
        self.key_versions(&engines).await?;
        self.cards().await?;
        self.unregistered_cards().await?;
        self.controls().await?;
        let mut is_found = expected.is_none();
        let mut named = Vec::new();
        for row in &engines {
            let name: String = column(row, 0)?;
            is_found |= self.chain(&name, row, expected).await?;
            named.push(name);
        }
        for row in self.connection.query_text(sql::AUDIT_ENDS, &[]).await? {
            let name: String = column(&row, 0)?;
            if !named.contains(&name) {
                self.note(format!("audit of {name}"), "the chain has no row in engines, which names its last entry");
            }
        }
        if let Some(expected) = expected.filter(|_| !is_found) {
            let problem = format!("no engine has the chain {}, which the checkpoint is of", expected.origin);
            self.note("audit", problem);
        }
        Ok(())
    }

    async fn key_versions(&mut self, engines: &[Row]) -> Result<(), QueryError> {
        let rows = self.connection.query_text(sql::KEY_VERSIONS_READ, &[]).await?;
        let versions = match KeyVersions::read(&rows, engines) {
            Ok(versions) => versions,
            Err(error) => {
                self.note("key_versions", error.to_string());
                return Ok(());
            }
        };
        if versions.card_reference_key.as_deref().is_some_and(|key| decode_card_reference_key(key).is_none()) {
            self.note("key_versions", "the card reference key can't be read");
        }
        for ((kind, min), (active, retired)) in
            KINDS.iter().zip(versions.min).zip(versions.active.into_iter().zip(versions.retired))
        {
            if min > active || (retired > 0 && retired >= min) {
                let problem =
                    format!("{kind:?}: the versions min {min}, active {active} and retired {retired} contradict");
                self.note("key_versions", problem);
            }
        }
        let (min, max) = versions.window();
        self.known = versions.active;
        for row in engines {
            let name: &str = column(row, 0)?;
            if (column::<Vec<i32>>(row, 8)?, column::<Vec<i32>>(row, 9)?) != (min.clone(), max.clone()) {
                self.note(format!("engines, {name}"), "its window of versions is not the one of key_versions");
            }
            let reported = loaded_of(row, 3).map(|loaded| loaded.map(|loaded| min_of(&loaded.newest())));
            for newest in [versions_of(&column::<Vec<i32>>(row, 9)?).map(Some), reported] {
                match newest {
                    Ok(newest) => {
                        let newest = newest.unwrap_or_default();
                        self.known.iter_mut().zip(newest).for_each(|(known, newest)| *known = newest.max(*known));
                    }
                    Err(error) => self.note(format!("engines, {name}"), error.to_string()),
                }
            }
            if let Ok(Some(loaded)) = loaded_of(row, 3)
                && column::<bool>(row, 2)?
                && let Some(version) = versions.lacks_active(&loaded)
            {
                let problem = format!("the engine reported its storage keys without the active version {version}");
                self.note(format!("engines, {name}"), problem);
            }
        }
        if engines.is_empty() {
            self.known = [u16::MAX; 4];
        }
        self.versions = Some(versions);
        Ok(())
    }

    async fn cards(&mut self) -> Result<(), QueryError> {
        let mut after = (String::new(), String::new());
        loop {
            let rows = self.connection.query_text(sql::CARDS_READ, &[&after.0, &after.1, &PAGE_ROWS]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = (column(last, 0)?, column(last, 1)?);
            rows.iter().try_for_each(|row| self.card(row))?;
        }
    }

    fn card(&mut self, row: &Row) -> Result<(), QueryError> {
        let (tenant, plastic): (&str, &str) = (column(row, 0)?, column(row, 1)?);
        // A plasticId may be an account number, so it is not named.
        let place = || format!("cards of {tenant}");
        if !column::<bool>(row, 2)? {
            *self.unregistered.entry(tenant.to_owned()).or_default() += 1;
        }
        let Ok(loaded) = LoadedCard::read(row) else {
            self.note(place(), format!("the name of a card is malformed ({} bytes)", plastic.len()));
            return Ok(());
        };
        let Some(card) = loaded.row else {
            self.note(place(), "the columns and the bytes of a card differ");
            return Ok(());
        };
        if column::<i64>(row, 10)? != number(card.state.hour) {
            self.note(place(), "the columns and the bytes of a card differ (opened_hour)");
        }
        if card.state.set_by.is_some() != card.pin.is_some() {
            self.note(place(), "a card has a PIN by its row and no PIN record, or the reverse");
        }
        if card.pin.is_none() && (column::<Option<i32>>(row, 8)?, column::<Option<i32>>(row, 9)?) != (None, None) {
            self.note(place(), "a card without a PIN record has a storage key");
        }
        if !card.registered {
            if card.pin.is_some() {
                self.note(place(), "a card with a PIN is not registered, and would be removed");
            }
            return Ok(());
        }
        self.counts.cards += 1;
        let Some(pin) = card.pin else { return Ok(()) };
        self.counts.pins += 1;
        let (version, at) = (pin.pin.key.version, KINDS.iter().position(|kind| *kind == pin.pin.key.kind));
        let Some((versions, at)) = self.versions.as_ref().zip(at) else { return Ok(()) };
        let of = |versions: &Versions| versions.get(at).copied().unwrap_or_default();
        let (min, retired, known) = (of(&versions.min), of(&versions.retired), of(&self.known));
        self.older_records += u64::from(version < min);
        // One-way records may have been given up.
        if version <= retired && retired > 0 && pin.pin.key.kind != StorageKeyKind::OneWay {
            let problem = format!("a PIN record is under version {version}, which was retired (up to {retired})");
            self.note(place(), problem);
        }
        if version > known {
            let problem = format!("a PIN record is under version {version}; the newest of any engine is {known}");
            self.note(place(), problem);
        }
        Ok(())
    }

    async fn unregistered_cards(&mut self) -> Result<(), QueryError> {
        for row in self.connection.query_text(sql::UNREGISTERED_ALL, &[]).await? {
            *self.unregistered.entry(column(&row, 0)?).or_default() -= column::<i64>(&row, 1)?;
        }
        for (tenant, difference) in std::mem::take(&mut self.unregistered) {
            if difference != 0 {
                let problem = format!("{difference} more cards than are counted in unregistered_cards");
                self.note(format!("cards of {tenant}, not registered"), problem);
            }
        }
        Ok(())
    }

    async fn controls(&mut self) -> Result<(), QueryError> {
        let mut after = Uuid::nil();
        loop {
            let rows = self.connection.query_text(sql::CONTROLS_READ, &[&after, &PAGE_ROWS]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = column(last, 0)?;
            rows.iter().try_for_each(|row| self.control(row))?;
        }
    }

    fn control(&mut self, row: &Row) -> Result<(), QueryError> {
        let id: Uuid = column(row, 0)?;
        let Some(control) = decode_control(column(row, 6)?) else {
            self.note("controls", format!("the control {id} can't be read"));
            return Ok(());
        };
        let (tenant, plastic): (&str, &str) = (column(row, 1)?, column(row, 2)?);
        let numbers: (i64, i64, i32) = (column(row, 3)?, column(row, 4)?, column(row, 5)?);
        let is_same = (control.id.as_bytes(), control.card.tenant.as_str(), control.card.plastic.as_str())
            == (id.as_bytes(), tenant, plastic)
            && (number(control.expires_at.0), number(control.opened_generation), phase(&control)) == numbers;
        if !is_same {
            self.note("controls", format!("the columns and the bytes of the control {id} differ"));
        }
        let is_live = self.now < control.keep_until();
        // A sweep may remove an unregistered card before its expired control.
        if is_live && !column::<bool>(row, 7)? {
            self.note("controls", format!("the card of the control {id} is absent"));
        }
        match control.state {
            ControlState::Spent(Spent::Set(_)) => self.counts.retry_controls += 1,
            ControlState::Spent(_) => {}
            ControlState::Open | ControlState::Keyed { .. } => self.counts.open_controls += u64::from(is_live),
        }
        Ok(())
    }

    /// Verifies the chain of an engine. Returns whether it is the chain of the checkpoint.
    async fn chain(&mut self, name: &str, row: &Row, expected: Option<&TreeHead>) -> Result<bool, QueryError> {
        let place = format!("audit of {name}");
        let head = match checkpoint(column(row, 6)?, column(row, 7)?) {
            Ok(head) => Some(head),
            Err(error) => {
                self.note(format!("engines, {name}"), error.to_string());
                None
            }
        };
        let archived = match column::<Option<&[u8]>>(row, 5)?.map(ArchivedPart::decode) {
            Some(None) => {
                self.note(format!("engines, {name}"), "the end of the archived audit entries can't be read");
                return Ok(false);
            }
            archived => archived.flatten(),
        };
        let start = archived.as_ref().map_or(Checkpoint::EMPTY, ArchivedPart::end);
        let mut origin = archived.map(|part| part.tree.origin().to_owned());
        let mut is_expected = expected.filter(|expected| Some(&expected.origin) == origin.as_ref()).is_some();
        let mut walk = ChainVerifier::after(start, Vec::new());
        let (mut after, mut named, mut found) = (number(start.sequence), Checkpoint::EMPTY, None);
        if let Some(expected) = expected.filter(|_| is_expected) {
            if expected.head.sequence < start.sequence {
                self.archived_checkpoint = Some(start.sequence);
            }
            found = (expected.head.sequence == start.sequence).then_some(start.hash);
        }
        'pages: loop {
            let rows = self.connection.query_text(sql::AUDIT_READ, &[&name, &after, &PAGE_ROWS]).await?;
            let Some(last) = rows.last() else { break };
            after = column(last, 0)?;
            for row in &rows {
                let (sequence, bytes, hash): (i64, &[u8], &[u8]) = (column(row, 0)?, column(row, 1)?, column(row, 2)?);
                let checked = match Entry::decode(bytes) {
                    Ok(entry) => walk.check(&entry).map(|()| entry).map_err(|error| error.to_string()),
                    Err(error) => Err(format!("entry {sequence}: {error}")),
                };
                let entry = match checked {
                    Ok(entry) => entry,
                    Err(problem) => {
                        self.note(&*place, problem);
                        break 'pages;
                    }
                };
                if sequence != number(entry.sequence) || *hash != entry.hash {
                    self.note(&*place, format!("entry {}: the columns and the bytes differ", entry.sequence));
                }
                self.counts.audit_entries += 1;
                let origin = origin.get_or_insert_with(|| origin_of(&entry));
                if let Some(expected) = expected.filter(|expected| expected.origin == *origin) {
                    is_expected = true;
                    found = found.or_else(|| (entry.sequence == expected.head.sequence).then_some(entry.hash));
                }
                match &entry.event.body {
                    Body::AuditArchived(part) => named = Checkpoint { sequence: part.last, hash: part.hash },
                    // A salvage may lose the event that names the start.
                    Body::StoreSalvaged(_) => named = start,
                    _ => {}
                }
            }
        }
        let end = walk.reached();
        if let Some(head) = head.filter(|head| *head != end) {
            let (head, end) = (head.sequence, end.sequence);
            self.note(&*place, format!("engines names entry {head} as the last, and the chain holds to {end}"));
        } else if named != start {
            let problem = "the newest event audit_archived and the stored end of the archived entries differ";
            self.note(&*place, problem);
        }
        if let Some(expected) = expected.filter(|_| is_expected && self.archived_checkpoint.is_none()) {
            let TreeHead { head: Checkpoint { sequence, hash }, .. } = expected;
            if *sequence > end.sequence {
                let end = end.sequence;
                let problem = format!(
                    "the chain holds to entry {end}, and the checkpoint is of entry {sequence}: later changes are lost"
                );
                self.note(&*place, problem);
            } else if found != Some(*hash) {
                let problem = format!(
                    "entry {sequence} is not the entry of the checkpoint: the database is older, or another one"
                );
                self.note(&*place, problem);
            }
        }
        self.chains.push(EngineChain { engine: name.to_owned(), head: end });
        Ok(is_expected)
    }
}
