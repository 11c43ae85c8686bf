//! Patients and their events.

use async_trait::async_trait;
use sqlx::FromRow;
use time::Date;
use uuid::Uuid;

use super::commit::{CommitRow, fence};
use super::fault::Intent;
use super::lanes::Lanes;
use super::{PgQuery, PostgresStore, column, decode, limit, registration};
use crate::domain::event::{EventType, RecordedEvent};
use crate::domain::ids::{CommandId, PatientId, Version};
use crate::domain::patient::{Patient, PatientDetails, PatientState};
use crate::domain::search::{PatientPage, PatientSearch};
use crate::domain::text::search_key;
use crate::store::codec::{EventRow, PatientRow, body_of, email_moves};
use crate::store::{
    AppendOutcome, AuditBatch, LoadedPatient, PatientAppend, PatientStore, Result, searching,
};

/// The commit of a batch. Its parts rely on these facts:
///
/// - `fence` locks the lease rows, in the order of shards, against a taker until the statement has committed.
///   If a taker comes first, the statement waits and then sees the new epoch.
/// - `gated` holds the rows whose decision is still valid: the version follows, and the command is new.
/// - `claimed` finishes before anything is released or written (`owners` needs all of it), and claims in the
///   order of addresses. So two commits cannot deadlock.
/// - Events are inserted without `ON CONFLICT`. `gated` has checked that they are new, so a duplicate key
///   means that a commit of unknown outcome has succeeded meanwhile. The statement is rolled back, and
///   `commit_rows` continues row by row.
const COMMIT: &str = concat!(
    "
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::int4[], $2::int8[], $3::uuid[], $4::int8[], $5::uuid[], $6::uuid[],
        $7::int2[], $8::int8[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[],
        $14::int8[], $15::text[], $16::text[], $17::text[], $18::date[], $19::date[],
        $20::uuid[], $21::text[], $22::bool[])
    WITH ORDINALITY AS t(shard, epoch, id, version, event_id, command_id,
        kind, at, subject, traceparent, body, claim, release,
        created_at, name, email, address, date_of_birth, registered_date, fingerprint, name_key, restricted, ord)
), fence AS MATERIALIZED (
    ",
    fence!("patient"),
    "
), gated AS MATERIALIZED (
    SELECT i.* FROM input i JOIN fence USING (shard, epoch)
    LEFT JOIN patients p ON p.id = i.id
    WHERE i.version = coalesce(p.version, 0) + 1 AND NOT coalesce(p.deleted, false)
      AND NOT EXISTS (SELECT FROM patient_events e
                      WHERE e.patient_id = i.id AND e.command_id = i.command_id)
), claimed AS (
    INSERT INTO patient_emails (email_key, patient_id)
    SELECT claim, id FROM gated WHERE claim IS NOT NULL ORDER BY claim COLLATE \"C\", id
    ON CONFLICT DO NOTHING RETURNING patient_id
), owners AS MATERIALIZED (
    SELECT coalesce(array_agg(patient_id), '{}') AS ids FROM claimed
), passed AS MATERIALIZED (
    SELECT g.* FROM gated g CROSS JOIN owners o WHERE g.claim IS NULL OR g.id = ANY (o.ids)
), released AS (
    DELETE FROM patient_emails e USING passed p
    WHERE e.email_key = p.release AND e.patient_id = p.id
), inserted AS (
    INSERT INTO patients
        (id, version, deleted, created_at, name, email, address, date_of_birth, registered_date, name_key)
    SELECT id, version, false, created_at, name, email, address, date_of_birth, registered_date, name_key
    FROM passed WHERE kind = 1
), changed AS (
    UPDATE patients p SET version = c.version, deleted = (c.kind = 3), created_at = c.created_at,
        name = c.name, email = c.email, address = c.address,
        date_of_birth = c.date_of_birth, registered_date = c.registered_date,
        name_key = c.name_key, restricted = c.restricted
    FROM passed c WHERE c.kind <> 1 AND p.id = c.id AND p.version = c.version - 1
), written AS (
    INSERT INTO patient_events
        (patient_id, version, event_id, command_id, kind, shard, at, subject, traceparent, body, fingerprint)
    SELECT id, version, event_id, command_id, kind, shard, at, subject, traceparent, body, fingerprint
    FROM passed ORDER BY ord
    RETURNING seq, patient_id, version, kind
), told AS (
    INSERT INTO outbox (seq, patient_id, version) SELECT seq, patient_id, version FROM written
), owed AS (
    INSERT INTO unbilled (seq, patient_id, version)
    SELECT seq, patient_id, version FROM written WHERE kind = 1
), audited AS (
    INSERT INTO audit_batches (chain, seq, at, mac, body, terms)
    SELECT $23::uuid, $24::int8, $25::int8, $26::bytea, $27::bytea, $28::int4[] WHERE $23 IS NOT NULL
)
SELECT (CASE WHEN p.ord IS NOT NULL THEN 0 WHEN g.ord IS NOT NULL THEN 1
             WHEN f.shard IS NULL THEN 2 ELSE 3 END)::int2
