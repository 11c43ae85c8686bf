-- Tokens that were given before this moment no longer hold (a change of password, a disabling).
ALTER TABLE users ADD COLUMN sessions_not_before bigint NOT NULL DEFAULT 0;

-- The access audit: a row is a batch of entries, sealed by its writer, who hangs it on the row before it in its
-- chain. The bytes of `body` are what is sealed (hygeia.audit.v1.Batch). Rows are only ever added. A writer
-- has a chain of its own, so nobody waits for anybody.
CREATE TABLE audit_batches (
    seq   bigint NOT NULL,
    at    bigint NOT NULL,
    chain uuid NOT NULL,
    mac   bytea NOT NULL,
    body  bytea NOT NULL,
    terms integer[] NOT NULL,
    PRIMARY KEY (chain, seq)
);
-- The newest first: the order of lists.
CREATE INDEX audit_batches_at ON audit_batches (at, chain, seq);
-- Who, whose, what and what came of it, by hash. What comes in gathers in the pending list and is sorted in
-- from time to time: it is written with every read of a patient.
CREATE INDEX audit_batches_terms ON audit_batches USING gin (terms) WITH (fastupdate = on);
-- The body is not worth compressing: ids and seals.
ALTER TABLE audit_batches ALTER COLUMN body SET STORAGE EXTERNAL;
-- Only insertions: vacuum has nothing to do here but the pending list of the index.
ALTER TABLE audit_batches SET (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000);

-- Marked: left out of lists, and shown to those who give a reason.
ALTER TABLE patients ADD COLUMN restricted boolean NOT NULL DEFAULT false;
