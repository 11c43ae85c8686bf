//! The access audit, partitioned by the month of `at`: `migrations/postgres/0008_audit_months.sql`.

mod months;
pub(super) mod search;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::fault::Intent;
use super::{PostgresStore, column, limit};
use crate::domain::audit::Change;
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::store::Result;
use crate::store::audit::{AuditBatch, AuditFound, AuditHead, AuditSearch, AuditStore};

pub(super) use self::months::make_months;

fn batch(row: &PgRow) -> Result<AuditBatch> {
    Ok(AuditBatch {
        chain: column(row, 0)?,
        seq: column(row, 1)?,
        at: Timestamp(column(row, 2)?),
        mac: mac(column(row, 3)?),
        terms: column(row, 4)?,
        body: column(row, 5)?,
    })
}

/// Converts a seal. A value of another length becomes zeros, which never verify.
fn mac(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap_or_default()
}

/// Selects the heads of the chains from `$1` on, compared by `$compares`. The query jumps from chain to chain
/// over the primary key, so its cost does not depend on the length of the chains.
macro_rules! heads {
    ($compares:literal) => {
        concat!(
            "WITH RECURSIVE heads AS (
                 (SELECT chain, seq, mac FROM audit_batches WHERE chain ",
            $compares,
            " $1 ORDER BY chain DESC, seq DESC LIMIT 1)
                 UNION ALL
                 SELECT older.* FROM heads CROSS JOIN LATERAL
                     (SELECT b.chain, b.seq, b.mac FROM audit_batches b WHERE b.chain < heads.chain
                      ORDER BY b.chain DESC, b.seq DESC LIMIT 1) older
             )
             SELECT chain, seq, mac FROM heads LIMIT $2"
        )
    };
}

const HEADS: &str = heads!("<=");
const HEADS_BEFORE: &str = heads!("<");

#[async_trait]
impl AuditStore for PostgresStore {
    async fn append_audit(&self, batch: &AuditBatch) -> Result<()> {
        let insert = sqlx::query(
            "INSERT INTO audit_batches (chain, seq, at, mac, body, terms) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(batch.chain)
        .bind(batch.seq)
        .bind(batch.at.0)
        .bind(&batch.mac[..])
        .bind(&batch.body)
        .bind(&batch.terms);
        let done = self.audits.rows(self.answer_timeout, insert).await;
        done.map(drop).map_err(|failure| failure.into_error(Intent::Write))
    }

    async fn audit_heads(&self, before: Option<Uuid>, limit_rows: u32) -> Result<Vec<AuditHead>> {
        // Starts at the largest possible chain id, or below `before`.
        let query = match before {
            None => sqlx::query(HEADS).bind(Uuid::max()),
            Some(before) => sqlx::query(HEADS_BEFORE).bind(before),
        };
        let rows = self.read(query.bind(limit(limit_rows))).await?;
        let head = |row: &PgRow| {
            Ok(AuditHead { chain: column(row, 0)?, seq: column(row, 1)?, mac: mac(column(row, 2)?) })
        };
        rows.iter().map(head).collect()
    }

    async fn audit_batches(&self, chain: Uuid, seq: i64, limit_rows: u32) -> Result<Vec<AuditBatch>> {
        let query = sqlx::query(
            "SELECT chain, seq, at, mac, terms, body FROM audit_batches
             WHERE chain = $1 AND seq >= $2 ORDER BY seq LIMIT $3",
        );
        let rows = self.read(query.bind(chain).bind(seq).bind(limit(limit_rows))).await?;
        rows.iter().map(batch).collect()
    }

    async fn search_audit(&self, search: &AuditSearch) -> Result<AuditFound> {
        search::search(self, search).await
    }

    async fn tend_audit(&self) -> Result<Option<u32>> {
        months::tend(self).await
    }

    async fn changes_made(&self, changes: &[(PatientId, Change)]) -> Result<Vec<bool>> {
        let query = sqlx::query(
            "SELECT e.event_id IS NOT NULL FROM unnest($1::uuid[], $2::int8[], $3::uuid[]) WITH ORDINALITY
                 AS t(patient_id, version, event_id, ord)
             LEFT JOIN patient_events e USING (patient_id, version, event_id) ORDER BY t.ord",
        )
        .bind(changes.iter().map(|(patient, _)| patient.0).collect::<Vec<_>>())
        .bind(changes.iter().map(|(_, change)| change.version).collect::<Vec<_>>())
        .bind(changes.iter().map(|(_, change)| change.event.0).collect::<Vec<_>>());
        self.read(query).await?.iter().map(|row| column(row, 0)).collect()
    }
}
