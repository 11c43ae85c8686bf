-- What a request said that its caller may repeat under a key (`Idempotency-Key`), as a hash: null for all
-- others. The event's command id is the key's, so that the row of the change is also that of the key.
ALTER TABLE patient_events ADD COLUMN fingerprint uuid;

-- What living patients are found and sorted by. `name_key` is the name in lower case and Unicode's Form C, as
-- the program makes it; rows from before get theirs after the migration, in batches (`patients_unkeyed` has
-- those that are left). E-mail addresses have their keys in `patient_emails`.
ALTER TABLE patients ADD COLUMN name_key text COLLATE "C";
CREATE INDEX patients_unkeyed ON patients (id) WHERE NOT deleted AND name_key IS NULL;
CREATE INDEX patients_by_name ON patients (name_key, id) WHERE NOT deleted;
CREATE INDEX patients_by_birth ON patients (date_of_birth, id) WHERE NOT deleted;
CREATE INDEX patients_by_registration ON patients (registered_date, id) WHERE NOT deleted;
