-- The changes of the PostgreSQL migration of the same number, where their reasons are told.

ALTER TABLE patient_events ADD COLUMN fingerprint BLOB;

ALTER TABLE patients ADD COLUMN name_key TEXT;
CREATE INDEX patients_unkeyed ON patients (id) WHERE deleted = 0 AND name_key IS NULL;
CREATE INDEX patients_by_name ON patients (name_key, id) WHERE deleted = 0;
CREATE INDEX patients_by_birth ON patients (date_of_birth, id) WHERE deleted = 0;
CREATE INDEX patients_by_registration ON patients (registered_date, id) WHERE deleted = 0;