FROM input i LEFT JOIN fence f USING (shard, epoch) LEFT JOIN gated g USING (ord) LEFT JOIN passed p USING (ord)
ORDER BY i.ord"
);

/// The batch, column by column. A deleted patient's row keeps no data of the record.
#[derive(Default)]
struct Columns<'a> {
    shard: Vec<i32>,
    epoch: Vec<i64>,
    id: Vec<Uuid>,
    version: Vec<i64>,
    event_id: Vec<Uuid>,
    command_id: Vec<Uuid>,
    kind: Vec<i16>,
    at: Vec<i64>,
    subject: Vec<&'a str>,
    traceparent: Vec<&'a str>,
    body: Vec<String>,
    claim: Vec<Option<String>>,
    release: Vec<Option<String>>,
    created_at: Vec<Option<i64>>,
    name: Vec<Option<&'a str>>,
    email: Vec<Option<&'a str>>,
    address: Vec<Option<&'a str>>,
    date_of_birth: Vec<Option<Date>>,
    registered_date: Vec<Option<Date>>,
    fingerprint: Vec<Option<Uuid>>,
    name_key: Vec<Option<String>>,
    restricted: Vec<bool>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, row: &'a PatientAppend) -> Result<()> {
        let recorded = &row.recorded;
        let patient = recorded.event.patient();
        let (claim, release) = email_moves(row);
        self.shard.push(i32::from(row.shard));
        self.epoch.push(row.epoch.0);
        self.id.push(patient.id.0);
        self.version.push(patient.version);
        self.event_id.push(recorded.event_id.0);
        self.command_id.push(recorded.command_id.0);
        self.kind.push(recorded.event_type().code());
        self.at.push(recorded.at.0);
        self.subject.push(&recorded.subject);
        self.traceparent.push(&recorded.traceparent);
        self.body.push(body_of(patient)?);
        self.claim.push(claim);
        self.release.push(release);
        let lives = recorded.event_type() != EventType::Deleted;
        // No `..` here: a new field must not compile until its column is decided.
        let Patient { id: _, version: _, created_at, restricted, details } = &**patient;
        let PatientDetails { name, email, address, date_of_birth, registered_date } = details;
        self.created_at.push(lives.then_some(created_at.0));
        self.name.push(lives.then_some(&**name));
        self.email.push(lives.then_some(&**email));
        self.address.push(lives.then_some(&**address));
        self.date_of_birth.push(lives.then_some(*date_of_birth));
        self.registered_date.push(lives.then_some(*registered_date));
        self.fingerprint.push(recorded.fingerprint.map(|fingerprint| fingerprint.0));
        self.name_key.push(lives.then(|| search_key(name)));
        self.restricted.push(lives && *restricted);
        Ok(())
    }
}

impl CommitRow for PatientAppend {
    fn commit_query(rows: &[&Self], audit: Option<&AuditBatch>) -> Result<PgQuery<'static>> {
        if let [row] = rows
            && row.recorded.event_type() == EventType::Created
            && !cfg!(feature = "unfenced_commit")
        {
            return registration::commit_query(row, audit);
        }
        let mut columns = Columns::default();
        for row in rows {
            columns.push(row)?;
        }
        let query = sqlx::query(COMMIT)
            .bind(columns.shard)
            .bind(columns.epoch)
            .bind(columns.id)
            .bind(columns.version)
            .bind(columns.event_id)
            .bind(columns.command_id)
            .bind(columns.kind)
            .bind(columns.at)
            .bind(columns.subject)
            .bind(columns.traceparent)
            .bind(columns.body)
            .bind(columns.claim)
            .bind(columns.release)
            .bind(columns.created_at)
            .bind(columns.name)
            .bind(columns.email)
            .bind(columns.address)
            .bind(columns.date_of_birth)
            .bind(columns.registered_date)
            .bind(columns.fingerprint)
            .bind(columns.name_key)
            .bind(columns.restricted);
        Ok(audited(query, audit))
    }

    fn lanes(store: &PostgresStore) -> &Lanes {
        &store.patient_commits
    }
}

/// Binds the columns of the audit batch, or nulls.
pub(super) fn audited<'q>(query: PgQuery<'q>, audit: Option<&AuditBatch>) -> PgQuery<'q> {
    query
        .bind(audit.map(|batch| batch.chain))
        .bind(audit.map(|batch| batch.seq))
        .bind(audit.map(|batch| batch.at.0))
        .bind(audit.map(|batch| batch.mac.to_vec()))
        .bind(audit.map(|batch| batch.body.clone()))
        .bind(audit.map(|batch| batch.terms.clone()))
}

