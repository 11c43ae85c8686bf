-- See the file of this name for PostgreSQL.
CREATE TABLE signing_keys (
    generation     INTEGER PRIMARY KEY,
    created_at     INTEGER NOT NULL,
    signs_from     INTEGER NOT NULL,
    verifies_until INTEGER,
    sealed         INTEGER NOT NULL,
    kid            TEXT NOT NULL UNIQUE,
    public_key     BLOB NOT NULL,
    private_key    BLOB NOT NULL
) STRICT;

CREATE TABLE shared_secrets (
    sealed INTEGER NOT NULL,
    name   TEXT PRIMARY KEY,
    value  BLOB NOT NULL
) STRICT;

CREATE TABLE sessions (
    created_at INTEGER NOT NULL,
    ends_at    INTEGER NOT NULL,
    revoked_at INTEGER,
    keep_until INTEGER NOT NULL,
    id         BLOB PRIMARY KEY,
    subject    TEXT NOT NULL
) STRICT;
CREATE INDEX sessions_subject ON sessions (subject, created_at, id) WHERE revoked_at IS NULL;
CREATE INDEX sessions_revoked ON sessions (revoked_at, id) WHERE revoked_at IS NOT NULL;
CREATE INDEX sessions_keep ON sessions (keep_until);

CREATE TABLE refresh_tokens (
    generation INTEGER NOT NULL,
    used_at    INTEGER,
    session_id BLOB NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    hash       BLOB PRIMARY KEY,
    UNIQUE (session_id, generation)
) STRICT;

CREATE TABLE login_attempts (
    attempts    INTEGER NOT NULL,
    window_ends INTEGER NOT NULL,
    key         BLOB PRIMARY KEY
) STRICT;
CREATE INDEX login_attempts_ends ON login_attempts (window_ends);
