-- The sums of `projection_births` by year, so that ages are counted from a few hundred rows and not from one row for
-- each date of birth. Triggers keep them: a node of an older version writes `projection_births` alone.
CREATE TABLE projection_birth_years (
    n    bigint NOT NULL,
    year integer PRIMARY KEY
);

CREATE FUNCTION projection_births_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO projection_birth_years AS y (year, n)
    SELECT extract(year FROM date_of_birth)::int4, sum(n)::int8 FROM after GROUP BY 1 ORDER BY 1
    ON CONFLICT (year) DO UPDATE SET n = y.n + excluded.n;
    RETURN NULL;
END $$;
CREATE TRIGGER projection_births_added AFTER INSERT ON projection_births
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION projection_births_added();

CREATE FUNCTION projection_births_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO projection_birth_years AS y (year, n)
    SELECT extract(year FROM date_of_birth)::int4, sum(n)::int8
    FROM (SELECT date_of_birth, n FROM after UNION ALL SELECT date_of_birth, -n FROM before) AS change
    GROUP BY 1 ORDER BY 1
    ON CONFLICT (year) DO UPDATE SET n = y.n + excluded.n;
    RETURN NULL;
END $$;
CREATE TRIGGER projection_births_changed AFTER UPDATE ON projection_births
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION projection_births_changed();

-- The triggers' lock holds until the end of the migration: nobody writes in between.
INSERT INTO projection_birth_years (year, n)
SELECT extract(year FROM date_of_birth)::int4, sum(n)::int8 FROM projection_births GROUP BY 1;
