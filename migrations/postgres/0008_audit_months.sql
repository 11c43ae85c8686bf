-- The audit by month. A month that was archived is dropped as a whole, and an index is as large as one month.
--
-- Rows are in the month of `at`. Every month has its own primary key over (chain, seq). No key spans two months,
-- because it would have to contain `at`; a place that is taken in two months is found by the seals, which
-- `hygeia audit verify` checks.

-- What there is becomes one part that ends with this month, or later if a clock was ahead.
ALTER TABLE audit_batches RENAME TO audit_batches_before;
ALTER INDEX audit_batches_pkey RENAME TO audit_batches_before_pkey;
ALTER INDEX audit_batches_at RENAME TO audit_batches_before_at;
ALTER INDEX audit_batches_terms RENAME TO audit_batches_before_terms;
-- New entries of this index wait in its pending list, because sorting in each of them costs a commit two to three
-- times as much. At the default limit of 4 MiB the commit that reaches it sorts in the whole list, which took it a
-- second. Nodes empty the list every few seconds; the limit is only for the case that none does.
ALTER INDEX audit_batches_before_terms SET (gin_pending_list_limit = 65536);

CREATE TABLE audit_batches (
    seq   bigint NOT NULL,
    at    bigint NOT NULL,
    chain uuid NOT NULL,
    mac   bytea NOT NULL,
    body  bytea NOT NULL,
    terms integer[] NOT NULL
) PARTITION BY RANGE (at);
-- The body is not worth compressing: ids and seals.
ALTER TABLE audit_batches ALTER COLUMN body SET STORAGE EXTERNAL;

-- The first microsecond of the month of `moment`, so many `months` later, in UTC.
CREATE FUNCTION audit_month(moment bigint, months integer) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT (extract(epoch FROM date_trunc('month', to_timestamp(moment / 1000000) AT TIME ZONE 'UTC')
        + make_interval(months => months)) * 1000000)::bigint
$$;

-- Makes an empty part of the audit and attaches it. Attaching takes SHARE UPDATE EXCLUSIVE on the audit, which no
-- insertion and no search waits for, and ACCESS EXCLUSIVE on the rest alone.
CREATE FUNCTION audit_make_part(part text, bounds text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE audit_batches INCLUDING STORAGE, PRIMARY KEY (chain, seq))
        WITH (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000)', part);
    EXECUTE format('CREATE INDEX %I ON %I (at, chain, seq)', part || '_at', part);
    EXECUTE format('CREATE INDEX %I ON %I USING gin (terms)
        WITH (fastupdate = on, gin_pending_list_limit = 65536)', part || '_terms', part);
    EXECUTE format('ALTER TABLE audit_batches ATTACH PARTITION %I %s', part, bounds);
END $$;

-- Makes the parts of this month and of the `ahead` next ones that are missing. Answers how many whole months after
-- this one have a part: null if another session is doing the same. A month of which rows lie in the rest already gets
-- none: they stay there.
CREATE FUNCTION audit_make_months(ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    this bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    -- The months before this moment are in `audit_batches_before`.
    first bigint := (SELECT value FROM settings WHERE name = 'audit_months_from');
    low bigint;
    high bigint;
    part text;
    ready integer := -1;
BEGIN
    -- "audit" in ASCII.
    IF NOT pg_try_advisory_xact_lock(418581342580) THEN
        RETURN NULL;
    END IF;
    FOR n IN 0 .. ahead LOOP
        low := audit_month(this, n);
        high := audit_month(this, n + 1);
        part := 'audit_batches_' || to_char(to_timestamp(low / 1000000) AT TIME ZONE 'UTC', 'YYYY_MM');
        IF low >= first AND to_regclass(part) IS NULL THEN
            CONTINUE WHEN EXISTS (SELECT FROM audit_batches_rest WHERE at >= low AND at < high);
            BEGIN
                PERFORM audit_make_part(part, format('FOR VALUES FROM (%s) TO (%s)', low, high));
            EXCEPTION WHEN check_violation THEN
                -- A row came to the rest meanwhile.
                CONTINUE;
            END;
        END IF;
        ready := ready + 1;
    END LOOP;
    RETURN ready;
END $$;

-- Where rows go whose month has no part, so that no commit ever fails for want of one.
SELECT audit_make_part('audit_batches_rest', 'DEFAULT');

INSERT INTO settings (name, value)
SELECT 'audit_months_from', audit_month(greatest(
    (extract(epoch FROM now()) * 1000000)::bigint, (SELECT max(at) FROM audit_batches_before)), 1);
-- Reads the whole table once, to see that no row is younger.
DO $$ BEGIN
    EXECUTE format('ALTER TABLE audit_batches ATTACH PARTITION audit_batches_before FOR VALUES FROM (MINVALUE) TO (%s)',
        (SELECT value FROM settings WHERE name = 'audit_months_from'));
END $$;

-- What is left of the rows of a chain that were archived: the last of them. The seal is made with the secret of
-- the audit, so that nobody without it can make an anchor or change one.
CREATE TABLE audit_anchors (
    seq   bigint NOT NULL,
    chain uuid PRIMARY KEY,
    mac   bytea NOT NULL,
    seal  bytea NOT NULL
);
