//! One transaction of the writer: lock, read the time, apply in memory, write, commit. Three round trips.

use std::{collections::BTreeMap, time::Duration};

use futures::future::{join, join_all};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    PostgresConfig,
    batch::{Batch, CardColumns, ControlColumns, Loaded, LoadedCard, Needs, Unlocked, Written, number},
    connection::{CommitError, Connection, QueryError, column},
    database_clock::{DatabaseClock, transaction_time},
    key_versions::{KeyVersions, gaps, loaded_columns, numbers, window_of},
    migration::SUPPORTED,
    operator_chain::checkpoint,
    queue::{Command, Reply},
    registration::Session,
    sql,
};
use audit::chain::Checkpoint;
use domain::{
    card::Tenant,
    control::RETRY_GRACE,
    storage_key::{LoadedKeys, MaxKeyVersions},
    time::UnixMillis,
};
use store::codec::kind_code;

/// How long an expired control is kept: a call that began before the expiry may still use it.
const SWEEP_GRACE: Duration = Duration::from_secs(5);
/// The most rows of each table that one sweep removes.
const SWEEP_ROWS_MAX: i64 = 2_048;
/// The statements of a report of keys, which is rare.
const KEYS: &[&str] = &[
    sql::KEY_VERSIONS_LOCK,
    sql::ENGINES_LOCK,
    sql::KEY_VERSIONS,
    sql::ENGINES_WINDOW,
    sql::ENGINE_KEYS,
    sql::RECORD_BETWEEN,
];
/// The statements of a removal of archived entries.
const ARCHIVE: &[&str] = &[sql::AUDIT_HASHES, sql::ENGINE_ARCHIVED, sql::AUDIT_SWEEP];

/// An acknowledged transaction.
pub(crate) struct Done {
    pub(crate) answers: Vec<Reply>,
    pub(crate) head: Checkpoint,
    /// The number of the last archived entry, where it changed.
    pub(crate) archived: Option<u64>,
    pub(crate) max_keys: MaxKeyVersions,
}

/// Why a transaction was not acknowledged.
pub(crate) enum Failure {
    /// The server undid the transaction: it may be repeated on this connection.
    Undone(String),
    /// A control was opened between the statements that locked: the same.
    Unlocked,
    /// The connection is over, and COMMIT was not sent.
    Lost(String),
    /// R3: the connection is over, and COMMIT was sent. The answers are those of the commit.
    InDoubt { attempt: Uuid, done: Done, problem: String },
    /// The server refuses, as it will again.
    Refused(String),
    /// R1: the engine's row has another incarnation, session or version of the tables.
    Fenced,
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        match error {
            error if error.may_retry() => Self::Undone(error.to_string()),
            QueryError::Lost(problem) => Self::Lost(problem),
            error => Self::Refused(error.to_string()),
        }
    }
}

/// Applies changes in one transaction; without changes, renews the lease.
///
/// # Errors
/// See [`Failure`]. Nothing is committed but perhaps for [`Failure::InDoubt`].
pub(crate) async fn transact(
    connection: &mut Connection,
    session: &Session,
    config: &PostgresConfig,
    clock: &DatabaseClock,
    commands: &[Command],
    sweeps: bool,
    may_be_unlocked: bool,
) -> Result<Done, Failure> {
    let needs = Needs::of(commands);
    if needs.keys.is_some() {
        connection.prepare(KEYS).await?;
    }
    if !needs.archived.is_empty() || session.archived > 0 {
        connection.prepare(ARCHIVE).await?;
    }
    let loaded = load(connection, session, clock, &needs).await?;
    let (old, now) = (loaded.head, loaded.now);
    let mut batch = match Batch::new(&session.engine, loaded, may_be_unlocked)? {
        Ok(batch) => batch,
        Err(Unlocked) => return Err(Failure::Unlocked),
    };
    let answers: Vec<_> = commands.iter().map(|command| batch.apply(command)).collect();
    if sweeps {
        sweep(connection, session, &mut batch, now).await?;
    }
    let attempt = Uuid::new_v4();
    write(connection, session, config, &batch, attempt, (old, now)).await?;
    let archived = batch.archived.as_ref().map(|part| part.end().sequence);
    let done = Done { answers, head: batch.head, archived, max_keys: batch.window.max };
    match connection.commit().await {
        Ok(()) => Ok(done),
        Err(CommitError::Undone(error)) => Err(Failure::Undone(error.to_string())),
        Err(CommitError::InDoubt(problem)) => Err(Failure::InDoubt { attempt, done, problem }),
    }
}

