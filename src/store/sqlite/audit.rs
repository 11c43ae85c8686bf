//! The access audit.

mod terms;

use std::cmp::Reverse;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Sqlite};
use uuid::Uuid;

use super::{SqliteQuery, SqliteStore, change, column};
use crate::domain::audit::Change;
use crate::domain::ids::{EventId, PatientId, Version};
use crate::domain::time::Timestamp;
use crate::store::audit::{
    AuditAnchor, AuditArchiveStore, AuditBatch, AuditFound, AuditHead, AuditPosition, AuditSearch,
    AuditStore, EventAt,
};
use crate::store::{Error, Result};

/// Adds `batch` within a transaction.
pub(super) async fn append(connection: &mut SqliteConnection, batch: &AuditBatch) -> Result<()> {
    change(connection, insertion(batch)).await.map(drop)
}

/// Inserts the row with the next id of the microsecond of `at`: `migrations/sqlite/0014_audit_terms.sql`. A
/// trigger adds its terms to the index.
fn insertion(batch: &AuditBatch) -> SqliteQuery<'static> {
    sqlx::query(
        "INSERT INTO audit_batches (id, chain, seq, at, mac, terms, body) VALUES (
             (SELECT ifnull(max(id) + 1, $3 * 1024) FROM audit_batches WHERE id BETWEEN $3 * 1024 AND $3 * 1024 + 1023),
             $1, $2, $3, $4, $5, $6)",
    )
    .bind(batch.chain)
    .bind(batch.seq)
    .bind(batch.at.0)
    .bind(batch.mac.to_vec())
    .bind(bytes_of(&batch.terms))
    .bind(batch.body.clone())
}

fn bytes_of(terms: &[i32]) -> Vec<u8> {
    terms.iter().flat_map(|term| term.to_le_bytes()).collect()
}

fn batch(row: &SqliteRow) -> Result<AuditBatch> {
    let terms: Vec<u8> = column(row, 4)?;
    let (terms, _) = terms.as_chunks::<4>();
    Ok(AuditBatch {
        chain: column(row, 0)?,
        seq: column(row, 1)?,
        at: Timestamp(column(row, 2)?),
        mac: mac(&column::<Vec<u8>>(row, 3)?),
        terms: terms.iter().map(|term| i32::from_le_bytes(*term)).collect(),
        body: column(row, 5)?,
    })
}

/// Converts a seal. A value of another length becomes zeros, which never verify.
fn mac(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap_or_default()
}

/// Number of ids per microsecond.
const IDS: i64 = 1024;

/// Returns the lowest and the highest id of rows sealed between `from` and `until`, both inclusive.
fn ids_between(from: Timestamp, until: Timestamp) -> (i64, i64) {
    (from.0.saturating_mul(IDS), until.0.saturating_mul(IDS).saturating_add(IDS - 1))
}

/// Selects the rows of a search with ids from `low` to `high`, highest first, each with its id. With terms,
/// the index of terms is the outer loop: it stores the ids of a term in order, so the search stops at the
/// limit. With several terms it reads the ids of each, a few bytes per row, because the index cannot skip.
pub(super) fn search_query(search: &AuditSearch, low: i64, high: i64) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new("SELECT b.chain, b.seq, b.at, b.mac, b.terms, b.body, b.id FROM ");
    let id = if search.terms.is_empty() {
        query.push("audit_batches b WHERE ");
        "b.id"
    } else {
        let words: Vec<String> = search.terms.iter().map(|term| word(*term)).collect();
        query.push(
            "audit_terms CROSS JOIN audit_batches b ON b.id = audit_terms.rowid WHERE audit_terms MATCH ",
        );
        query.push_bind(words.join(" ")).push(" AND ");
        "audit_terms.rowid"
    };
    query.push(id).push(" >= ").push_bind(low).push(" AND ").push(id).push(" <= ").push_bind(high);
    query.push(" AND (b.at, b.chain, b.seq) <= (").push_bind(search.until.at.0);
    query.push(", ").push_bind(search.until.chain).push(", ").push_bind(search.until.seq).push(")");
    query.push(" ORDER BY ").push(id).push(" DESC LIMIT ").push_bind(search.limit_rows);
    query
}

