-- What is left of the rows of a chain that were archived: the last of them. The seal is made with the secret of
-- the audit, so that nobody without it can make an anchor or change one.
CREATE TABLE audit_anchors (
    chain BLOB PRIMARY KEY,
    seq   INTEGER NOT NULL,
    mac   BLOB NOT NULL,
    seal  BLOB NOT NULL
) STRICT, WITHOUT ROWID;
