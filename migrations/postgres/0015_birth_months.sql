-- The sums of `projection_births` by month, beside those by year. The births of one year up to a day are then read from
-- at most 11 months and 31 days, not from up to 366 days.
CREATE TABLE projection_birth_months (
    n     bigint NOT NULL,
    month date PRIMARY KEY  -- its first day
);

-- No births are written between the first sums and the new triggers.
LOCK TABLE projection_births IN SHARE ROW EXCLUSIVE MODE;

CREATE FUNCTION projection_month(day date) RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN day - (extract(day FROM day)::int4 - 1);

CREATE OR REPLACE FUNCTION projection_births_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO projection_birth_years AS y (year, n)
    SELECT extract(year FROM date_of_birth)::int4, sum(n)::int8 FROM after GROUP BY 1 ORDER BY 1
    ON CONFLICT (year) DO UPDATE SET n = y.n + excluded.n;
    INSERT INTO projection_birth_months AS m (month, n)
    SELECT projection_month(date_of_birth), sum(n)::int8 FROM after GROUP BY 1 ORDER BY 1
    ON CONFLICT (month) DO UPDATE SET n = m.n + excluded.n;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION projection_births_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO projection_birth_years AS y (year, n)
    SELECT extract(year FROM date_of_birth)::int4, sum(n)::int8
    FROM (SELECT date_of_birth, n FROM after UNION ALL SELECT date_of_birth, -n FROM before) AS change
    GROUP BY 1 ORDER BY 1
    ON CONFLICT (year) DO UPDATE SET n = y.n + excluded.n;
    INSERT INTO projection_birth_months AS m (month, n)
    SELECT projection_month(date_of_birth), sum(n)::int8
    FROM (SELECT date_of_birth, n FROM after UNION ALL SELECT date_of_birth, -n FROM before) AS change
    GROUP BY 1 ORDER BY 1
    ON CONFLICT (month) DO UPDATE SET n = m.n + excluded.n;
    RETURN NULL;
END $$;

INSERT INTO projection_birth_months (month, n)
SELECT projection_month(date_of_birth), sum(n)::int8 FROM projection_births GROUP BY 1;