/// Quotes a term for a search, in the form in which the index stores it.
fn word(term: i32) -> String {
    format!("\"{:08x}\"", u32::from_be_bytes(term.to_le_bytes()))
}

#[async_trait]
impl AuditStore for SqliteStore {
    async fn append_audit(&self, batch: &AuditBatch) -> Result<()> {
        self.writer.write_alone(insertion(batch)).await.map(drop)
    }

    async fn audit_heads(&self, before: Option<Uuid>, limit_rows: u32) -> Result<Vec<AuditHead>> {
        // The query jumps from chain to chain over the key, so its cost does not depend on the length of the
        // chains.
        let query = sqlx::query(
            "WITH RECURSIVE heads (chain) AS (
                 SELECT max(chain) FROM audit_batches WHERE $1 IS NULL OR chain < $1
                 UNION ALL
                 SELECT (SELECT max(b.chain) FROM audit_batches b WHERE b.chain < heads.chain)
                 FROM heads WHERE heads.chain IS NOT NULL LIMIT $2
             )
             SELECT b.chain, b.seq, b.mac FROM heads JOIN audit_batches b ON b.chain = heads.chain
             WHERE b.seq = (SELECT max(seq) FROM audit_batches n WHERE n.chain = heads.chain)
             ORDER BY b.chain DESC",
        );
        let rows = self.read(query.bind(before).bind(limit_rows)).await?;
        let head = |row: &SqliteRow| {
            let mac = mac(&column::<Vec<u8>>(row, 2)?);
            Ok(AuditHead { chain: column(row, 0)?, seq: column(row, 1)?, mac })
        };
        rows.iter().map(head).collect()
    }

    async fn audit_batches(&self, chain: Uuid, seq: i64, limit_rows: u32) -> Result<Vec<AuditBatch>> {
        let query = sqlx::query(
            "SELECT chain, seq, at, mac, terms, body FROM audit_batches
             WHERE chain = $1 AND seq >= $2 ORDER BY seq LIMIT $3",
        );
        let rows = self.read(query.bind(chain).bind(seq).bind(limit_rows)).await?;
        rows.iter().map(batch).collect()
    }

    async fn search_audit(&self, search: &AuditSearch) -> Result<AuditFound> {
        let (low, high) = ids_between(search.from, search.until.at);
        let mut rows = self.read(search_query(search, low, high).build()).await?;
        let full = rows.len() >= search.limit_rows as usize;
        if full && let Some(last) = rows.last() {
            // Rows of one microsecond have ids in the order of insertion. Continuing in the order of lists
            // requires all of them.
            let last: i64 = column(last, 6)?;
            if last % IDS != 0 {
                let (low, _) = ids_between(Timestamp(last >> 10), search.until.at);
                let whole = AuditSearch { limit_rows: IDS as u32, ..search.clone() };
                rows.extend(self.read(search_query(&whole, low, last - 1).build()).await?);
            }
        }
        let mut batches = rows.iter().map(batch).collect::<Result<Vec<_>>>()?;
        batches.sort_unstable_by_key(|batch| Reverse((batch.at, batch.chain, batch.seq)));
        batches.truncate(search.limit_rows as usize);
        let looked_to = batches.last().filter(|_| full).map(AuditPosition::from);
        Ok(AuditFound { batches, looked_to })
    }

    async fn changes_made(&self, changes: &[(PatientId, Change)]) -> Result<Vec<bool>> {
        let mut made = Vec::with_capacity(changes.len());
        for (patient, Change { event, version }) in changes {
            let query = sqlx::query(
                "SELECT 1 FROM patient_events WHERE patient_id = $1 AND version = $2 AND event_id = $3",
            );
            made.push(!self.read(query.bind(patient.0).bind(version).bind(event.0)).await?.is_empty());
        }
        Ok(made)
    }
}

