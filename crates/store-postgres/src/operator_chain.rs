//! The audit chain of what changes keys and registrations without an engine: the commands of an operator, and an activation by
//! the end of an engine. It has a row among the engines, which is never registered. No process signs its checkpoints.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    connection::{Connection, QueryError, column},
    migration::SUPPORTED,
    postgres_config::OPERATOR,
    sql,
};
use audit::{
    chain::Checkpoint,
    entry::{self, Body, Event, Isolation, Level, Outcome, Stamp},
};

/// Appends an event of `audit_user` to the chain of [`OPERATOR`], within a transaction that has locked the key versions: no other
/// transaction writes this chain.
pub(crate) async fn record(connection: &Connection, audit_user: &str, body: Body) -> Result<(), QueryError> {
    let stamp = Stamp { level: Level::Host, token: "-".into(), isolation: Isolation::Process, keys: [].into() };
    let event = Event {
        at: clock::now(),
        caller: OPERATOR.into(),
        tenant: None,
        audit_user: audit_user.into(),
        request: None,
        outcome: Outcome::Done,
        stamp: stamp.into(),
        body,
    };
    let empty = Checkpoint::EMPTY.hash;
    connection.execute_text(sql::OPERATOR_INSERT, &[&OPERATOR, &Uuid::new_v4(), &empty.as_slice(), &SUPPORTED]).await?;
    let rows = connection.query_text(sql::OPERATOR_HEAD, &[&OPERATOR]).await?;
    let row = rows.first().ok_or_else(|| QueryError::Row("engines has no row of the operator".to_owned()))?;
    let head = checkpoint(column(row, 0)?, column(row, 1)?)?;
    let (sequence, mut bytes) = (head.sequence.saturating_add(1), Vec::new());
    let hash = entry::append(&mut bytes, sequence, &head.hash, &event).to_vec();
    let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
    let values: [&(dyn ToSql + Sync); 5] = [&OPERATOR, &Uuid::new_v4(), &vec![sequence], &vec![bytes], &vec![&hash]];
    connection.execute_text(sql::AUDIT_INSERT, &values).await?;
    connection.execute_text(sql::OPERATOR_HEAD_SET, &[&OPERATOR, &sequence, &hash]).await?;
    Ok(())
}

/// A checkpoint of two columns.
pub(crate) fn checkpoint(sequence: i64, hash: &[u8]) -> Result<Checkpoint, QueryError> {
    let (sequence, hash) = (u64::try_from(sequence).ok(), hash.try_into().ok());
    let checkpoint = sequence.zip(hash).map(|(sequence, hash)| Checkpoint { sequence, hash });
    checkpoint.ok_or_else(|| QueryError::Row("the head of the audit chain is malformed".to_owned()))
}
