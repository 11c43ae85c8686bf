-- How long the holder of a lease may believe in it after each renewal, in microseconds: who takes it from a holder
-- that is gone waits for so long, whatever its own settings say. 0 in rows that an older version has written.
ALTER TABLE leases ADD COLUMN ttl_us bigint NOT NULL DEFAULT 0;