/// Stores `anchor` and deletes the rows at and before it, within a transaction.
async fn remove_behind(connection: &mut SqliteConnection, anchor: &AuditAnchor) -> Result<()> {
    let AuditAnchor { head, seal } = anchor;
    let leave = sqlx::query(
        "INSERT INTO audit_anchors (chain, seq, mac, seal) VALUES ($1, $2, $3, $4)
         ON CONFLICT (chain) DO UPDATE SET seq = excluded.seq, mac = excluded.mac, seal = excluded.seal
         WHERE audit_anchors.seq < excluded.seq",
    );
    let leave = leave.bind(head.chain).bind(head.seq).bind(head.mac.to_vec()).bind(seal.to_vec());
    change(connection, leave).await?;
    let remove = sqlx::query("DELETE FROM audit_batches WHERE chain = $1 AND seq <= $2");
    change(connection, remove.bind(head.chain).bind(head.seq)).await.map(drop)
}

/// Maximum number of rows that one transaction removes, because the server must not wait long for its turn to
/// write.
const REMOVAL_ROWS_MAX: u32 = 256;

#[async_trait]
impl AuditArchiveStore for SqliteStore {
    async fn audit_anchors(&self, after: Option<Uuid>, limit_rows: u32) -> Result<Vec<AuditAnchor>> {
        let query = sqlx::query(
            "SELECT chain, seq, mac, seal FROM audit_anchors WHERE $1 IS NULL OR chain > $1 ORDER BY chain LIMIT $2",
        );
        let rows = self.read(query.bind(after).bind(limit_rows)).await?;
        let anchor = |row: &SqliteRow| {
            let bytes = |at: usize| column::<Vec<u8>>(row, at).map(|bytes| mac(&bytes));
            let head = AuditHead { chain: column(row, 0)?, seq: column(row, 1)?, mac: bytes(2)? };
            Ok(AuditAnchor { head, seal: bytes(3)? })
        };
        rows.iter().map(anchor).collect()
    }

    async fn events_at(&self, places: &[(PatientId, Version)]) -> Result<Vec<EventAt>> {
        let mut found = Vec::with_capacity(places.len());
        for (patient, version) in places {
            let query = sqlx::query(
                "SELECT (SELECT event_id FROM patient_events WHERE patient_id = $1 AND version = $2),
                    COALESCE((SELECT max(version) FROM patient_events WHERE patient_id = $1), 0),
                    COALESCE((SELECT version FROM patients WHERE id = $1), 0)",
            );
            let rows = self.read(query.bind(patient.0).bind(version)).await?;
            let row =
                rows.first().ok_or_else(|| Error::Broken("a row is missing in an answer".to_owned()))?;
            let event = column::<Option<Uuid>>(row, 0)?.map(EventId);
            found.push(EventAt { event, newest: column(row, 1)?, record: column(row, 2)? });
        }
        Ok(found)
    }

    async fn audit_can_end_at(&self, before: Timestamp) -> Result<Option<Timestamp>> {
        Ok(Some(before))
    }

    async fn audit_terms_fit(&self) -> Result<bool> {
        terms::fit(self).await
    }

    fn audit_removal_rows_max(&self) -> Option<u32> {
        Some(REMOVAL_ROWS_MAX)
    }

    async fn remove_audit(&self, _end: Timestamp, anchors: &[AuditAnchor]) -> Result<()> {
        let anchors = anchors.to_vec();
        let removal = self.writer.write(move |connection| {
            Box::pin(async move {
                for anchor in &anchors {
                    remove_behind(connection, anchor).await?;
                }
                Ok(())
            })
        });
        removal.await
    }
}
