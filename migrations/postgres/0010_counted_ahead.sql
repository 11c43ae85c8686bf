-- Versions of a patient that were counted before an earlier one, as a JSON list: partitions keep no order between them.
-- `version` is the last one up to which all are counted.
ALTER TABLE projection_patients ADD COLUMN ahead text;
