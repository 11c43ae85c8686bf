//! Billing accounts.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::patients::epochs;
use super::{SqliteStore, change, decode};
use crate::domain::account::Account;
use crate::domain::ids::{Kind, PatientId};
use crate::store::codec::AccountRow;
use crate::store::{AccountAppend, AccountStore, AppendOutcome, Result};

async fn commit(connection: &mut SqliteConnection, batch: &[AccountAppend]) -> Result<Vec<AppendOutcome>> {
    let epochs = epochs(connection, Kind::Billing, batch.iter().map(|row| row.shard)).await?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for row in batch {
        if epochs.get(&row.shard) != Some(&row.epoch) {
            outcomes.push(AppendOutcome::Fenced);
            continue;
        }
        let account = &row.account;
        let query = sqlx::query(
            "INSERT INTO accounts (id, patient_id, name, email, status, opened_at)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .bind(account.id.0)
        .bind(account.patient_id.0)
        .bind(account.name.to_string())
        .bind(account.email.to_string())
        .bind(account.status.as_str())
        .bind(account.opened_at.0);
        outcomes.push(match change(connection, query).await? {
            0 => AppendOutcome::Conflict,
            _ => AppendOutcome::Committed,
        });
    }
    Ok(outcomes)
}

#[async_trait]
impl AccountStore for SqliteStore {
    async fn commit_accounts(&self, batch: &[AccountAppend]) -> Result<Vec<AppendOutcome>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let batch = batch.to_vec();
        self.writer.write(move |connection| Box::pin(async move { commit(connection, &batch).await })).await
    }

    async fn load_account(&self, patient: PatientId) -> Result<Option<Arc<Account>>> {
        self.writer.settle_abandoned().await?;
        let query = sqlx::query(
            "SELECT id, patient_id, status, opened_at, name, email FROM accounts WHERE patient_id = $1",
        );
        let rows = self.read(query.bind(patient.0)).await?;
        rows.first().map(|row| decode::<AccountRow>(row)?.into_account()).transpose()
    }
}
