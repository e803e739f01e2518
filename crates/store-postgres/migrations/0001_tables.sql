-- Version arrays have four numbers: wrapped, iso-4, tdes, one-way, as domain::storage_key::StorageKeyKind orders them.

-- One row. Its lock orders registrations and rotations (R2, R10).
CREATE TABLE key_versions (
    id integer PRIMARY KEY CHECK (id = 1),
    -- The list of keys that an engine reported last, as hsm_protocol writes it; NULL before the first report.
    keys bytea,
    card_reference_key bytea,
    -- The lowest versions that a record may be written under.
    min_versions integer[] NOT NULL,
    -- The highest versions that every engine has reported.
    active_versions integer[] NOT NULL,
    -- The highest versions under which no record exists and none can be written: their keys may be destroyed.
    retired_versions integer[] NOT NULL
);
INSERT INTO key_versions (id, min_versions, active_versions, retired_versions)
VALUES (1, '{0,0,0,0}', '{0,0,0,0}', '{0,0,0,0}');

-- One row for each engine, locked first by each of its transactions (R1).
CREATE TABLE engines (
    name text COLLATE "C" PRIMARY KEY,
    -- A new value for each start of the process: the twin of an engine is fenced.
    incarnation uuid NOT NULL,
    -- A new value for each connection that writes: what an earlier connection sent is fenced.
    session uuid NOT NULL,
    registered boolean NOT NULL,
    -- The version of the tables that the process knows. A migration changes it, which fences the process.
    schema_version integer NOT NULL,
    lease_until timestamptz NOT NULL,
    -- The last entry of the engine's audit chain.
    sequence bigint NOT NULL,
    head bytea NOT NULL,
    keys bytea,
    -- The newest versions that the engine has reported since its start; NULL before that.
    newest_versions integer[],
    min_versions integer[] NOT NULL,
    max_versions integer[] NOT NULL,
    -- Microseconds since 1970-01-01T00:00:00Z: the time of the engine's last transaction. A later one of any engine, on another
    -- server, is not before it.
    newest_time bigint NOT NULL,
    -- What is left of the archived entries, JSON.
    archived bytea
);

-- state and pin have the bytes of store::codec. The other columns repeat fields of them, for guards, scans and people; a store
-- refuses a row whose columns differ from its bytes.
CREATE TABLE cards (
    tenant text COLLATE "C" NOT NULL,
    plastic_id text COLLATE "C" NOT NULL,
    -- Whether the card was registered or has had a PIN. Other rows are removed after two hours.
    registered boolean NOT NULL,
    opened_hour bigint NOT NULL,
    generation bigint NOT NULL,
    tries_reserved bigint NOT NULL,
    tries_forgiven bigint NOT NULL,
    state bytea NOT NULL,
    pin bytea,
    -- store::codec::kind_code of the storage key, and its version.
    pin_kind integer,
    pin_version integer,
    PRIMARY KEY (tenant, plastic_id)
);
CREATE INDEX unregistered_cards_by_hour ON cards (opened_hour) WHERE NOT registered;
-- For questions about storage keys, which are asked while every engine waits.
CREATE INDEX pins_by_storage_key ON cards (pin_kind, pin_version) WHERE pin IS NOT NULL;

-- How many unregistered cards of a tenant an engine has added, less those that it has registered or removed. The sum over all
-- engines is the number of such cards: so engines do not contend for one row.
CREATE TABLE unregistered_cards (
    engine text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    cards bigint NOT NULL,
    PRIMARY KEY (engine, tenant)
);

-- state has the bytes of store::codec, without the account number: that is the one of the card.
CREATE TABLE controls (
    id uuid PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    plastic_id text COLLATE "C" NOT NULL,
    -- Milliseconds since 1970-01-01T00:00:00Z on the clock of the database.
    expires_at bigint NOT NULL,
    opened_generation bigint NOT NULL,
    -- 0 open, 1 keyed, 2 spent.
    phase integer NOT NULL,
    state bytea NOT NULL
);
CREATE INDEX controls_by_expiry ON controls (expires_at);

-- One chain for each engine.
CREATE TABLE audit (
    engine text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    -- The transaction that wrote the entry, by which a commit in doubt is found (R3).
    attempt uuid NOT NULL,
    -- audit::entry::Entry::encode.
    entry bytea NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (engine, sequence)
);

-- The copy of another store into this database, until it is complete: no engine registers while there is a row.
CREATE TABLE store_copy (
    id integer PRIMARY KEY CHECK (id = 1),
    -- A new value for each process that copies: what an earlier one sent is fenced.
    session uuid NOT NULL,
    -- The engine that gets the chain of the source.
    engine text NOT NULL,
    source text NOT NULL,
    -- The last entry of the source's chain.
    sequence bigint NOT NULL,
    head bytea NOT NULL
);
