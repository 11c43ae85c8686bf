-- The audit is searched by an index of terms. `audit_terms` has the ids of the batches of each term, in order, and takes
-- new ones at its end: it is a log-structured index of SQLite's full-text search, which is used for this alone. A B-tree
-- would not serve: with each batch as many pages would be written as it has terms.
--
-- So ids are in the order of time: a batch has one of the 1,024 ids of the microsecond in which it was sealed. The index
-- by time is not needed any more.
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
        AND chain > x'00000000000000000000000000000000' AND chain < x'ffffffffffffffffffffffffffffffff'),
    CONSTRAINT audit_batches_in_time CHECK (id >> 10 = at)
) STRICT;
INSERT INTO audit_batches_new (id, chain, seq, at, mac, terms, body)
SELECT at * 1024 + row_number() OVER (PARTITION BY at ORDER BY chain, seq) - 1, chain, seq, at, mac, terms, body
FROM audit_batches ORDER BY 1;
DROP TABLE audit_batches;
ALTER TABLE audit_batches_new RENAME TO audit_batches;

-- A word of it is a term: its four bytes in hexadecimal.
CREATE VIRTUAL TABLE audit_terms USING fts5 (
    terms, content = '', columnsize = 0, detail = none, tokenize = 'ascii');
-- What is in it, to be compared with the rows.
CREATE VIRTUAL TABLE audit_terms_held USING fts5vocab (audit_terms, instance);

INSERT INTO audit_terms (rowid, terms)
SELECT id, (
    WITH RECURSIVE places (n) AS (SELECT 1 UNION ALL SELECT n + 4 FROM places WHERE n + 4 <= length(terms))
    SELECT group_concat(hex(substr(terms, n, 4)), ' ') FROM places)
FROM audit_batches ORDER BY id;

CREATE TRIGGER audit_batches_added AFTER INSERT ON audit_batches BEGIN
    INSERT INTO audit_terms (rowid, terms) VALUES (new.id, (
        WITH RECURSIVE places (n) AS (SELECT 1 UNION ALL SELECT n + 4 FROM places WHERE n + 4 <= length(new.terms))
        SELECT group_concat(hex(substr(new.terms, n, 4)), ' ') FROM places));
END;
CREATE TRIGGER audit_batches_removed AFTER DELETE ON audit_batches BEGIN
    INSERT INTO audit_terms (audit_terms, rowid, terms) VALUES ('delete', old.id, (
        WITH RECURSIVE places (n) AS (SELECT 1 UNION ALL SELECT n + 4 FROM places WHERE n + 4 <= length(old.terms))
        SELECT group_concat(hex(substr(old.terms, n, 4)), ' ') FROM places));
END;
