//! Every statement that the store sends, but for the migrations. Kept to what PostgreSQL, CockroachDB and YugabyteDB document:
//! no advisory lock, no LISTEN, no transaction ids, no sequences. Each text is sent as it stands here, never built.

/// READ COMMITTED in any case: each statement sees what was committed when it had its locks.
pub(crate) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
pub(crate) const COMMIT: &str = "COMMIT";
pub(crate) const ROLLBACK: &str = "ROLLBACK";

/// The settings of a session: $1 the schema, $2 milliseconds after which the server ends a transaction whose client is silent,
/// so that a paused engine does not hold the rows of a card, $3 milliseconds after which it ends the wait for a lock, but never
/// the wait of a COMMIT. A warning of COMMIT must arrive (R3).
pub(crate) const SESSION_SETTINGS: &str = "SELECT set_config('search_path', $1, false), \
     set_config('idle_in_transaction_session_timeout', $2, false), set_config('lock_timeout', $3, false), \
     set_config('client_min_messages', 'warning', false)";
/// The writer finds rows by key alone. A plan of an empty table, which a prepared statement keeps, would read whole tables later.
/// These settings make a plan look expensive, and PostgreSQL would compile it, for 300 ms.
pub(crate) const PLANNER_SETTINGS: &str = "SELECT set_config(name, 'off', false) FROM pg_settings \
     WHERE name IN ('enable_seqscan', 'enable_hashjoin', 'enable_mergejoin', 'jit')";
/// The server looks for its client this often, in milliseconds, where it can: a statement whose connection was closed would
/// wait for its locks forever, and each new attempt would add one. A commit that waits for its standby goes on waiting.
pub(crate) const CLIENT_CHECK: &str =
    "SELECT set_config(name, '1000', false) FROM pg_settings WHERE name = 'client_connection_check_interval'";
/// A commit that is answered before it is durable would be lost (R11).
pub(crate) const SYNCHRONOUS_COMMIT: &str = "SHOW synchronous_commit";
pub(crate) const SYNCHRONOUS_COMMIT_SET: &str = "SELECT set_config('synchronous_commit', $1, false)";
/// Microseconds since 1970-01-01T00:00:00Z, and the newest ones that a transaction of any engine has used. A statement of its own
/// after the locks: a statement that waits for a lock may have judged the time before it waited (R6).
pub(crate) const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, \
     (SELECT max(newest_time) FROM engines)";

/// R1: the engine's row, first in each transaction.
pub(crate) const ENGINE_LOCK: &str = "SELECT sequence, head, min_versions, max_versions FROM engines \
     WHERE name = $1 AND incarnation = $2 AND session = $3 AND schema_version = $4 FOR UPDATE";
/// R1: the head of the chain, last in each transaction; with it the lease.
pub(crate) const ENGINE_HEAD: &str = "UPDATE engines SET sequence = $5, head = $6, newest_time = $8, \
     lease_until = clock_timestamp() + $7::float8 * interval '1 second' \
     WHERE name = $1 AND incarnation = $2 AND session = $3 AND sequence = $4";
/// R3: the engine's row, whichever process has its name. Waits for a transaction of an earlier connection.
pub(crate) const ENGINE: &str = "SELECT incarnation, session, schema_version FROM engines WHERE name = $1 FOR UPDATE";
/// R3: fences what the connection of the session before has sent and the server has not executed yet.
pub(crate) const ENGINE_FENCE: &str = "UPDATE engines SET session = $4, \
     lease_until = clock_timestamp() + $5::float8 * interval '1 second' WHERE name = $1 AND incarnation = $2 AND session = $3";
/// R3: the head, and whether an attempt wrote an entry behind the last one that is known.
pub(crate) const ENGINE_ATTEMPT: &str = "SELECT sequence, head, EXISTS (SELECT 1 FROM audit \
     WHERE engine = $1 AND sequence > $2 AND attempt = $3) FROM engines WHERE name = $1";

