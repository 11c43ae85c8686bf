//! The commit of a batch that is a single registration. A system under light load mostly commits such
//! batches, and a client waits for each. The plan has a third of the nodes of the general one; setting up its
//! plan is what a small statement mostly costs.
//!
//! The statement relies on the same facts as `patients::COMMIT` and decides the same. It does not look up
//! whether the patient is new: the keys of `patients` and `patient_events` refuse an existing one, which
//! rolls the statement back.

use super::PgQuery;
use super::patients::audited;
use crate::domain::patient::{Patient, PatientDetails};
use crate::domain::text::search_key;
use crate::store::codec::body_of;
use crate::store::{AuditBatch, PatientAppend, Result};

const REGISTER: &str = "
WITH fence AS MATERIALIZED (
    SELECT FROM leases WHERE kind = 'patient' AND shard = $1 AND epoch = $2 FOR KEY SHARE
), claimed AS (
    INSERT INTO patient_emails (email_key, patient_id) SELECT $9, $3 FROM fence
    ON CONFLICT DO NOTHING RETURNING patient_id
), inserted AS (
    INSERT INTO patients
        (id, version, deleted, created_at, name, email, address, date_of_birth, registered_date, name_key)
    SELECT patient_id, 1, false, $10, $11, $12, $13, $14, $15, $18 FROM claimed
), written AS (
    INSERT INTO patient_events
        (patient_id, version, event_id, command_id, kind, shard, at, subject, traceparent, body, fingerprint)
    SELECT patient_id, 1, $4, $5, 1, $1, $6, $7, $8, $16, $17 FROM claimed
    RETURNING seq, patient_id, version
), told AS (
    INSERT INTO outbox (seq, patient_id, version) SELECT seq, patient_id, version FROM written
), owed AS (
    INSERT INTO unbilled (seq, patient_id, version) SELECT seq, patient_id, version FROM written
), audited AS (
    INSERT INTO audit_batches (chain, seq, at, mac, body, terms)
    SELECT $19::uuid, $20::int8, $21::int8, $22::bytea, $23::bytea, $24::int4[] WHERE $19 IS NOT NULL
)
SELECT (CASE WHEN EXISTS (SELECT FROM claimed) THEN 0 WHEN NOT EXISTS (SELECT FROM fence) THEN 2
             WHEN EXISTS (SELECT FROM patients WHERE id = $3) THEN 3 ELSE 1 END)::int2";

/// The statement for `row`, which must be a registration. It returns what `CommitRow::commit_query`
/// describes.
///
/// # Errors
/// `Broken`: the record cannot be encoded as JSON.
pub(super) fn commit_query(row: &PatientAppend, audit: Option<&AuditBatch>) -> Result<PgQuery<'static>> {
    let recorded = &row.recorded;
    let patient = recorded.event.patient();
    // No `..` here: a new field must not compile until its column is decided.
    let Patient { id, version: _, created_at, restricted: _, details } = &**patient;
    let PatientDetails { name, email, address, date_of_birth, registered_date } = details;
    let query = sqlx::query(REGISTER)
        .bind(i32::from(row.shard))
        .bind(row.epoch.0)
        .bind(id.0)
        .bind(recorded.event_id.0)
        .bind(recorded.command_id.0)
        .bind(recorded.at.0)
        .bind(recorded.subject.to_string())
        .bind(recorded.traceparent.to_string())
        .bind(details.email_key())
        .bind(created_at.0)
        .bind(name.to_string())
        .bind(email.to_string())
        .bind(address.to_string())
        .bind(*date_of_birth)
        .bind(*registered_date)
        .bind(body_of(patient)?)
        .bind(recorded.fingerprint.map(|fingerprint| fingerprint.0))
        .bind(search_key(name));
    Ok(audited(query, audit))
}