/// Locks the rows and reads the time, in one round trip: the server executes the statements in the order in which they are
/// polled first. Locks are in one order for all engines: key versions, the engine's row, cards by key, controls by id.
async fn load(
    connection: &Connection,
    session: &Session,
    clock: &DatabaseClock,
    needs: &Needs,
) -> Result<Loaded, Failure> {
    let tenants: Vec<_> = needs.cards.iter().map(|card| card.tenant.as_str()).collect();
    let plastics: Vec<_> = needs.cards.iter().map(|card| card.plastic.as_str()).collect();
    let controls: Vec<_> = needs.controls.iter().map(|id| Uuid::from_bytes(*id.as_bytes())).collect();
    let counted: Vec<_> = needs.tenants.iter().map(Tenant::as_str).collect();
    let has_keys = needs.keys.is_some();
    let has_cards = !tenants.is_empty() || !controls.is_empty();
    let statements: [Query<'_>; 8] = [
        (has_keys, sql::KEY_VERSIONS_LOCK, &[]),
        (has_keys, sql::ENGINES_LOCK, &[]),
        // R1.
        (true, sql::ENGINE_LOCK, &[&session.engine, &session.incarnation, &session.session, &SUPPORTED]),
        (has_cards, sql::CARDS_LOCK, &[&tenants, &plastics, &controls]),
        (!controls.is_empty(), sql::CONTROLS_LOCK, &[&controls]),
        (!counted.is_empty(), sql::UNREGISTERED, &[&counted]),
        (!needs.archived.is_empty(), sql::AUDIT_HASHES, &[&session.engine, &needs.archived]),
        // R6: behind the locks, in a statement of its own.
        (true, sql::CLOCK, &[]),
    ];
    let sent = DatabaseClock::uptime();
    let queries = statements.map(async |(is_needed, text, values)| match is_needed {
        true => connection.query(text, values).await,
        false => Ok(Vec::new()),
    });
    let answers = async {
        let (begun, rows) = join(connection.send(sql::BEGIN), join_all(queries)).await;
        begun?;
        rows.into_iter().collect::<Result<Vec<_>, _>>()
    };
    let rows: [Vec<Row>; 8] = connection
        .within(answers)
        .await?
        .try_into()
        .map_err(|_| QueryError::Row("a statement has no answer".to_owned()))?;
    let [versions, engines, engine, cards, controls, unregistered, archived, time] = rows;
    let received = DatabaseClock::uptime();
    let engine = engine.first().ok_or(Failure::Fenced)?;
    let now = transaction_time(time.first())?;
    clock.note(now, sent, received);
    let keys = if has_keys { Some(KeyVersions::read(&versions, &engines)?) } else { None };
    let record_unopened = match (&keys, &needs.keys) {
        (Some(keys), Some(loaded)) => record_unopened(connection, keys, loaded).await?,
        _ => None,
    };
    let window = window_of(&column::<Vec<i32>>(engine, 2)?, &column::<Vec<i32>>(engine, 3)?)?;
    Ok(Loaded {
        now,
        head: checkpoint(column(engine, 0)?, column(engine, 1)?)?,
        window,
        cards: cards.iter().map(LoadedCard::read).collect::<Result<_, _>>()?,
        controls,
        unregistered,
        keys,
        other_keys: other_keys(&engines, &session.engine)?,
        record_unopened,
        archived,
        archived_end: session.archived,
    })
}

