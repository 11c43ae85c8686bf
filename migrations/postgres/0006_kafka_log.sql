-- The topic's log that events are published to. A topic that was deleted and made again, a broker that lost its
-- volume, and another broker all give another log under the same name; each one gets the next number. One row.
CREATE TABLE kafka_log (
    no             bigint NOT NULL,
    began_at       bigint NOT NULL,
    -- Events that happened before this moment are not published again; null: none is.
    replay_since   bigint,
    -- Up to where, in the order of (patient_id, version), events were put back into the outbox.
    replay_version bigint NOT NULL,
    replayed_rows  bigint NOT NULL,
    replay_patient uuid NOT NULL,
    one            boolean PRIMARY KEY CHECK (one),
    replay_done    boolean NOT NULL,
    name           text NOT NULL,
    cluster        text NOT NULL,
    topic          text NOT NULL,
    reason         text NOT NULL
) WITH (fillfactor = 50);

-- Of each partition the last event known to be in the log: a log that does not have it is another one.
CREATE TABLE kafka_anchors (
    log_no       bigint NOT NULL,
    at_offset    bigint NOT NULL,
    partition_no integer NOT NULL,
    event_id     uuid NOT NULL,
    PRIMARY KEY (log_no, partition_no)
) WITH (fillfactor = 50);

-- Patients whose events were put back before the replay came to them, because a new event of theirs waits.
CREATE TABLE kafka_replayed (
    log_no     bigint NOT NULL,
    patient_id uuid NOT NULL,
    PRIMARY KEY (log_no, patient_id)
);

-- Whether the row stands for an event that an earlier log had.
ALTER TABLE outbox ADD COLUMN replay boolean NOT NULL DEFAULT false;

-- Rows of `outbox` and `unbilled` that failed for good as it seems. Until `retry_at` no row of the patient is read.
CREATE TABLE outbox_parked (
    seq        bigint NOT NULL,
    retry_at   bigint NOT NULL,
    parks      integer NOT NULL,
    patient_id uuid NOT NULL,
    queue      text COLLATE "C" NOT NULL,
    reason     text NOT NULL,
    PRIMARY KEY (queue, seq)
);
CREATE INDEX outbox_parked_patients ON outbox_parked (queue, patient_id);
