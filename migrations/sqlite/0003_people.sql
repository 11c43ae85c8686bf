-- The tables of the PostgreSQL migration of the same number, where their reasons are told.

ALTER TABLE users ADD COLUMN sessions_not_before INTEGER NOT NULL DEFAULT 0;

CREATE TABLE audit_batches (
    id    INTEGER PRIMARY KEY,
    chain BLOB NOT NULL,
    seq   INTEGER NOT NULL,
    at    INTEGER NOT NULL,
    mac   BLOB NOT NULL,
    -- Little-endian, four bytes each.
    terms BLOB NOT NULL,
    body  BLOB NOT NULL,
    UNIQUE (chain, seq)
) STRICT;
CREATE INDEX audit_batches_at ON audit_batches (at, chain, seq);
-- Which batches a search has to look at.
CREATE TABLE audit_terms (
    term  INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    PRIMARY KEY (term, batch)
) STRICT, WITHOUT ROWID;

ALTER TABLE patients ADD COLUMN restricted INTEGER NOT NULL DEFAULT 0;
