-- The tables of the PostgreSQL migration of the same number, where their reasons are told. Ids are
-- blobs of sixteen bytes, dates are `YYYY-MM-DD`, times are microseconds since 1970-01-01T00:00:00Z.

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE patients (
    id              BLOB PRIMARY KEY,
    version         INTEGER NOT NULL,
    deleted         INTEGER NOT NULL,
    created_at      INTEGER,
    date_of_birth   TEXT,
    registered_date TEXT,
    name            TEXT,
    email           TEXT,
    address         TEXT,
    CHECK (deleted = (name IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX patients_list ON patients (created_at, id) WHERE deleted = 0;

CREATE TABLE patient_emails (
    email_key  TEXT PRIMARY KEY,
    patient_id BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE patient_events (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    patient_id  BLOB NOT NULL,
    version     INTEGER NOT NULL,
    command_id  BLOB NOT NULL,
    event_id    BLOB NOT NULL,
    kind        INTEGER NOT NULL,
    shard       INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    subject     TEXT NOT NULL,
    traceparent TEXT NOT NULL,
    body        TEXT NOT NULL,
    UNIQUE (patient_id, version),
    UNIQUE (patient_id, command_id)
) STRICT;

CREATE TABLE outbox (
    seq        INTEGER PRIMARY KEY,
    patient_id BLOB NOT NULL,
    version    INTEGER NOT NULL
) STRICT;
CREATE TABLE outbox_sent (
    seq        INTEGER PRIMARY KEY,
    patient_id BLOB NOT NULL,
    version    INTEGER NOT NULL,
    broker     TEXT NOT NULL
) STRICT;
CREATE TABLE unbilled (
    seq        INTEGER PRIMARY KEY,
    patient_id BLOB NOT NULL,
    version    INTEGER NOT NULL
) STRICT;

CREATE TABLE leases (
    kind       TEXT NOT NULL,
    shard      INTEGER NOT NULL,
    owner      TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (kind, shard)
) STRICT, WITHOUT ROWID;

CREATE TABLE accounts (
    patient_id BLOB PRIMARY KEY,
    id         BLOB NOT NULL UNIQUE,
    status     TEXT NOT NULL,
    opened_at  INTEGER NOT NULL,
    name       TEXT NOT NULL,
    email      TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE users (
    email         TEXT PRIMARY KEY,
    password_hash TEXT NOT NULL,
    role          TEXT NOT NULL,
    disabled      INTEGER NOT NULL,
    created_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE projection_offsets (
    consumer_group TEXT NOT NULL,
    broker         TEXT NOT NULL,
    topic          TEXT NOT NULL,
    partition_no   INTEGER NOT NULL,
    next_offset    INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, broker, topic, partition_no)
) STRICT, WITHOUT ROWID;
CREATE TABLE projection_patients (
    patient_id    BLOB PRIMARY KEY,
    version       INTEGER NOT NULL,
    date_of_birth TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE projection_event_types (
    kind INTEGER PRIMARY KEY,
    n    INTEGER NOT NULL
) STRICT;
CREATE TABLE projection_registrations (
    day TEXT PRIMARY KEY,
    n   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE projection_births (
    date_of_birth TEXT PRIMARY KEY,
    n             INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