/// The lists of keys of the other engines that have started, from rows of [`sql::ENGINES_LOCK`].
fn other_keys(engines: &[Row], own: &str) -> Result<Vec<Vec<u8>>, QueryError> {
    let mut lists = Vec::new();
    for row in engines {
        let (name, registered): (&str, bool) = (column(row, 0)?, column(row, 2)?);
        let has_reported = column::<Option<Vec<i32>>>(row, 3)?.is_some();
        if name != own && registered && has_reported {
            lists.extend(column::<Option<Vec<u8>>>(row, 8)?);
        }
    }
    Ok(lists)
}

/// R2: the version of a record that this engine can't open. One engine alone may write under a version before it reports it.
async fn record_unopened(
    connection: &Connection,
    versions: &KeyVersions,
    loaded: &LoadedKeys,
) -> Result<Option<u16>, QueryError> {
    let questions = gaps(versions.retired, loaded).into_iter().map(async |(kind, after, before)| {
        let values: [&(dyn ToSql + Sync); 3] = [&i32::from(kind_code(kind)), &after, &before];
        connection.query(sql::RECORD_BETWEEN, &values).await
    });
    for rows in
        connection.within(async { join_all(questions).await.into_iter().collect::<Result<Vec<_>, _>>() }).await?
    {
        if let Some(row) = rows.first() {
            return Ok(Some(u16::try_from(column::<i32>(row, 0)?).unwrap_or(u16::MAX)));
        }
    }
    Ok(None)
}

/// Whether a query is sent, its text and its values.
type Query<'a> = (bool, &'static str, &'a [&'a (dyn ToSql + Sync)]);
/// The number of rows that a statement must change, its text and its values. A statement for no row is not sent.
type Write<'a> = (usize, &'static str, &'a [&'a (dyn ToSql + Sync)]);

/// Writes the rows, the entries and, last, the head of the chain, in one round trip. COMMIT is sent after their counts were
/// compared.
async fn write(
    connection: &Connection,
    session: &Session,
    config: &PostgresConfig,
    batch: &Batch,
    attempt: Uuid,
    (old, now): (Checkpoint, i64),
) -> Result<(), Failure> {
    let Session { engine, incarnation, session: own, .. } = session;
    let written = |written| batch.written_cards().filter(move |(_, row)| row.read.is_some() && row.written == written);
    let new = CardColumns::of(batch.written_cards().filter(|(_, row)| row.read.is_none()));
    let (states, pins) = (CardColumns::of(written(Written::State)), CardColumns::of(written(Written::StateAndPin)));
    let (opened, changed) = (ControlColumns::of(batch, true), ControlColumns::of(batch, false));
    let added: BTreeMap<_, _> = batch.added.iter().filter(|(_, added)| **added != 0).collect();
    let tenants: Vec<_> = added.keys().map(|tenant| tenant.as_str()).collect();
    let counts: Vec<_> = added.values().map(|added| **added).collect();
    let (before, after) = (number(old.sequence), number(batch.head.sequence));
    let lease = config.lease.as_secs_f64();
    let report = batch.report.as_ref();
    let keys = report.map(|report| &report.keys);
    let (kinds, loaded) = report.map(|report| loaded_columns(&report.loaded)).unwrap_or_default();
    let reference = report.and_then(|report| report.card_reference_key.as_ref());
    let versions = report.map(|report| &report.versions);
    let (min, max) = versions.map(KeyVersions::window).unwrap_or_default();
    let (active, retired) =
        versions.map(|versions| (numbers(versions.active), numbers(versions.retired))).unwrap_or_default();
    let engines = versions.map_or(0, |versions| versions.engines.len());
    let reports = usize::from(report.is_some());
    let part = batch.archived.as_ref().map(|part| part.encode());
    let head = batch.head.hash.as_slice();
    let statements: [Write<'_>; 12] = [
        (
            new.tenants.len(),
            sql::CARDS_INSERT,
            &[
                &new.tenants,
                &new.plastics,
                &new.registered,
                &new.hours,
                &new.generations,
                &new.reserved,
                &new.forgiven,
                &new.states,
                &new.pins,
                &new.kinds,
                &new.versions,
            ],
        ),
        (
            states.tenants.len(),
            sql::CARDS_UPDATE,
            &[
                &states.tenants,
                &states.plastics,
                &states.registered,
                &states.hours,
                &states.generations,
                &states.reserved,
                &states.forgiven,
                &states.states,
                &states.read_generations,
                &states.read_reserved,
            ],
        ),
        (
            pins.tenants.len(),
            sql::PINS_UPDATE,
            &[
                &pins.tenants,
                &pins.plastics,
                &pins.registered,
                &pins.hours,
                &pins.generations,
                &pins.reserved,
                &pins.forgiven,
                &pins.states,
                &pins.read_generations,
                &pins.read_reserved,
                &pins.pins,
                &pins.kinds,
                &pins.versions,
            ],
        ),
        (
            opened.ids.len(),
            sql::CONTROLS_INSERT,
            &[
                &opened.ids,
                &opened.tenants,
                &opened.plastics,
                &opened.expiries,
                &opened.generations,
                &opened.phases,
                &opened.states,
            ],
        ),
        (changed.ids.len(), sql::CONTROLS_UPDATE, &[&changed.ids, &changed.phases, &changed.states]),
        (tenants.len(), sql::UNREGISTERED_ADD, &[engine, &tenants, &counts]),
        (reports, sql::ENGINE_KEYS, &[engine, &keys, &kinds, &loaded]),
        (reports, sql::KEY_VERSIONS, &[&keys, &reference, &min, &active, &retired]),
        // R10: every engine's row, which `load` locked in the order of their names.
        (engines, sql::ENGINES_WINDOW, &[&min, &max]),
        (usize::from(part.is_some()), sql::ENGINE_ARCHIVED, &[engine, &part]),
        (
            batch.entries.len(),
            sql::AUDIT_INSERT,
            &[engine, &attempt, &batch.sequences, &batch.entries, &batch.hashes_of_entries],
        ),
        // R1.
        (1, sql::ENGINE_HEAD, &[engine, incarnation, own, &before, &after, &head, &lease, &now]),
    ];
    let writes = statements.map(async |(rows, text, values)| match u64::try_from(rows) {
        Ok(0) => Ok(true),
        rows => Ok(Ok(connection.execute(text, values).await?) == rows),
    });
    let as_expected =
        connection.within(async { join_all(writes).await.into_iter().collect::<Result<Vec<_>, _>>() }).await?;
    // The rows are locked, so a count differs where the guards of a statement contradict the rules.
    if as_expected.contains(&false) {
        return Err(Failure::Refused("a statement changed another number of rows than the rules".to_owned()));
    }
    Ok(())
}

