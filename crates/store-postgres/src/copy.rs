//! The database as the source and as the target of [`store::copy::copy`].

use std::collections::HashSet;

use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    PostgresConfig, PostgresOpenError,
    batch::{CardColumns, CardRow, LoadedCard, Written, card_of, number, phase},
    connection::{Connection, QueryError, column},
    database_clock::{millis, transaction_time},
    key_versions::{KINDS, KeyVersions, connect, min_of, numbers},
    migration,
    operator_chain::checkpoint,
    registration::archived_end,
    sql,
    upkeep::patient,
};
use audit::{chain::Checkpoint, entry::Entry};
use domain::{
    card::CardKey,
    control::{ControlState, Spent},
    storage_key::MinKeyVersions,
    time::UnixMillis,
};
use store::StoreOpenError;
use store::codec::{decode_card, decode_control, decode_pin};
use store::copy::{Begun, CopiedCard, CopyError, CopyFacts, CopySource, CopyTarget, is_event_of};
use store::upkeep::Damage;

/// The controls that are read at a time.
const PAGE_CONTROLS: i64 = 1_024;

fn not_opened(error: PostgresOpenError) -> CopyError {
    StoreOpenError::Database(error.into()).into()
}

/// A connection of a copy.
struct Copying {
    connection: Connection,
    place: String,
    engine: String,
}

impl Copying {
    async fn open(config: &PostgresConfig) -> Result<Self, CopyError> {
        config.check_engine_name().map_err(not_opened)?;
        let (mut connection, _) = connect(config).await.map_err(not_opened)?;
        migration::check_version(&connection, config).await.map_err(not_opened)?;
        let prepared = connection.prepare(sql::COPIER).await;
        prepared.map_err(|error| not_opened(PostgresOpenError::database(config, &error)))?;
        Ok(Self { connection, place: config.place(), engine: config.engine_name.to_string() })
    }

    fn error(&self, error: impl ToString) -> CopyError {
        CopyError::Database { place: self.place.clone(), problem: error.to_string() }
    }

    fn damaged(&self, place: &str, problem: &str) -> CopyError {
        CopyError::Damaged { place: self.place.clone(), damage: Damage::at(place, problem) }
    }

