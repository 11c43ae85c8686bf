-- Times are microseconds since 1970-01-01T00:00:00Z unless a column is a timestamptz: those are judged
-- by the database's own clock. Text that is compared has the collation "C", so that the order is the
-- same on every server and the same as in SQLite.

CREATE TABLE settings (
    name  text COLLATE "C" PRIMARY KEY,
    value bigint NOT NULL
);

-- One row per patient ever registered. A deleted one keeps its id and version only: the id is never
-- used again.
CREATE TABLE patients (
    created_at      bigint,
    version         bigint NOT NULL,
    id              uuid PRIMARY KEY,
    date_of_birth   date,
    registered_date date,
    deleted         boolean NOT NULL,
    name            text,
    email           text,
    address         text,
    CHECK (deleted = (name IS NULL))
);
CREATE INDEX patients_list ON patients (created_at, id) WHERE NOT deleted;

-- The addresses of living patients: what makes them unique.
CREATE TABLE patient_emails (
    email_key  text COLLATE "C" PRIMARY KEY,
    patient_id uuid NOT NULL
);

-- Journal and history. Rows are only ever added: what the outbox and billing have still to do is kept
-- in the narrow tables below, so that this one has no bloat and two indexes only.
CREATE TABLE patient_events (
    seq         bigint GENERATED ALWAYS AS IDENTITY,
    version     bigint NOT NULL,
    at          bigint NOT NULL,
    patient_id  uuid NOT NULL,
    command_id  uuid NOT NULL,
    event_id    uuid NOT NULL,
    shard       integer NOT NULL,
    kind        smallint NOT NULL,
    subject     text NOT NULL,
    traceparent text NOT NULL,
    body        text NOT NULL,
    PRIMARY KEY (patient_id, version),
    UNIQUE (patient_id, command_id)
);

-- Events that no broker has taken yet.
CREATE TABLE outbox (
    seq        bigint PRIMARY KEY,
    version    bigint NOT NULL,
    patient_id uuid NOT NULL
);
-- Events that a broker has taken and analytics is not known to have applied: what has to be told
-- again if that broker forgets.
CREATE TABLE outbox_sent (
    seq        bigint PRIMARY KEY,
    version    bigint NOT NULL,
    patient_id uuid NOT NULL,
    broker     text NOT NULL
);
-- Registrations whose patient has no account yet.
CREATE TABLE unbilled (
    seq        bigint PRIMARY KEY,
    version    bigint NOT NULL,
    patient_id uuid NOT NULL
);
-- Queues: every row is deleted soon, so vacuum has to come by count and not by share; and it must not
-- take the exclusive lock that cutting off the table's end needs.
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, vacuum_truncate = off);
ALTER TABLE outbox_sent SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, vacuum_truncate = off);
ALTER TABLE unbilled SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, vacuum_truncate = off);

-- Who may serve a shard. `epoch` stands in a unique index, which makes it a key column: taking a lease
-- waits for the `FOR KEY SHARE` of a commit, renewing one does not. The fill factor leaves room for
-- renewals in place.
CREATE TABLE leases (
    expires_at timestamptz NOT NULL,
    epoch      bigint NOT NULL,
    shard      integer NOT NULL,
    kind       text COLLATE "C" NOT NULL,
    owner      text NOT NULL,
    PRIMARY KEY (kind, shard),
    UNIQUE (kind, shard, epoch)
) WITH (fillfactor = 30);

CREATE TABLE accounts (
    opened_at  bigint NOT NULL,
    patient_id uuid PRIMARY KEY,
    id         uuid NOT NULL UNIQUE,
    status     text NOT NULL,
    name       text NOT NULL,
    email      text NOT NULL
);

CREATE TABLE users (
    created_at    bigint NOT NULL,
    disabled      boolean NOT NULL,
    email         text COLLATE "C" PRIMARY KEY,
    password_hash text NOT NULL,
    role          text NOT NULL
);

CREATE TABLE projection_offsets (
    next_offset    bigint NOT NULL,
    partition_no   integer NOT NULL,
    consumer_group text COLLATE "C" NOT NULL,
    broker         text COLLATE "C" NOT NULL,
    topic          text COLLATE "C" NOT NULL,
    PRIMARY KEY (consumer_group, broker, topic, partition_no)
);
-- The newest event of each patient that was counted; `date_of_birth` is null once the patient is deleted.
CREATE TABLE projection_patients (
    version       bigint NOT NULL,
    patient_id    uuid PRIMARY KEY,
    date_of_birth date
);
CREATE TABLE projection_event_types (
    n    bigint NOT NULL,
    kind smallint PRIMARY KEY
);
CREATE TABLE projection_registrations (
    n   bigint NOT NULL,
    day date PRIMARY KEY
);
CREATE TABLE projection_births (
    n             bigint NOT NULL,
    date_of_birth date PRIMARY KEY
);
