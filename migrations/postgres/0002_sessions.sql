-- Keys that sign tokens. A generation can be taken once, so of several nodes that make the next key at the
-- same moment one wins. `verifies_until` is set when a younger key is there.
CREATE TABLE signing_keys (
    generation     bigint PRIMARY KEY,
    created_at     bigint NOT NULL,
    signs_from     bigint NOT NULL,
    verifies_until bigint,
    sealed         boolean NOT NULL,
    kid            text COLLATE "C" NOT NULL UNIQUE,
    public_key     bytea NOT NULL,
    private_key    bytea NOT NULL
);

-- Random secrets that all nodes share, each made once by whoever needs it first.
CREATE TABLE shared_secrets (
    sealed boolean NOT NULL,
    name   text COLLATE "C" PRIMARY KEY,
    value  bytea NOT NULL
);

-- One row per login. A row may be deleted once no token of it can hold any more: from `keep_until` on.
CREATE TABLE sessions (
    created_at bigint NOT NULL,
    ends_at    bigint NOT NULL,
    revoked_at bigint,
    keep_until bigint NOT NULL,
    id         uuid PRIMARY KEY,
    subject    text COLLATE "C" NOT NULL
);
CREATE INDEX sessions_subject ON sessions (subject, created_at, id) WHERE revoked_at IS NULL;
CREATE INDEX sessions_revoked ON sessions (revoked_at, id) WHERE revoked_at IS NOT NULL;
CREATE INDEX sessions_keep ON sessions (keep_until);

-- The refresh tokens of a session by their SHA-256: the newest is good, the others were used.
CREATE TABLE refresh_tokens (
    generation bigint NOT NULL,
    used_at    bigint,
    session_id uuid NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    hash       bytea PRIMARY KEY,
    UNIQUE (session_id, generation)
);

-- Failed logins by the hash of what they are counted under.
CREATE TABLE login_attempts (
    attempts    bigint NOT NULL,
    window_ends bigint NOT NULL,
    key         bytea PRIMARY KEY
);
CREATE INDEX login_attempts_ends ON login_attempts (window_ends);
