//! Billing accounts.

use std::sync::Arc;

use async_trait::async_trait;

use super::commit::{CommitRow, fence};
use super::lanes::Lanes;
use super::{PgQuery, PostgresStore, decode};
use crate::domain::account::Account;
use crate::domain::ids::PatientId;
use crate::store::codec::AccountRow;
use crate::store::{AccountAppend, AccountStore, AppendOutcome, AuditBatch, Result};

/// As the commit of patients: fenced, and in a fixed order. The account's own id tells whether the row of the
/// batch is the row that was inserted.
const COMMIT: &str = concat!(
    "
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::int4[], $2::int8[], $3::uuid[], $4::uuid[], $5::text[], $6::text[],
        $7::text[], $8::int8[])
    WITH ORDINALITY AS t(shard, epoch, id, patient_id, name, email, status, opened_at, ord)
), fence AS MATERIALIZED (
    ",
    fence!("billing"),
    "
), opened AS (
    INSERT INTO accounts (id, patient_id, name, email, status, opened_at)
    SELECT i.id, i.patient_id, i.name, i.email, i.status, i.opened_at
    FROM input i JOIN fence USING (shard, epoch) ORDER BY i.patient_id, i.ord
    ON CONFLICT DO NOTHING RETURNING id
)
SELECT (CASE WHEN o.id IS NOT NULL THEN 0 WHEN f.shard IS NULL THEN 2 ELSE 3 END)::int2
FROM input i LEFT JOIN fence f USING (shard, epoch) LEFT JOIN opened o ON o.id = i.id
ORDER BY i.ord"
);

impl CommitRow for AccountAppend {
    fn commit_query(rows: &[&Self], _audit: Option<&AuditBatch>) -> Result<PgQuery<'static>> {
        Ok(sqlx::query(COMMIT)
            .bind(rows.iter().map(|row| i32::from(row.shard)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.epoch.0).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.account.id.0).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.account.patient_id.0).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| &*row.account.name).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| &*row.account.email).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.account.status.as_str()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.account.opened_at.0).collect::<Vec<_>>()))
    }

    fn lanes(store: &PostgresStore) -> &Lanes {
        &store.account_commits
    }
}

#[async_trait]
impl AccountStore for PostgresStore {
    async fn commit_accounts(&self, batch: &[AccountAppend]) -> Result<Vec<AppendOutcome>> {
        self.commit_rows(&batch.iter().collect::<Vec<_>>(), None).await
    }

    async fn load_account(&self, patient: PatientId) -> Result<Option<Arc<Account>>> {
        let query = sqlx::query(
            "SELECT id, patient_id, status, opened_at, name, email FROM accounts WHERE patient_id = $1",
        );
        let rows = self.read(query.bind(patient.0)).await?;
        rows.first().map(|row| decode::<AccountRow>(row)?.into_account()).transpose()
    }
}
