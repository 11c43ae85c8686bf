-- The changes of the PostgreSQL migration of the same number, where their reasons are told.

UPDATE patients SET name_key = NULL WHERE deleted = 0 AND length(CAST(name AS BLOB)) <> length(name);
CREATE INDEX patient_emails_unkeyed ON patient_emails (email_key)
    WHERE length(CAST(email_key AS BLOB)) <> length(email_key);
