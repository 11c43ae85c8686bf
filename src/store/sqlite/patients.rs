//! Patients and their events.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::FromRow;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, audit, change, column, decode, rows};
use crate::domain::event::{EventType, RecordedEvent};
use crate::domain::ids::{CommandId, Epoch, Kind, PatientId, ShardNo, Version};
use crate::domain::patient::{Patient, PatientDetails, PatientState};
use crate::domain::search::{PatientPage, PatientSearch};
use crate::domain::text::search_key;
use crate::store::codec::{EventRow, PatientRow, body_of, email_moves};
use crate::store::{
    AppendOutcome, AuditBatch, LoadedPatient, PatientAppend, PatientStore, Result, searching,
};

/// Reads the epochs of the given shards.
pub(super) async fn epochs(
    connection: &mut SqliteConnection,
    kind: Kind,
    shards: impl Iterator<Item = ShardNo>,
) -> Result<HashMap<ShardNo, Epoch>> {
    let mut epochs = HashMap::new();
    for shard in shards {
        if epochs.contains_key(&shard) {
            continue;
        }
        let query = sqlx::query("SELECT epoch FROM leases WHERE kind = $1 AND shard = $2");
        let found = rows(connection, query.bind(kind.as_str()).bind(i32::from(shard))).await?;
        if let Some(row) = found.first() {
            epochs.insert(shard, Epoch(column(row, 0)?));
        }
    }
    Ok(epochs)
}

/// Returns whether the decision of `row` is still valid: the version follows, and the command is new.
async fn follows(connection: &mut SqliteConnection, row: &PatientAppend) -> Result<bool> {
    let id = row.recorded.patient_id();
    let query = sqlx::query(
        "SELECT coalesce((SELECT version FROM patients WHERE id = $1), 0) + 1 = $2
             AND NOT EXISTS (SELECT 1 FROM patients WHERE id = $1 AND deleted)
             AND NOT EXISTS (SELECT 1 FROM patient_events WHERE patient_id = $1 AND command_id = $3)",
    );
    let query = query.bind(id.0).bind(row.recorded.version()).bind(row.recorded.command_id.0);
    let found = rows(connection, query).await?;
    found.first().map(|row| column(row, 0)).transpose().map(Option::unwrap_or_default)
}