    async fn query(&self, text: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, CopyError> {
        self.connection.query_text(text, values).await.map_err(|error| self.error(error))
    }

    async fn execute(&self, text: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<u64, CopyError> {
        self.connection.execute_text(text, values).await.map_err(|error| self.error(error))
    }

    fn read<T>(&self, read: impl FnOnce() -> Result<T, QueryError>) -> Result<T, CopyError> {
        read().map_err(|error| self.damaged("a row", &error.to_string()))
    }

    async fn begin(&self) -> Result<(), CopyError> {
        self.connection.begin().await.map_err(|error| self.error(error))
    }

    /// The rows are in the target once this returns; after an error they may be, and the next copy finds them.
    async fn commit(&self) -> Result<(), CopyError> {
        self.connection.commit().await.map_err(|error| self.error(error))
    }

    async fn cards(&self, after: Option<&CardKey>, limit: usize) -> Result<Vec<CopiedCard>, CopyError> {
        let after = after.map_or(("", ""), |card| (card.tenant.as_str(), card.plastic.as_str()));
        let rows = self.query(sql::COPY_CARDS, &[&after.0, &after.1, &size(limit)]).await?;
        let card = |row: &Row| {
            let LoadedCard { card, row: loaded } = self.read(|| LoadedCard::read(row))?;
            if loaded.is_none() {
                return Err(self.damaged("cards", "the columns and the bytes of a card differ"));
            }
            self.read(|| Ok(CopiedCard { card, state: column(row, 6)?, pin: column(row, 7)? }))
        };
        rows.iter().map(card).collect()
    }

    async fn entries(&self, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, CopyError> {
        let rows = self.query(sql::AUDIT_READ, &[&self.engine, &number(after), &size(limit)]).await?;
        rows.iter().map(|row| self.read(|| column(row, 1))).collect()
    }
}

fn size(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// What an engine changes in its row.
#[derive(PartialEq, Eq)]
struct EngineState {
    name: String,
    incarnation: Uuid,
    registered: bool,
    sequence: i64,
}

async fn engine_states(copying: &Copying) -> Result<Vec<EngineState>, CopyError> {
    let rows = copying.query(sql::ENGINES_READ, &[]).await?;
    let state = |row: &Row| {
        Ok(EngineState {
            name: column(row, 0)?,
            incarnation: column(row, 1)?,
            registered: column(row, 2)?,
            sequence: column(row, 6)?,
        })
    };
    rows.iter().map(|row| copying.read(|| state(row))).collect()
}

/// A database whose engines have stopped, read in one transaction that changes nothing.
pub struct PostgresSource {
    copying: Copying,
    config: PostgresConfig,
    engines: Vec<EngineState>,
    facts: CopyFacts,
    now: UnixMillis,
    after_control: Uuid,
    /// The controls that were usable, of the pass that runs.
    open_controls: u64,
    ended_controls: u64,
}

impl PostgresSource {
    /// Opens the database of a configuration. The copy takes the chain of its engine; `leaves_chains` leaves the chains of others.
    ///
    /// # Errors
    /// The database can't be opened, an engine is registered, other engines have chains and `leaves_chains` is not set, or the
    /// database is itself the unfinished target of a copy.
    pub async fn open(config: &PostgresConfig, leaves_chains: bool) -> Result<Self, CopyError> {
        let config = patient(config);
        let copying = Copying::open(&config).await?;
        let begun = copying.connection.within(copying.connection.send(sql::BEGIN_SNAPSHOT)).await;
        begun.map_err(|error| copying.error(error))?;
        let place = || config.place();
        if !copying.query(sql::COPY_MARK, &[]).await?.is_empty() {
            return Err(CopyError::Unfinished { place: place() });
        }
        let engines = engine_states(&copying).await?;
        let names = |is_named: &dyn Fn(&&EngineState) -> bool| {
            engines.iter().filter(is_named).map(|engine| &*engine.name).collect::<Vec<_>>().join(", ")
        };
        let registered = names(&|engine| engine.registered);
        if !registered.is_empty() {
            return Err(CopyError::EnginesRegistered { place: place(), engines: registered });
        }
        let others = names(&|engine| engine.name != copying.engine && engine.sequence > 0);
        if !others.is_empty() && !leaves_chains {
            return Err(CopyError::OtherChains { place: place(), engines: others });
        }
        let row = copying.query(sql::ENGINE_CHAIN, &[&copying.engine]).await?;
        let Some(row) = row.first() else {
            return Err(not_opened(PostgresOpenError::NoEngine { place: place(), engine: config.engine_name.clone() }));
        };
        let versions = copying.query(sql::KEY_VERSIONS_READ, &[]).await?;
        let keys = copying.query(sql::KEYS_IN_USE, &[&copying.engine]).await?;
        let time = copying.query(sql::CLOCK, &[]).await?;
        let facts = copying.read(|| {
            let [wrapped, iso_4, tdes, one_way] = KeyVersions::read(&versions, &[])?.min;
            let archived: Option<Vec<u8>> = column(row, 2)?;
            let keys = keys.first().ok_or_else(|| QueryError::Row("key_versions has no row".to_owned()))?;
            let newest: Option<i64> = time.first().map(|row| column(row, 1)).transpose()?.flatten();
            Ok(CopyFacts {
                source: copying.engine.clone(),
                end: checkpoint(column(row, 0)?, column(row, 1)?)?,
                archived_end: archived_end(archived.as_deref())?,
                archived,
                keys: column(keys, 0)?,
                card_reference_key: column(keys, 1)?,
                min: MinKeyVersions { wrapped, iso_4, tdes, one_way },
                time: millis(newest.unwrap_or_default()),
                rows: 0,
            })
        })?;
        let now = millis(copying.read(|| transaction_time(time.first()))?);
        let counts = copying.query(sql::COPY_COUNTS, &[&copying.engine, &number(facts.archived_end)]).await?;
        let rows = copying.read(|| counts.first().map_or(Ok(0), |row| column::<i64>(row, 0)))?;
        let facts = CopyFacts { rows: u64::try_from(rows).unwrap_or_default(), ..facts };
        let after_control = Uuid::nil();
        Ok(Self { copying, config, engines, facts, now, after_control, open_controls: 0, ended_controls: 0 })
    }
}

impl CopySource for PostgresSource {
    fn facts(&self) -> &CopyFacts {
        &self.facts
    }

    async fn cards(&mut self, after: Option<&CardKey>, limit: usize) -> Result<Vec<CopiedCard>, CopyError> {
        self.copying.cards(after, limit).await
    }

    async fn controls(&mut self) -> Result<Vec<Vec<u8>>, CopyError> {
        loop {
            let rows = self.copying.query(sql::CONTROLS_READ, &[&self.after_control, &PAGE_CONTROLS]).await?;
            let Some(last) = rows.last() else {
                self.ended_controls = std::mem::take(&mut self.open_controls);
                self.after_control = Uuid::nil();
                return Ok(Vec::new());
            };
            self.after_control = self.copying.read(|| column(last, 0))?;
            let mut found = Vec::new();
            for row in &rows {
                let state: Vec<u8> = self.copying.read(|| column(row, 6))?;
                let control = decode_control(&state);
                let control = control.ok_or_else(|| self.copying.damaged("controls", "a control can't be read"))?;
                match control.state {
                    ControlState::Spent(Spent::Set(_)) => found.push(state),
                    ControlState::Spent(_) => {}
                    ControlState::Open | ControlState::Keyed { .. } => {
                        self.open_controls += u64::from(self.now < control.expires_at);
                    }
                }
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }

    fn ended_controls(&self) -> u64 {
        self.ended_controls
    }

    async fn entries(&mut self, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, CopyError> {
        self.copying.entries(after, limit).await
    }

    async fn check_unchanged(&mut self) -> Result<(), CopyError> {
        let fresh = Copying::open(&self.config).await?;
        match engine_states(&fresh).await? == self.engines {
            true => Ok(()),
            false => Err(CopyError::Changed { place: self.config.place() }),
        }
    }
}

/// An empty database that a copy fills. Each of its transactions locks the key versions and the row of the copy.
pub struct PostgresTarget {
    copying: Copying,
    session: Uuid,
}

impl PostgresTarget {
    /// Opens the database of a configuration, whose engine gets the chain; makes or migrates the tables where it may.
    ///
    /// # Errors
    /// The database can't be opened, or the tables are of another release.
    pub async fn open(config: &PostgresConfig) -> Result<Self, CopyError> {
        let config = patient(config);
        if config.migrates {
            super::upkeep::migrate(&config).await.map_err(not_opened)?;
        }
        Ok(Self { copying: Copying::open(&config).await?, session: Uuid::new_v4() })
    }

    /// Begins a transaction, and locks the key versions (R10) and the row of the copy. An earlier process holds the lock of the row
    /// until what it sent is committed or undone.
    async fn lock(&self) -> Result<KeyVersions, CopyError> {
        self.copying.begin().await?;
        let versions = self.copying.query(sql::KEY_VERSIONS_LOCK, &[]).await?;
        let versions = self.copying.read(|| KeyVersions::read(&versions, &[]))?;
        let mark = self.copying.query(sql::COPY_MARK_LOCK, &[]).await?;
        let session = self.copying.read(|| mark.first().map(|row| column::<Uuid>(row, 0)).transpose())?;
        if session != Some(self.session) {
            return Err(CopyError::Displaced { place: self.copying.place.clone() });
        }
        Ok(versions)
    }

    async fn put_audit(&self, first: u64, entries: &[Vec<u8>]) -> Result<(), CopyError> {
        let mut hashes = Vec::with_capacity(entries.len());
        for entry in entries {
            let entry = Entry::decode(entry).map_err(|error| self.copying.damaged("audit", &error.to_string()))?;
            hashes.push(entry.hash.to_vec());
        }
        let sequences: Vec<i64> = (0..size(entries.len())).map(|at| number(first).saturating_add(at)).collect();
        let values: [&(dyn ToSql + Sync); 5] = [&self.copying.engine, &self.session, &sequences, &entries, &hashes];
        self.copying.execute(sql::AUDIT_INSERT, &values).await?;
        Ok(())
    }
}

impl CopyTarget for PostgresTarget {
    async fn begin(&mut self, facts: &CopyFacts) -> Result<Begun, CopyError> {
        let Self { copying, session } = self;
        let place = || copying.place.clone();
        copying.begin().await?;
        copying.query(sql::KEY_VERSIONS_LOCK, &[]).await?;
        let mark = copying.query(sql::COPY_MARK_LOCK, &[]).await?;
        if let Some(row) = mark.first() {
            let (engine, source): (String, String) = copying.read(|| Ok((column(row, 1)?, column(row, 2)?)))?;
            let end = copying.read(|| checkpoint(column(row, 3)?, column(row, 4)?))?;
            if (&engine, &source, end) != (&copying.engine, &facts.source, facts.end) {
                return Err(CopyError::OtherSource { place: place(), source_name: source, end: end.sequence });
            }
            copying.execute(sql::COPY_MARK_SESSION, &[session]).await?;
        } else {
            let rows = copying.query(sql::COPY_IS_EMPTY, &[]).await?;
            let is_empty = copying.read(|| rows.first().map_or(Ok(false), |row| column(row, 0)))?;
            if !is_empty {
                let event = copying.entries(facts.end.sequence, 1).await?;
                let event = event.first().and_then(|bytes| Entry::decode(bytes).ok());
                let event = event.filter(|entry| is_event_of(facts, &entry.event.body));
                let event = event.ok_or_else(|| CopyError::NotEmpty { place: place() })?;
                // R11: only an acknowledged commit says so for good.
                copying.commit().await?;
                return Ok(Begun::Complete(Checkpoint { sequence: event.sequence, hash: event.hash }));
            }
            let (end, head) = (number(facts.end.sequence), facts.end.hash.as_slice());
            let values: [&(dyn ToSql + Sync); 5] = [session, &copying.engine, &facts.source, &end, &head];
            copying.execute(sql::COPY_MARK_INSERT, &values).await?;
        }
        let card = copying.query(sql::COPY_LAST_CARD, &[]).await?;
        let card = copying.read(|| card.first().map(|row| card_of(column(row, 0)?, column(row, 1)?)).transpose())?;
        let last = copying.query(sql::COPY_LAST_ENTRY, &[&copying.engine]).await?;
        let last = copying.read(|| last.first().map_or(Ok(None), |row| column::<Option<i64>>(row, 0)))?;
        copying.commit().await?;
        let entry = last.and_then(|last| u64::try_from(last).ok()).unwrap_or(facts.archived_end);
        Ok(Begun::At { card, entry })
    }

    async fn put_cards(&mut self, cards: &[CopiedCard]) -> Result<(), CopyError> {
        let mut rows = Vec::with_capacity(cards.len());
        for CopiedCard { card, state, pin } in cards {
            let state = decode_card(state).ok_or_else(|| self.copying.damaged("cards", "a card can't be read"))?;
            let pin = pin
                .as_ref()
                .map(|pin| decode_pin(pin).ok_or_else(|| self.copying.damaged("pins", "a PIN record can't be read")));
            let pin = pin.transpose()?;
            rows.push((*card, CardRow { read: None, registered: true, state, pin, written: Written::StateAndPin }));
        }
        let versions = self.lock().await?;
        // R10: the key of a retired version may be gone. An engine re-encrypts the records under other older versions.
        for key in rows.iter().filter_map(|(_, row)| Some(row.pin.as_ref()?.pin.key)) {
            let retired = KINDS.iter().zip(versions.retired).find(|(kind, _)| **kind == key.kind);
            if retired.is_some_and(|(_, retired)| retired > 0 && key.version <= retired) {
                return Err(CopyError::Retired { version: key.version });
            }
        }
        let columns = CardColumns::of(rows.iter().map(|(card, row)| (card, row)));
        let values: [&(dyn ToSql + Sync); 11] = [
            &columns.tenants,
            &columns.plastics,
            &columns.registered,
            &columns.hours,
            &columns.generations,
            &columns.reserved,
            &columns.forgiven,
            &columns.states,
            &columns.pins,
            &columns.kinds,
            &columns.versions,
        ];
        self.copying.execute(sql::CARDS_INSERT, &values).await?;
        self.copying.commit().await
    }

    async fn put_controls(&mut self, controls: &[Vec<u8>]) -> Result<(), CopyError> {
        let unreadable = || self.copying.damaged("controls", "a control can't be read");
        let decoded = controls.iter().map(|control| decode_control(control).ok_or_else(unreadable));
        let decoded = decoded.collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<_> = decoded.iter().map(|control| Uuid::from_bytes(*control.id.as_bytes())).collect();
        let tenants: Vec<_> = decoded.iter().map(|control| control.card.tenant.as_str()).collect();
        let plastics: Vec<_> = decoded.iter().map(|control| control.card.plastic.as_str()).collect();
        let expiries: Vec<_> = decoded.iter().map(|control| number(control.expires_at.0)).collect();
        let generations: Vec<_> = decoded.iter().map(|control| number(control.opened_generation)).collect();
        let phases: Vec<_> = decoded.iter().map(phase).collect();
        self.lock().await?;
        let values: [&(dyn ToSql + Sync); 7] = [&ids, &tenants, &plastics, &expiries, &generations, &phases, &controls];
        self.copying.execute(sql::COPY_CONTROLS_INSERT, &values).await?;
        self.copying.commit().await
    }

    async fn put_entries(&mut self, first: u64, entries: &[Vec<u8>]) -> Result<(), CopyError> {
        self.lock().await?;
        self.put_audit(first, entries).await?;
        self.copying.commit().await
    }

    async fn cards(&mut self, after: Option<&CardKey>, limit: usize) -> Result<Vec<CopiedCard>, CopyError> {
        self.copying.cards(after, limit).await
    }

    async fn has_controls(&mut self, controls: &[Vec<u8>]) -> Result<(bool, u64), CopyError> {
        let ids = controls.iter().filter_map(|control| Some(Uuid::from_bytes(*control.first_chunk()?)));
        let ids: Vec<_> = ids.collect();
        let rows = self.copying.query(sql::COPY_CONTROLS_FOUND, &[&ids]).await?;
        let found = rows.iter().map(|row| self.copying.read(|| column::<Vec<u8>>(row, 0)));
        let found = found.collect::<Result<HashSet<_>, _>>()?;
        let counted = self.copying.query(sql::COPY_CONTROLS_COUNT, &[]).await?;
        let count = self.copying.read(|| counted.first().map_or(Ok(0), |row| column::<i64>(row, 0)))?;
        let is_there = controls.iter().all(|control| found.contains(control));
        Ok((is_there, u64::try_from(count).unwrap_or_default()))
    }

    async fn entries(&mut self, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, CopyError> {
        self.copying.entries(after, limit).await
    }

    async fn finish(&mut self, facts: &CopyFacts, entry: Vec<u8>, head: Checkpoint) -> Result<(), CopyError> {
        let mut versions = self.lock().await?;
        self.put_audit(head.sequence, std::slice::from_ref(&entry)).await?;
        versions.min = min_of(&facts.min);
        versions.active = versions.min;
        let (min, max) = versions.window();
        let (active, retired) = (numbers(versions.active), numbers(versions.retired));
        let values: [&(dyn ToSql + Sync); 5] = [&facts.keys, &facts.card_reference_key, &min, &active, &retired];
        self.copying.execute(sql::KEY_VERSIONS, &values).await?;
        let (sequence, hash) = (number(head.sequence), head.hash.as_slice());
        let time = number(facts.time.0).saturating_mul(1_000);
        let values: [&(dyn ToSql + Sync); 11] = [
            &self.copying.engine,
            &Uuid::new_v4(),
            &self.session,
            &sequence,
            &hash,
            &facts.keys,
            &min,
            &max,
            &time,
            &facts.archived,
            &migration::SUPPORTED,
        ];
        self.copying.execute(sql::COPY_ENGINE_INSERT, &values).await?;
        self.copying.execute(sql::COPY_MARK_DELETE, &[]).await?;
        self.copying.commit().await
    }
}