/// R2, R10: the lock of registrations and rotations.
pub(crate) const KEY_VERSIONS_LOCK: &str = "SELECT keys, card_reference_key, min_versions, active_versions, retired_versions \
     FROM key_versions WHERE id = 1 FOR UPDATE";
/// R2, R10: under the lock of the key versions, every engine's row.
pub(crate) const ENGINES_LOCK: &str = "SELECT name, incarnation, registered, loaded_kinds, loaded_versions, archived, \
     sequence, head, keys FROM engines ORDER BY name FOR UPDATE";
/// R2: compare-and-set on the incarnation, after the lease has expired, or at once where $6 says that no process is registered.
pub(crate) const ENGINE_REGISTER: &str = "UPDATE engines SET incarnation = $3, session = $4, registered = true, \
     loaded_kinds = NULL, loaded_versions = NULL, lease_until = clock_timestamp() + $5::float8 * interval '1 second', \
     schema_version = $7 \
     WHERE name = $1 AND incarnation = $2 AND ($6::boolean OR lease_until < clock_timestamp())";
/// R2: an engine that was never registered.
pub(crate) const ENGINE_INSERT: &str = "INSERT INTO engines (name, incarnation, session, registered, lease_until, sequence, \
     head, min_versions, max_versions, newest_time, schema_version) VALUES ($1, $2, $3, true, \
     clock_timestamp() + $4::float8 * interval '1 second', 0, $5, '{0,0,0,0}', '{0,0,0,0}', 0, $6)";
/// The engine stops: it writes nothing more, and blocks no rotation.
pub(crate) const ENGINE_DEREGISTER: &str = "UPDATE engines SET incarnation = $3, registered = false, loaded_kinds = NULL, \
     loaded_versions = NULL, lease_until = clock_timestamp() - interval '1 second' WHERE name = $1 AND incarnation = $2";
/// R10: an engine whose lease has expired; the new incarnation fences it.
pub(crate) const ENGINE_DEREGISTER_EXPIRED: &str = "UPDATE engines SET incarnation = $2, registered = false, \
     loaded_kinds = NULL, loaded_versions = NULL WHERE name = $1 AND registered AND lease_until < clock_timestamp()";
/// The row of the chain of [`super::key_versions::OPERATOR`], which is no engine: under the lock of the key versions.
pub(crate) const OPERATOR_INSERT: &str = "INSERT INTO engines (name, incarnation, session, registered, lease_until, sequence, \
     head, min_versions, max_versions, newest_time, schema_version) VALUES ($1, $2, $2, false, \
     clock_timestamp() - interval '1 second', 0, $3, '{0,0,0,0}', '{0,0,0,0}', 0, $4) ON CONFLICT (name) DO NOTHING";
pub(crate) const OPERATOR_HEAD: &str = "SELECT sequence, head FROM engines WHERE name = $1 FOR UPDATE";
pub(crate) const OPERATOR_HEAD_SET: &str = "UPDATE engines SET sequence = $2, head = $3 WHERE name = $1";
/// R10: the window of every engine, which waits for each running transaction.
pub(crate) const ENGINES_WINDOW: &str = "UPDATE engines SET min_versions = $1, max_versions = $2";
/// R10: the report of an engine.
pub(crate) const ENGINE_KEYS: &str =
    "UPDATE engines SET keys = $2, loaded_kinds = $3, loaded_versions = $4 WHERE name = $1";
pub(crate) const KEY_VERSIONS: &str = "UPDATE key_versions SET keys = COALESCE($1, keys), \
     card_reference_key = COALESCE($2, card_reference_key), min_versions = $3, active_versions = $4, retired_versions = $5 \
     WHERE id = 1";
/// R2: the lowest version of a kind between two versions, both excluded, that a record is under: one question of the index.
pub(crate) const RECORD_BETWEEN: &str = "SELECT pin_version FROM cards WHERE pin IS NOT NULL AND pin_kind = $1 \
     AND pin_version > $2 AND pin_version < $3 ORDER BY pin_version LIMIT 1";