/// Removes rows that nothing reads any more. Rows that another engine locked are passed over, and the cards of the batch, which
/// its changes may write.
async fn sweep(connection: &Connection, session: &Session, batch: &mut Batch, now: i64) -> Result<(), Failure> {
    let (tenants, plastics): (Vec<_>, Vec<_>) =
        batch.locked_cards().map(|card| (card.tenant.as_str(), card.plastic.as_str())).unzip();
    let ago =
        |time: Duration| UnixMillis(u64::try_from(now / 1_000).unwrap_or_default()).0.saturating_sub(millis_of(time));
    // A control that has set a PIN is kept for retries; the others are few.
    let expired = number(ago(RETRY_GRACE + SWEEP_GRACE));
    // `domain::rules::is_forgotten`: the hour of the last control and the next one are over.
    let hour = number((ago(SWEEP_GRACE) / 3_600_000).saturating_sub(1));
    let statements = async {
        connection.execute(sql::CONTROLS_SWEEP, &[&expired, &SWEEP_ROWS_MAX]).await?;
        connection.query(sql::CARDS_SWEEP, &[&hour, &SWEEP_ROWS_MAX, &tenants, &plastics]).await
    };
    for row in connection.within(statements).await? {
        if let Ok(tenant) = Tenant::parse(column(&row, 0)?) {
            *batch.added.entry(tenant).or_default() -= 1;
        }
    }
    if session.archived > 0 {
        let archived = number(session.archived);
        connection.execute_text(sql::AUDIT_SWEEP, &[&session.engine, &archived, &SWEEP_ROWS_MAX]).await?;
    }
    Ok(())
}

fn millis_of(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
