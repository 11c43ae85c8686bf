-- A search of the audit walks this index, from the newest batch on, and looks at a row only if its terms fit. It grows
-- at its end alone. Rows of term and batch, which it takes the place of, lay all over their table: with each batch of
-- reads as many pages were written as patients had been read.
DROP TABLE audit_terms;
DROP INDEX audit_batches_at;
CREATE INDEX audit_batches_at ON audit_batches (at, chain, seq, terms);