/// R10: the number of these records, for a retirement that gives them up.
pub(crate) const RECORDS_BETWEEN: &str = "SELECT count(*) FROM cards WHERE pin IS NOT NULL AND pin_kind = $1 \
     AND pin_version > $2 AND pin_version < $3";

/// The cards by name, and those of controls by id, in the order of their keys.
pub(crate) const CARDS_LOCK: &str = "SELECT c.tenant, c.plastic_id, c.registered, c.generation, c.tries_reserved, \
     c.tries_forgiven, c.state, c.pin, c.pin_kind, c.pin_version FROM cards AS c WHERE (c.tenant, c.plastic_id) IN \
     (SELECT w.tenant, w.plastic_id FROM unnest($1::text[], $2::text[]) AS w (tenant, plastic_id) \
     UNION SELECT k.tenant, k.plastic_id FROM controls AS k WHERE k.id = ANY ($3::uuid[])) \
     ORDER BY c.tenant, c.plastic_id FOR UPDATE";
pub(crate) const CONTROLS_LOCK: &str =
    "SELECT state, phase, expires_at FROM controls WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE";
pub(crate) const CARDS_INSERT: &str = "INSERT INTO cards (tenant, plastic_id, registered, opened_hour, generation, \
     tries_reserved, tries_forgiven, state, pin, pin_kind, pin_version) SELECT * FROM unnest($1::text[], $2::text[], \
     $3::boolean[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[], $9::bytea[], $10::integer[], \
     $11::integer[])";
/// A card without its PIN. The guards repeat what the rules decided on the locked row (R6, R9).
pub(crate) const CARDS_UPDATE: &str = "UPDATE cards AS c SET registered = n.registered, opened_hour = n.opened_hour, \
     generation = n.generation, tries_reserved = n.tries_reserved, \
     tries_forgiven = GREATEST(c.tries_forgiven, n.tries_forgiven), state = n.state \
     FROM unnest($1::text[], $2::text[], $3::boolean[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[], \
     $9::bigint[], $10::bigint[]) AS n (tenant, plastic_id, registered, opened_hour, generation, tries_reserved, \
     tries_forgiven, state, read_generation, read_reserved) \
     WHERE c.tenant = n.tenant AND c.plastic_id = n.plastic_id AND c.generation = n.read_generation \
     AND c.tries_reserved = n.read_reserved";
/// A card and its PIN.
pub(crate) const PINS_UPDATE: &str = "UPDATE cards AS c SET registered = n.registered, opened_hour = n.opened_hour, \
     generation = n.generation, tries_reserved = n.tries_reserved, \
     tries_forgiven = GREATEST(c.tries_forgiven, n.tries_forgiven), state = n.state, pin = n.pin, pin_kind = n.pin_kind, \
     pin_version = n.pin_version \
     FROM unnest($1::text[], $2::text[], $3::boolean[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[], \
     $9::bigint[], $10::bigint[], $11::bytea[], $12::integer[], $13::integer[]) AS n (tenant, plastic_id, registered, \
     opened_hour, generation, tries_reserved, tries_forgiven, state, read_generation, read_reserved, pin, pin_kind, \
     pin_version) \
     WHERE c.tenant = n.tenant AND c.plastic_id = n.plastic_id AND c.generation = n.read_generation \
     AND c.tries_reserved = n.read_reserved";
pub(crate) const CONTROLS_INSERT: &str = "INSERT INTO controls (id, tenant, plastic_id, expires_at, opened_generation, phase, \
     state) SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::integer[], $7::bytea[])";
/// A control that was spent stays spent.
pub(crate) const CONTROLS_UPDATE: &str = "UPDATE controls AS k SET phase = n.phase, state = n.state \
     FROM unnest($1::uuid[], $2::integer[], $3::bytea[]) AS n (id, phase, state) WHERE k.id = n.id AND k.phase < 2";
pub(crate) const AUDIT_INSERT: &str = "INSERT INTO audit (engine, attempt, sequence, entry, hash) \
     SELECT $1, $2, n.sequence, n.entry, n.hash FROM unnest($3::bigint[], $4::bytea[], $5::bytea[]) \
     AS n (sequence, entry, hash)";
