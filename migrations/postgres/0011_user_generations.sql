-- The generation of its user (`users.sessions_not_before`) that a session was begun under: a session of an earlier
-- one is over. Null where a node of an older version began it; then the time of its beginning is compared.
ALTER TABLE sessions ADD COLUMN user_generation bigint;
