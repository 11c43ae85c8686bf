//! The outbox: which events wait for Kafka, which a broker has taken, which registrations wait for an
//! account.
//!
//! Invariant: an event is in `outbox` or in `outbox_sent` until analytics has applied it.

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::{SqliteStore, change, column, decode, rows};
use crate::domain::event::OutboxEvent;
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::store::codec::OutboxRow;
use crate::store::trimming::{TRIM_CHUNK_ROWS, next_after};
use crate::store::{
    Error, OUTBOX_DEPTH_ROWS_MAX, OutboxDepth, OutboxRows, OutboxStore, PutBack, Result, UnreadableRow,
};

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

/// The numbers as a JSON array: SQLite has no array parameters, but reads this as a table.
fn json(seqs: &[i64]) -> Result<String> {
    serde_json::to_string(seqs).map_err(|_| Error::Broken("numbers cannot be written as JSON".to_owned()))
}

/// The ids as a JSON array of what `unhex` reads.
fn json_of_ids(patients: &[PatientId]) -> Result<String> {
    let ids: Vec<String> = patients.iter().map(|id| id.0.simple().to_string()).collect();
    serde_json::to_string(&ids).map_err(|_| Error::Broken("ids cannot be written as JSON".to_owned()))
}

/// A row of columns `seq`, `shard`, `patient_id`, `version` and so on: whose it is, and what it says.
fn place_and_event(row: &SqliteRow) -> Result<(UnreadableRow, Result<OutboxEvent>)> {
    let patient_id = PatientId(column(row, 2)?);
    let place = UnreadableRow { seq: column(row, 0)?, patient_id, version: column(row, 3)? };
    Ok((place, decode::<OutboxRow>(row).and_then(OutboxRow::into_event)))
}

#[async_trait]
impl OutboxStore for SqliteStore {
    async fn unpublished_besides(
        &self,
        known: &[i64],
        held: &[PatientId],
        limit_rows: u32,
    ) -> Result<OutboxRows> {
        let query = sqlx::query(
            "SELECT e.seq, e.shard, e.patient_id, e.version, e.event_id, e.command_id, e.kind, e.at,
                 e.subject, e.traceparent, e.body
             FROM outbox o JOIN patient_events e ON e.seq = o.seq
             WHERE o.seq NOT IN (SELECT value FROM json_each($2))
             AND o.patient_id NOT IN (SELECT unhex(value) FROM json_each($3)) ORDER BY o.seq LIMIT $1",
        );
        let rows = self.read(query.bind(limit_rows).bind(json(known)?).bind(json_of_ids(held)?)).await?;
        OutboxRows::gather(rows.iter().map(place_and_event), limit_rows)
    }