pub(crate) const AUDIT_HASHES: &str =
    "SELECT sequence, hash FROM audit WHERE engine = $1 AND sequence = ANY ($2::bigint[])";
pub(crate) const ENGINE_ARCHIVED: &str = "UPDATE engines SET archived = $2 WHERE name = $1";
pub(crate) const UNREGISTERED: &str = "SELECT tenant, sum(cards)::bigint FROM unregistered_cards \
     WHERE tenant = ANY ($1::text[]) GROUP BY tenant";
pub(crate) const UNREGISTERED_ADD: &str = "INSERT INTO unregistered_cards AS u (engine, tenant, cards) \
     SELECT $1, n.tenant, n.cards FROM unnest($2::text[], $3::bigint[]) AS n (tenant, cards) \
     ON CONFLICT (engine, tenant) DO UPDATE SET cards = u.cards + excluded.cards";

/// Controls that expired before $1, at most $2; those that another engine sweeps are passed over.
pub(crate) const CONTROLS_SWEEP: &str = "DELETE FROM controls WHERE id IN \
     (SELECT id FROM controls WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)";
/// Unregistered cards without a control since the hour $1, at most $2, but for those that the transaction itself has locked.
pub(crate) const CARDS_SWEEP: &str = "DELETE FROM cards WHERE (tenant, plastic_id) IN \
     (SELECT tenant, plastic_id FROM cards WHERE NOT registered AND opened_hour < $1 AND (tenant, plastic_id) NOT IN \
     (SELECT w.tenant, w.plastic_id FROM unnest($3::text[], $4::text[]) AS w (tenant, plastic_id)) \
     ORDER BY opened_hour LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING tenant";
pub(crate) const AUDIT_SWEEP: &str = "DELETE FROM audit WHERE engine = $1 AND sequence IN \
     (SELECT sequence FROM audit WHERE engine = $1 AND sequence <= $2 ORDER BY sequence LIMIT $3)";

// Reads. They only inform (R11): what they return may be what a failover takes away.
pub(crate) const CARD: &str = "SELECT tenant, plastic_id, registered, generation, tries_reserved, tries_forgiven, state, pin, \
     pin_kind, pin_version FROM cards WHERE tenant = $1 AND plastic_id = $2";
pub(crate) const CONTROLS: &str = "SELECT k.id, k.state, c.state FROM controls AS k LEFT JOIN cards AS c \
     ON c.tenant = k.tenant AND c.plastic_id = k.plastic_id WHERE k.id = ANY ($1::uuid[])";
pub(crate) const PINS: &str = "SELECT tenant, plastic_id, pin FROM cards WHERE pin IS NOT NULL \
     AND (tenant, plastic_id) > ($1, $2) ORDER BY tenant, plastic_id LIMIT $3";
pub(crate) const LIVE_CONTROLS: &str = "SELECT state FROM controls WHERE phase = 1 AND expires_at > $1";
pub(crate) const HAS_CARDS: &str = "SELECT EXISTS (SELECT 1 FROM cards)";
pub(crate) const KEYS_IN_USE: &str = "SELECT COALESCE((SELECT keys FROM engines WHERE name = $1), keys), card_reference_key \
     FROM key_versions WHERE id = 1";
/// The lists of the other engines that have started, and the last list of all where there is data.
pub(crate) const OTHER_KEYS: &str = "SELECT keys FROM engines WHERE name <> $1 AND registered AND keys IS NOT NULL \
     AND loaded_kinds IS NOT NULL \
     UNION SELECT keys FROM key_versions WHERE keys IS NOT NULL AND EXISTS (SELECT 1 FROM cards)";
pub(crate) const AUDIT: &str =
    "SELECT entry FROM audit WHERE engine = $1 AND sequence >= $2 ORDER BY sequence LIMIT $3";
