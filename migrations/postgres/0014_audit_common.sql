-- Whether so many rows between two moments have all of the terms `wanted` that a search does better to walk the rows than
-- to ask the index of terms, which has to gather them all, however few are wanted: as the statistics have it, which
-- autovacuum keeps. Terms that the statistics do not know are expected in about one row of 5,000.
CREATE FUNCTION audit_is_common(low bigint, high bigint, wanted integer[]) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    span text := format('EXPLAIN (FORMAT JSON) SELECT FROM audit_batches WHERE at >= %s AND at <= %s', low, high);
    plan json;
    expected float8;
BEGIN
    EXECUTE span || format(' AND terms @> %L::integer[]', wanted) INTO plan;
    expected := (plan -> 0 -> 'Plan' ->> 'Plan Rows')::float8;
    IF expected < 10000 THEN
        RETURN false;
    END IF;
    EXECUTE span INTO plan;
    RETURN expected * 1000 >= (plan -> 0 -> 'Plan' ->> 'Plan Rows')::float8;
END $$;