/// Claims an e-mail address for a patient.
async fn claim(connection: &mut SqliteConnection, key: &str, id: PatientId) -> Result<AppendOutcome> {
    let insert = sqlx::query(
        "INSERT INTO patient_emails (email_key, patient_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    );
    if change(connection, insert.bind(key).bind(id.0)).await? == 1 {
        return Ok(AppendOutcome::Committed);
    }
    let owner = sqlx::query("SELECT patient_id FROM patient_emails WHERE email_key = $1").bind(key);
    let owner: Option<Uuid> = rows(connection, owner).await?.first().map(|row| column(row, 0)).transpose()?;
    // The patient owns the address already, so the caller's state is out of date.
    Ok(if owner == Some(id.0) { AppendOutcome::Conflict } else { AppendOutcome::EmailTaken })
}

async fn write_state(connection: &mut SqliteConnection, row: &PatientAppend) -> Result<()> {
    let patient = row.recorded.event.patient();
    let lives = row.recorded.event_type() != EventType::Deleted;
    // No `..` here: a new field must not compile until its column is decided.
    let Patient { id, version, created_at, restricted, details } = &**patient;
    let PatientDetails { name, email, address, date_of_birth, registered_date } = details;
    let query = sqlx::query(
        "INSERT INTO patients
             (id, version, deleted, created_at, name, email, address, date_of_birth, registered_date, name_key,
              restricted)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         ON CONFLICT (id) DO UPDATE SET version = excluded.version, deleted = excluded.deleted,
             created_at = excluded.created_at, name = excluded.name, email = excluded.email,
             address = excluded.address, date_of_birth = excluded.date_of_birth,
             registered_date = excluded.registered_date, name_key = excluded.name_key,
             restricted = excluded.restricted",
    )
    .bind(id.0)
    .bind(*version)
    .bind(!lives)
    .bind(lives.then_some(created_at.0))
    .bind(lives.then(|| name.to_string()))
    .bind(lives.then(|| email.to_string()))
    .bind(lives.then(|| address.to_string()))
    .bind(lives.then_some(*date_of_birth))
    .bind(lives.then_some(*registered_date))
    .bind(lives.then(|| search_key(name)))
    .bind(lives && *restricted);
    change(connection, query).await.map(drop)
}

async fn write_event(connection: &mut SqliteConnection, row: &PatientAppend) -> Result<()> {
    let recorded = &row.recorded;
    let patient = recorded.event.patient();
    let insert = sqlx::query(
        "INSERT INTO patient_events
             (patient_id, version, event_id, command_id, kind, shard, at, subject, traceparent, body,
              fingerprint)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING seq",
    )
    .bind(patient.id.0)
    .bind(patient.version)
    .bind(recorded.event_id.0)
    .bind(recorded.command_id.0)
    .bind(recorded.event_type().code())
    .bind(i32::from(row.shard))
    .bind(recorded.at.0)
    .bind(recorded.subject.to_string())
    .bind(recorded.traceparent.to_string())
    .bind(body_of(patient)?)
    .bind(recorded.fingerprint.map(|fingerprint| fingerprint.0));
    let seq: i64 =
        rows(connection, insert).await?.first().map(|row| column(row, 0)).transpose()?.unwrap_or_default();
    let tell = sqlx::query("INSERT INTO outbox (seq, patient_id, version) VALUES ($1, $2, $3)");
    change(connection, tell.bind(seq).bind(patient.id.0).bind(patient.version)).await?;
    if recorded.event_type() == EventType::Created {
        let owe = sqlx::query("INSERT INTO unbilled (seq, patient_id, version) VALUES ($1, $2, $3)");
        change(connection, owe.bind(seq).bind(patient.id.0).bind(patient.version)).await?;
    }
    Ok(())
}

/// Commits in two rounds, with the same result as PostgreSQL's single statement. The first round decides
/// every row, in the order of addresses; the second one writes. So an address that the batch frees is not
/// free within the batch.
async fn commit(connection: &mut SqliteConnection, batch: &[PatientAppend]) -> Result<Vec<AppendOutcome>> {
    let epochs = epochs(connection, Kind::Patient, batch.iter().map(|row| row.shard)).await?;
    let moves: Vec<_> = batch.iter().map(email_moves).collect();
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by_key(|n| (&moves[*n].0, batch[*n].recorded.patient_id()));
    let mut outcomes = vec![AppendOutcome::Fenced; batch.len()];
    for n in order {
        let row = &batch[n];
        if epochs.get(&row.shard) != Some(&row.epoch) {
            continue;
        }
        outcomes[n] = match &moves[n].0 {
            _ if !follows(connection, row).await? => AppendOutcome::Conflict,
            Some(key) => claim(connection, key, row.recorded.patient_id()).await?,
            None => AppendOutcome::Committed,
        };
    }
    for (n, row) in batch.iter().enumerate() {
        if outcomes[n] != AppendOutcome::Committed {
            continue;
        }
        if let Some(released) = &moves[n].1 {
            let free = sqlx::query("DELETE FROM patient_emails WHERE email_key = $1 AND patient_id = $2");
            change(connection, free.bind(released.clone()).bind(row.recorded.patient_id().0)).await?;
        }
        write_state(connection, row).await?;
        write_event(connection, row).await?;
    }
    Ok(outcomes)
}

/// The state of a patient's row, deleted or not.
#[derive(FromRow)]
struct StateRow {
    version: i64,
    deleted: bool,
}

#[async_trait]
impl PatientStore for SqliteStore {
    async fn commit_patients_audited(
        &self,
        batch: &[PatientAppend],
        audit: Option<&AuditBatch>,
    ) -> Result<Vec<AppendOutcome>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let (batch, sealed) = (batch.to_vec(), audit.cloned());
        let work = async move |connection: &mut SqliteConnection| {
            if let Some(sealed) = &sealed {
                audit::append(connection, sealed).await?;
            }
            commit(connection, &batch).await
        };
        self.writer.write(move |connection| Box::pin(async move { work(connection).await })).await
    }

    async fn load_patient(&self, id: PatientId, command: Option<CommandId>) -> Result<LoadedPatient> {
        self.writer.settle_abandoned().await?;
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
        let query = sqlx::query(
            "SELECT version, deleted, id, created_at, name, email, address, date_of_birth, registered_date,
                 restricted
             FROM patients WHERE id = $1",
        );
        let rows = self.read(query.bind(id.0)).await?;
        let state = match rows.first() {
            None => PatientState::Absent,
            Some(row) => match decode::<StateRow>(row)? {
                StateRow { deleted: true, version } => PatientState::Deleted(version),
                _ => PatientState::Active(Arc::new(decode::<PatientRow>(row)?.into())),
            },
        };
        Ok(LoadedPatient { state, applied })
    }

    async fn search(&self, search: &PatientSearch) -> Result<PatientPage> {
        searching::search(self, search).await
    }

    async fn history(&self, id: PatientId, after: Version, limit_rows: u32) -> Result<Vec<RecordedEvent>> {
        let query = sqlx::query(
            "SELECT patient_id, version, event_id, command_id, kind, at, subject, traceparent, body, fingerprint
             FROM patient_events WHERE patient_id = $1 AND version > $2 ORDER BY version LIMIT $3",
        );
        let rows = self.read(query.bind(id.0).bind(after).bind(limit_rows)).await?;
        rows.iter().map(|row| decode::<EventRow>(row)?.into_event()).collect()
    }

    async fn is_empty(&self) -> Result<bool> {
        let rows = self.read(sqlx::query("SELECT 1 FROM patients LIMIT 1")).await?;
        Ok(rows.is_empty())
    }
}
