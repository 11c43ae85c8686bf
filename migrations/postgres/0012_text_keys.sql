-- Names are found by their full case folding, without characters that nobody sees. The keys of names in ASCII stay
-- as they are; the others are made anew after the migration, as those of rows that had none.
UPDATE patients SET name_key = NULL WHERE NOT deleted AND octet_length(name) <> char_length(name);
-- E-mail addresses are told apart by a form in ASCII (the domain in A-labels). Keys in other letters are brought into
-- it after the migration; this index has those that are left.
CREATE INDEX patient_emails_unkeyed ON patient_emails (email_key)
    WHERE octet_length(email_key) <> char_length(email_key);