impl PostgresStore {
    /// Checks rows that were refused for their e-mail address again. If the address belongs to the patient
    /// itself, a commit of unknown outcome has registered it, and the caller must load the state again.
    async fn tell_own_claims(&self, batch: &[&PatientAppend], outcomes: &mut [AppendOutcome]) {
        let refused: Vec<usize> =
            (0..batch.len()).filter(|n| outcomes[*n] == AppendOutcome::EmailTaken).collect();
        if refused.is_empty() {
            return;
        }
        let key = |n: &usize| batch[*n].recorded.event.patient().details.email_key();
        let id = |n: &usize| batch[*n].recorded.patient_id().0;
        let query = sqlx::query(
            "SELECT t.ord - 1 FROM unnest($1::text[], $2::uuid[]) WITH ORDINALITY AS t(email_key, id, ord)
             JOIN patient_emails e ON e.email_key = t.email_key AND e.patient_id = t.id",
        )
        .bind(refused.iter().map(key).collect::<Vec<_>>())
        .bind(refused.iter().map(id).collect::<Vec<_>>());
        // Uses a connection for commits: the whole batch waits for the answer, which must not wait behind
        // lists.
        let own = self.patient_commits.rows(self.answer_timeout, query).await;
        let own = own.map_err(|failure| failure.into_error(Intent::Read));
        match own.and_then(|rows| rows.iter().map(|row| column(row, 0)).collect()) {
            Ok::<Vec<i64>, _>(own) => {
                for n in own.into_iter().filter_map(|n| usize::try_from(n).ok()) {
                    outcomes[refused[n]] = AppendOutcome::Conflict;
                }
            }
            // Loading the state again is correct in either case.
            Err(_) => refused.into_iter().for_each(|n| outcomes[n] = AppendOutcome::Conflict),
        }
    }
}

/// The state of a patient's row, deleted or not. `touched`: a transaction may be changing it.
#[derive(FromRow)]
struct StateRow {
    version: i64,
    deleted: bool,
    touched: bool,
}

const STATE: &str = "SELECT version, deleted, xmax <> 0 AS touched, id, created_at, name, email, address,
    date_of_birth, registered_date, restricted FROM patients WHERE id = $1";
// `FOR SHARE` waits for the transaction that changes the row, and then reads the result.
const STATE_LOCKED: &str = "SELECT version, deleted, false AS touched, id, created_at, name, email, address,
    date_of_birth, registered_date, restricted FROM patients WHERE id = $1 FOR SHARE";

impl PostgresStore {
    async fn state(&self, id: PatientId) -> Result<PatientState> {
        let mut rows = self.read(sqlx::query(STATE).bind(id.0)).await?;
        if rows.first().map(decode::<StateRow>).transpose()?.is_some_and(|row| row.touched) {
            rows = self.read(sqlx::query(STATE_LOCKED).bind(id.0)).await?;
        }
        let Some(row) = rows.first() else { return Ok(PatientState::Absent) };
        let state: StateRow = decode(row)?;
        if state.deleted {
            return Ok(PatientState::Deleted(state.version));
        }
        Ok(PatientState::Active(std::sync::Arc::new(Patient::from(decode::<PatientRow>(row)?))))
    }
}

#[async_trait]
impl PatientStore for PostgresStore {
    async fn commit_patients_audited(
        &self,
        batch: &[PatientAppend],
        audit: Option<&AuditBatch>,
    ) -> Result<Vec<AppendOutcome>> {
        let batch: Vec<&PatientAppend> = batch.iter().collect();
        let mut outcomes = self.commit_rows(&batch, audit).await?;
        self.tell_own_claims(&batch, &mut outcomes).await;
        Ok(outcomes)
    }

    async fn load_patient(&self, id: PatientId, command: Option<CommandId>) -> Result<LoadedPatient> {
        // Read the event first, so that the state is never older than the event.
        let mut applied = None;
        if let Some(command) = command {
            let query = sqlx::query(
                "SELECT patient_id, version, event_id, command_id, kind, at, subject, traceparent, body, fingerprint
                 FROM patient_events WHERE patient_id = $1 AND command_id = $2",
            );
            let rows = self.read(query.bind(id.0).bind(command.0)).await?;
            applied = rows.first().map(|row| decode::<EventRow>(row)?.into_event()).transpose()?;
        }
        Ok(LoadedPatient { state: self.state(id).await?, applied })
    }

    async fn search(&self, search: &PatientSearch) -> Result<PatientPage> {
        searching::search(self, search).await
    }

    async fn history(&self, id: PatientId, after: Version, limit_rows: u32) -> Result<Vec<RecordedEvent>> {
        let query = sqlx::query(
            "SELECT patient_id, version, event_id, command_id, kind, at, subject, traceparent, body, fingerprint
             FROM patient_events WHERE patient_id = $1 AND version > $2 ORDER BY version LIMIT $3",
        );
        let rows = self.read(query.bind(id.0).bind(after).bind(limit(limit_rows))).await?;
        rows.iter().map(|row| decode::<EventRow>(row)?.into_event()).collect()
    }

    async fn is_empty(&self) -> Result<bool> {
        let rows = self.read(sqlx::query("SELECT 1 FROM patients LIMIT 1")).await?;
        Ok(rows.is_empty())
    }
}
