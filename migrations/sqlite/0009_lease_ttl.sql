-- How long the holder of a lease may believe in it after each renewal, in microseconds.
ALTER TABLE leases ADD COLUMN ttl_us INTEGER NOT NULL DEFAULT 0;