pub(crate) const ARCHIVED: &str = "SELECT archived FROM engines WHERE name = $1";
pub(crate) const CHAINS: &str = "SELECT name, sequence, head FROM engines ORDER BY name";

// Upkeep. A check and a copy read pages in one snapshot: REPEATABLE READ sees what was committed before its first read.
pub(crate) const BEGIN_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
pub(crate) const KEY_VERSIONS_READ: &str = "SELECT keys, card_reference_key, min_versions, active_versions, retired_versions \
     FROM key_versions WHERE id = 1";
pub(crate) const ENGINES_READ: &str = "SELECT name, incarnation, registered, loaded_kinds, loaded_versions, archived, \
     sequence, head, min_versions, max_versions, lease_until >= clock_timestamp(), newest_time FROM engines ORDER BY name";
pub(crate) const CARDS_READ: &str = "SELECT tenant, plastic_id, registered, generation, tries_reserved, tries_forgiven, state, \
     pin, pin_kind, pin_version, opened_hour FROM cards WHERE (tenant, plastic_id) > ($1, $2) \
     ORDER BY tenant, plastic_id LIMIT $3";
pub(crate) const CONTROLS_READ: &str = "SELECT k.id, k.tenant, k.plastic_id, k.expires_at, k.opened_generation, k.phase, \
     k.state, c.tenant IS NOT NULL FROM controls AS k LEFT JOIN cards AS c \
     ON c.tenant = k.tenant AND c.plastic_id = k.plastic_id WHERE k.id > $1 ORDER BY k.id LIMIT $2";
pub(crate) const AUDIT_READ: &str =
    "SELECT sequence, entry, hash FROM audit WHERE engine = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
pub(crate) const AUDIT_ENDS: &str = "SELECT engine, max(sequence) FROM audit GROUP BY engine ORDER BY engine";
pub(crate) const UNREGISTERED_ALL: &str =
    "SELECT tenant, sum(cards)::bigint FROM unregistered_cards GROUP BY tenant ORDER BY tenant";
pub(crate) const ENGINE_CHAIN: &str = "SELECT sequence, head, archived FROM engines WHERE name = $1";

// The copy of a store.
pub(crate) const COPY_MARK: &str = "SELECT source FROM store_copy WHERE id = 1";
pub(crate) const COPY_MARK_LOCK: &str =
    "SELECT session, engine, source, sequence, head FROM store_copy WHERE id = 1 FOR UPDATE";
pub(crate) const COPY_MARK_INSERT: &str =
    "INSERT INTO store_copy (id, session, engine, source, sequence, head) VALUES (1, $1, $2, $3, $4, $5)";
pub(crate) const COPY_MARK_SESSION: &str = "UPDATE store_copy SET session = $1 WHERE id = 1";
pub(crate) const COPY_MARK_DELETE: &str = "DELETE FROM store_copy WHERE id = 1";
pub(crate) const COPY_IS_EMPTY: &str = "SELECT NOT EXISTS (SELECT 1 FROM engines) AND NOT EXISTS (SELECT 1 FROM cards) \
     AND NOT EXISTS (SELECT 1 FROM controls) AND NOT EXISTS (SELECT 1 FROM audit)";
pub(crate) const COPY_LAST_CARD: &str =
    "SELECT tenant, plastic_id FROM cards ORDER BY tenant DESC, plastic_id DESC LIMIT 1";
pub(crate) const COPY_LAST_ENTRY: &str = "SELECT max(sequence) FROM audit WHERE engine = $1";
pub(crate) const COPY_CARDS: &str = "SELECT tenant, plastic_id, registered, generation, tries_reserved, tries_forgiven, state, \
     pin, pin_kind, pin_version FROM cards WHERE registered AND (tenant, plastic_id) > ($1, $2) \
     ORDER BY tenant, plastic_id LIMIT $3";
pub(crate) const COPY_COUNTS: &str = "SELECT (SELECT count(*) FROM cards WHERE registered) \
     + (SELECT count(*) FROM controls WHERE phase = 2) \
     + (SELECT count(*) FROM audit WHERE engine = $1 AND sequence > $2)";
