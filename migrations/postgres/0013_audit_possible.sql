-- What no writer of the audit makes cannot stand in it: places below zero, seals of another length, and the first and
-- the last of all chains, which searches and pages begin and end with.
--
-- Parts that are made later must have the same constraints to be attached.

ALTER TABLE audit_batches ADD CONSTRAINT audit_batches_possible CHECK (
    seq >= 0 AND octet_length(mac) = 32
    AND chain > '00000000-0000-0000-0000-000000000000' AND chain < 'ffffffff-ffff-ffff-ffff-ffffffffffff');

ALTER TABLE audit_anchors ADD CONSTRAINT audit_anchors_possible CHECK (
    seq >= 0 AND octet_length(mac) = 32 AND octet_length(seal) = 32
    AND chain > '00000000-0000-0000-0000-000000000000' AND chain < 'ffffffff-ffff-ffff-ffff-ffffffffffff');

-- As in 0008, with constraints.
CREATE OR REPLACE FUNCTION audit_make_part(part text, bounds text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE audit_batches INCLUDING STORAGE INCLUDING CONSTRAINTS, PRIMARY KEY (chain, seq))
        WITH (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000)', part);
    EXECUTE format('CREATE INDEX %I ON %I (at, chain, seq)', part || '_at', part);
    EXECUTE format('CREATE INDEX %I ON %I USING gin (terms)
        WITH (fastupdate = on, gin_pending_list_limit = 65536)', part || '_terms', part);
    EXECUTE format('ALTER TABLE audit_batches ATTACH PARTITION %I %s', part, bounds);
END $$;
