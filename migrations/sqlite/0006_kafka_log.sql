-- The changes of the PostgreSQL migration of the same number, where their reasons are told.

CREATE TABLE kafka_log (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    no             INTEGER NOT NULL,
    began_at       INTEGER NOT NULL,
    replay_since   INTEGER,
    replay_patient BLOB NOT NULL,
    replay_version INTEGER NOT NULL,
    replayed_rows  INTEGER NOT NULL,
    replay_done    INTEGER NOT NULL,
    name           TEXT NOT NULL,
    cluster        TEXT NOT NULL,
    topic          TEXT NOT NULL,
    reason         TEXT NOT NULL
) STRICT;

CREATE TABLE kafka_anchors (
    log_no       INTEGER NOT NULL,
    partition_no INTEGER NOT NULL,
    at_offset    INTEGER NOT NULL,
    event_id     BLOB NOT NULL,
    PRIMARY KEY (log_no, partition_no)
) STRICT, WITHOUT ROWID;

CREATE TABLE kafka_replayed (
    log_no     INTEGER NOT NULL,
    patient_id BLOB NOT NULL,
    PRIMARY KEY (log_no, patient_id)
) STRICT, WITHOUT ROWID;

ALTER TABLE outbox ADD COLUMN replay INTEGER NOT NULL DEFAULT 0;

CREATE TABLE outbox_parked (
    queue      TEXT NOT NULL,
    seq        INTEGER NOT NULL,
    patient_id BLOB NOT NULL,
    retry_at   INTEGER NOT NULL,
    parks      INTEGER NOT NULL,
    reason     TEXT NOT NULL,
    PRIMARY KEY (queue, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_parked_patients ON outbox_parked (queue, patient_id);