/// An earlier process may have written some of them.
pub(crate) const COPY_CONTROLS_INSERT: &str = "INSERT INTO controls (id, tenant, plastic_id, expires_at, opened_generation, \
     phase, state) SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::integer[], \
     $7::bytea[]) ON CONFLICT (id) DO NOTHING";
pub(crate) const COPY_CONTROLS_FOUND: &str = "SELECT state FROM controls WHERE id = ANY ($1::uuid[])";
pub(crate) const COPY_CONTROLS_COUNT: &str = "SELECT count(*) FROM controls";
pub(crate) const COPY_ENGINE_INSERT: &str = "INSERT INTO engines (name, incarnation, session, registered, lease_until, \
     sequence, head, keys, min_versions, max_versions, newest_time, archived, schema_version) VALUES ($1, $2, $3, \
     false, clock_timestamp() - interval '1 second', $4, $5, $6, $7, $8, $9, $10, $11)";

// The migrations.
pub(crate) const SCHEMA_VERSION_TABLE: &str = "CREATE TABLE IF NOT EXISTS schema_version \
     (id integer PRIMARY KEY CHECK (id = 1), version integer NOT NULL)";
pub(crate) const SCHEMA_VERSION_ROW: &str =
    "INSERT INTO schema_version (id, version) VALUES (1, 0) ON CONFLICT (id) DO NOTHING";
/// The lock row: of racing programs one migrates, and the others find its version.
pub(crate) const SCHEMA_VERSION_LOCK: &str = "SELECT version FROM schema_version WHERE id = 1 FOR UPDATE";
/// Held to the end of a transaction, it keeps a migration from beginning.
pub(crate) const SCHEMA_VERSION_SHARE: &str = "SELECT version FROM schema_version WHERE id = 1 FOR SHARE";
pub(crate) const SCHEMA_VERSION: &str = "SELECT version FROM schema_version WHERE id = 1";
/// The locks of [`KEY_VERSIONS_LOCK`] and [`ENGINES_LOCK`] by columns that every version of the tables has.
pub(crate) const SCHEMA_KEY_VERSIONS_LOCK: &str = "SELECT id FROM key_versions WHERE id = 1 FOR UPDATE";
pub(crate) const SCHEMA_ENGINES_LOCK: &str = "SELECT name FROM engines ORDER BY name FOR UPDATE";
/// Before the tables change: waits for the transactions that run, and fences the engines of the release before.
pub(crate) const ENGINES_SCHEMA: &str = "UPDATE engines SET schema_version = $1";
pub(crate) const SCHEMA_VERSION_SET: &str = "UPDATE schema_version SET version = $1 WHERE id = 1";
pub(crate) const SCHEMA_VERSION_EXISTS: &str = "SELECT EXISTS (SELECT 1 FROM information_schema.tables \
     WHERE table_schema = current_schema() AND table_name = 'schema_version')";