    async fn mark_published(&self, seqs: &[i64], broker: &str) -> Result<()> {
        let (seqs, broker) = (json(seqs)?, broker.to_owned());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let copy = sqlx::query(
                        "INSERT INTO outbox_sent (seq, patient_id, version, broker)
                         SELECT seq, patient_id, version, $2 FROM outbox
                         WHERE seq IN (SELECT value FROM json_each($1))",
                    );
                    change(connection, copy.bind(seqs.clone()).bind(broker)).await?;
                    let take =
                        sqlx::query("DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each($1))");
                    change(connection, take.bind(seqs)).await.map(drop)
                })
            })
            .await
    }

    async fn republish_forgotten(&self, broker: &str, after: Option<i64>, rows_max: u32) -> Result<PutBack> {
        let (broker, after) = (broker.to_owned(), after.unwrap_or(i64::MIN));
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let (seen, last) = forget_applied(connection, after, rows_max).await?;
                    let put_back = sqlx::query(
                        "INSERT INTO outbox (seq, patient_id, version)
                         SELECT seq, patient_id, version FROM outbox_sent
                         WHERE seq > $1 AND seq <= $2 AND broker <> $3",
                    );
                    let put_back = put_back.bind(after).bind(last).bind(broker.clone());
                    let rows = change(connection, put_back).await?;
                    let forget =
                        sqlx::query("DELETE FROM outbox_sent WHERE seq > $1 AND seq <= $2 AND broker <> $3");
                    change(connection, forget.bind(after).bind(last).bind(broker)).await?;
                    Ok(PutBack { rows, next: next_after(rows_max, seen, last) })
                })
            })
            .await
    }

    async fn any_forgotten(&self, broker: &str) -> Result<bool> {
        let query = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM outbox_sent s WHERE s.broker <> $1 AND NOT EXISTS
                 (SELECT 1 FROM projection_patients p
                  WHERE p.patient_id = s.patient_id AND p.version >= s.version))",
        );
        let rows = self.read(query.bind(broker.to_owned())).await?;
        Ok(rows.first().map(|row| column(row, 0)).transpose()?.unwrap_or_default())
    }

    async fn outbox_depth(&self) -> Result<OutboxDepth> {
        let query = sqlx::query(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox LIMIT $1) o),
                 (SELECT count(*) FROM (SELECT 1 FROM unbilled LIMIT $1) u),
                 (SELECT e.at FROM outbox o JOIN patient_events e ON e.seq = o.seq ORDER BY o.seq LIMIT 1)",
        );
        let rows = self.read(query.bind(OUTBOX_DEPTH_ROWS_MAX + 1)).await?;
        let Some(row) = rows.first() else { return Ok(OutboxDepth::default()) };
        Ok(OutboxDepth {
            unpublished_rows: count(column(row, 0)?),
            unbilled_rows: count(column(row, 1)?),
            oldest_at: column::<Option<i64>>(row, 2)?.map(Timestamp),
        })
    }

    async fn unbilled(&self, held: &[PatientId], limit_rows: u32) -> Result<OutboxRows> {
        let query = sqlx::query(
            "SELECT e.seq, e.shard, e.patient_id, e.version, e.event_id, e.command_id, e.kind, e.at,
                 e.subject, e.traceparent, e.body
             FROM unbilled u JOIN patient_events e ON e.seq = u.seq
             WHERE u.patient_id NOT IN (SELECT unhex(value) FROM json_each($2)) ORDER BY u.seq LIMIT $1",
        );
        let rows = self.read(query.bind(limit_rows).bind(json_of_ids(held)?)).await?;
        OutboxRows::gather(rows.iter().map(place_and_event), limit_rows)
    }

    async fn mark_billed(&self, seqs: &[i64]) -> Result<()> {
        let seqs = json(seqs)?;
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let query =
                        sqlx::query("DELETE FROM unbilled WHERE seq IN (SELECT value FROM json_each($1))");
                    change(connection, query.bind(seqs)).await.map(drop)
                })
            })
            .await
    }
}

impl SqliteStore {
    /// Forgets sent events that analytics has applied, looking at the next `rows_max` of them, a chunk in
    /// a transaction. What a call misses a later one finds, so a failure does not matter.
    pub(super) async fn trim_sent(&self, rows_max: u32) -> Result<()> {
        let mut left = rows_max;
        while left > 0 {
            let chunk = left.min(TRIM_CHUNK_ROWS);
            left -= chunk;
            if !self.trim_chunk(chunk).await? {
                break;
            }
        }
        Ok(())
    }

    /// Whether there are more rows to look at.
    async fn trim_chunk(&self, rows_max: u32) -> Result<bool> {
        let from = self.trimming.from();
        let (n, last) =
            self.writer.write(move |connection| Box::pin(forget_applied(connection, from, rows_max))).await?;
        Ok(self.trimming.seen(rows_max, n, last))
    }
}

/// Of the first `rows_max` sent events after the number `from`, forgets those that analytics has applied.
/// Answers with how many there were, and the number of the last.
async fn forget_applied(
    connection: &mut SqliteConnection,
    from: i64,
    rows_max: u32,
) -> Result<(i64, Option<i64>)> {
    let seen = sqlx::query(
        "SELECT count(*), max(seq) FROM (SELECT seq FROM outbox_sent WHERE seq > $1 ORDER BY seq LIMIT $2)",
    );
    let seen = rows(connection, seen.bind(from).bind(rows_max)).await?;
    let Some(row) = seen.first() else { return Ok((0, None)) };
    let (n, last): (i64, Option<i64>) = (column(row, 0)?, column(row, 1)?);
    let applied = sqlx::query(
        "DELETE FROM outbox_sent WHERE seq > $1 AND seq <= $2 AND version <= (SELECT p.version
         FROM projection_patients p WHERE p.patient_id = outbox_sent.patient_id)",
    );
    change(connection, applied.bind(from).bind(last)).await?;
    Ok((n, last))
}
