-- The sums of `projection_births` by year, so that ages are counted from a few hundred rows and not from one row for
-- each date of birth. Triggers keep them: whoever writes `projection_births` need not know of them.
CREATE TABLE projection_birth_years (
    year INTEGER PRIMARY KEY,
    n    INTEGER NOT NULL
) STRICT;

CREATE TRIGGER projection_births_added AFTER INSERT ON projection_births BEGIN
    INSERT INTO projection_birth_years (year, n) VALUES (CAST(substr(new.date_of_birth, 1, 4) AS INTEGER), new.n)
    ON CONFLICT (year) DO UPDATE SET n = n + excluded.n;
END;

CREATE TRIGGER projection_births_changed AFTER UPDATE OF n ON projection_births BEGIN
    UPDATE projection_birth_years SET n = n + new.n - old.n
    WHERE year = CAST(substr(new.date_of_birth, 1, 4) AS INTEGER);
END;

INSERT INTO projection_birth_years (year, n)
SELECT CAST(substr(date_of_birth, 1, 4) AS INTEGER), sum(n) FROM projection_births GROUP BY 1;
