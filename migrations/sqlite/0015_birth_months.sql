-- The sums of `projection_births` by month, beside those by year. The births of one year up to a day are then read from
-- at most 11 months and 31 days, not from up to 366 days.
CREATE TABLE projection_birth_months (
    month TEXT PRIMARY KEY,  -- as YYYY-MM
    n     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

DROP TRIGGER projection_births_added;
CREATE TRIGGER projection_births_added AFTER INSERT ON projection_births BEGIN
    INSERT INTO projection_birth_years (year, n) VALUES (CAST(substr(new.date_of_birth, 1, 4) AS INTEGER), new.n)
    ON CONFLICT (year) DO UPDATE SET n = n + excluded.n;
    INSERT INTO projection_birth_months (month, n) VALUES (substr(new.date_of_birth, 1, 7), new.n)
    ON CONFLICT (month) DO UPDATE SET n = n + excluded.n;
END;

DROP TRIGGER projection_births_changed;
CREATE TRIGGER projection_births_changed AFTER UPDATE OF n ON projection_births BEGIN
    UPDATE projection_birth_years SET n = n + new.n - old.n
    WHERE year = CAST(substr(new.date_of_birth, 1, 4) AS INTEGER);
    UPDATE projection_birth_months SET n = n + new.n - old.n WHERE month = substr(new.date_of_birth, 1, 7);
END;

INSERT INTO projection_birth_months (month, n)
SELECT substr(date_of_birth, 1, 7), sum(n) FROM projection_births GROUP BY 1;
