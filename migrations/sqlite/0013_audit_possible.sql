-- The constraints of the PostgreSQL migration of the same number, where their reasons are told. SQLite adds none to a
-- table that is there: both are made anew.

CREATE TABLE audit_batches_new (
    id    INTEGER PRIMARY KEY,
    chain BLOB NOT NULL,
    seq   INTEGER NOT NULL,
    at    INTEGER NOT NULL,
    mac   BLOB NOT NULL,
    -- Little-endian, four bytes each.
    terms BLOB NOT NULL,
    body  BLOB NOT NULL,
    UNIQUE (chain, seq),
    CONSTRAINT audit_batches_possible CHECK (
        seq >= 0 AND length(mac) = 32 AND length(chain) = 16
        AND chain > x'00000000000000000000000000000000' AND chain < x'ffffffffffffffffffffffffffffffff')
) STRICT;
INSERT INTO audit_batches_new (id, chain, seq, at, mac, terms, body)
SELECT id, chain, seq, at, mac, terms, body FROM audit_batches;
DROP TABLE audit_batches;
ALTER TABLE audit_batches_new RENAME TO audit_batches;
CREATE INDEX audit_batches_at ON audit_batches (at, chain, seq, terms);

CREATE TABLE audit_anchors_new (
    chain BLOB PRIMARY KEY,
    seq   INTEGER NOT NULL,
    mac   BLOB NOT NULL,
    seal  BLOB NOT NULL,
    CONSTRAINT audit_anchors_possible CHECK (
        seq >= 0 AND length(mac) = 32 AND length(seal) = 32 AND length(chain) = 16
        AND chain > x'00000000000000000000000000000000' AND chain < x'ffffffffffffffffffffffffffffffff')
) STRICT, WITHOUT ROWID;
INSERT INTO audit_anchors_new (chain, seq, mac, seal) SELECT chain, seq, mac, seal FROM audit_anchors;
DROP TABLE audit_anchors;
ALTER TABLE audit_anchors_new RENAME TO audit_anchors;