/// The statements of the writer, which prepares them when it connects.
pub(crate) const WRITER: &[&str] = &[
    CLOCK,
    ENGINE_LOCK,
    ENGINE_HEAD,
    CARDS_LOCK,
    CONTROLS_LOCK,
    CARDS_INSERT,
    CARDS_UPDATE,
    PINS_UPDATE,
    CONTROLS_INSERT,
    CONTROLS_UPDATE,
    AUDIT_INSERT,
    UNREGISTERED,
    UNREGISTERED_ADD,
    CONTROLS_SWEEP,
    CARDS_SWEEP,
];
/// The statements of a copy.
pub(crate) const COPIER: &[&str] = &[
    KEY_VERSIONS_LOCK,
    CONTROLS_READ,
    AUDIT_READ,
    COPY_MARK_LOCK,
    COPY_MARK_INSERT,
    COPY_MARK_SESSION,
    COPY_MARK_DELETE,
    COPY_IS_EMPTY,
    COPY_LAST_CARD,
    COPY_LAST_ENTRY,
    COPY_CARDS,
    COPY_CONTROLS_INSERT,
    COPY_CONTROLS_FOUND,
    COPY_CONTROLS_COUNT,
    COPY_ENGINE_INSERT,
    CARDS_INSERT,
    AUDIT_INSERT,
    KEY_VERSIONS,
];
/// The statements of the reader.
pub(crate) const READER: &[&str] =
    &[CARD, CONTROLS, PINS, LIVE_CONTROLS, HAS_CARDS, KEYS_IN_USE, OTHER_KEYS, AUDIT, ARCHIVED, CHAINS];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::migration::MIGRATIONS;

    /// What the three databases document: keywords, functions and types. An entry is added here only after a look at the
    /// documents of CockroachDB and YugabyteDB. The statements have never run on either.
    const KEYWORDS: &str = "ADD ALL ALTER AND ANY AS BEGIN BY CASE CHECK COALESCE COLLATE COLUMN COMMIT COMMITTED CONFLICT CREATE DEFAULT DELETE \
        DESC DO DROP ELSE END EXISTS FOR FROM GREATEST GROUP IF IN INDEX INSERT INTO IS ISOLATION JOIN KEY LEFT LEVEL LIMIT LOCKED NOT \
        NOTHING NULL ON ONLY OR ORDER PRIMARY READ REPEATABLE RETURNING ROLLBACK SELECT SET SHARE SHOW SKIP TABLE THEN UNION UPDATE \
        VALUES WHEN WHERE";
    const FUNCTIONS: &str = "clock_timestamp count current_schema extract max set_config sum unnest";
    const TYPES: &str = "bigint boolean bytea float8 integer text uuid";

    /// The texts of the constants of this file.
    fn statements() -> Vec<String> {
        let (source, _) = include_str!("sql.rs").split_once("#[cfg(test)]").unwrap();
        let constants = source.split("pub(crate) const ").skip(1).filter(|constant| constant.contains(": &str ="));
        constants.map(|constant| constant.split('"').nth(1).unwrap().replace("\\\n", " ")).collect()
    }

    fn words(text: &str) -> impl Iterator<Item = &str> {
        text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
            .filter(|word| !word.is_empty())
    }

    fn listed<'a>(list: &'a str, word: &str) -> bool {
        let known: BTreeSet<&'a str> = list.split_whitespace().collect();
        known.contains(word)
    }

    #[test]
    fn every_statement_uses_what_three_databases_document() {
        let texts = statements();
        assert!(texts.len() > 50, "{}", texts.len());
        let code = |migration: &str| -> String {
            migration.lines().filter(|line| !line.trim_start().starts_with("--")).collect()
        };
        let migrations: Vec<_> = MIGRATIONS.iter().map(|migration| code(migration)).collect();
        for text in texts.iter().chain(&migrations) {
            // What stands between quotes is data.
            let code: String = text.split('\'').step_by(2).collect();
            for keyword in words(&code).filter(|word| word.len() > 1 && word.bytes().all(|b| b.is_ascii_uppercase())) {
                assert!(listed(KEYWORDS, keyword), "{keyword}: {text}");
            }
            for (at, _) in code.match_indices('(') {
                let before = &code[..at];
                let name = before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
                let is_function = name.bytes().any(|b| b.is_ascii_lowercase()) && !before.ends_with(' ');
                assert!(!is_function || listed(FUNCTIONS, name), "{name}(: {text}");
            }
            for cast in code.split("::").skip(1) {
                let name = words(cast).next().unwrap();
                assert!(listed(TYPES, name), "::{name}: {text}");
            }
        }
    }

    #[test]
    fn a_statement_of_one_database_alone_is_found() {
        for word in ["LISTEN", "NOTIFY", "DEFERRABLE", "LOCK", "SEQUENCE", "WITH"] {
            assert!(!listed(KEYWORDS, word));
        }
        for function in ["pg_advisory_xact_lock", "txid_current", "nextval"] {
            assert!(!listed(FUNCTIONS, function));
        }
    }
}
