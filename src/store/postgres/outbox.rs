//! The outbox: which events wait for Kafka, which a broker has taken, which registrations wait for an
//! account. Three narrow tables beside the events, which are never changed.
//!
//! Invariant: an event is in `outbox` or in `outbox_sent` until analytics has applied it.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{PostgresStore, checkout, column, decode, limit, within};
use crate::domain::event::OutboxEvent;
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::store::codec::OutboxRow;
use crate::store::trimming::{TRIM_CHUNK_ROWS, next_after};
use crate::store::{
    OUTBOX_DEPTH_ROWS_MAX, OutboxDepth, OutboxRows, OutboxStore, PutBack, Result, UnreadableRow,
};

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn uuids(patients: &[PatientId]) -> Vec<Uuid> {
    patients.iter().map(|id| id.0).collect()
}

/// A row of columns `seq`, `shard`, `patient_id`, `version` and so on: whose it is, and what it says.
fn place_and_event(row: &PgRow) -> Result<(UnreadableRow, Result<OutboxEvent>)> {
    let patient_id = PatientId(column(row, 2)?);
    let place = UnreadableRow { seq: column(row, 0)?, patient_id, version: column(row, 3)? };
    Ok((place, decode::<OutboxRow>(row).and_then(OutboxRow::into_event)))
}

#[async_trait]
impl OutboxStore for PostgresStore {
    async fn unpublished_besides(
        &self,
        known: &[i64],
        held: &[PatientId],
        limit_rows: u32,
    ) -> Result<OutboxRows> {
        let query = sqlx::query(
            "SELECT o.seq, e.shard, e.patient_id, e.version, e.event_id, e.command_id, e.kind, e.at,
                 e.subject, e.traceparent, e.body
             FROM (SELECT seq, patient_id, version FROM outbox
                   WHERE seq <> ALL ($2) AND patient_id <> ALL ($3) ORDER BY seq LIMIT $1) o
             JOIN patient_events e USING (patient_id, version) ORDER BY o.seq",
        );
        let rows = self.follow(query.bind(limit(limit_rows)).bind(known).bind(uuids(held))).await?;
        OutboxRows::gather(rows.iter().map(place_and_event), limit_rows)
    }

    async fn mark_published(&self, seqs: &[i64], broker: &str) -> Result<()> {
        let query = sqlx::query(
            "WITH taken AS (DELETE FROM outbox WHERE seq = ANY ($1) RETURNING seq, patient_id, version)
             INSERT INTO outbox_sent (seq, patient_id, version, broker)
             SELECT seq, patient_id, version, $2 FROM taken",
        );
        let taken = self.change_over(&self.followers, query.bind(seqs).bind(broker)).await?;
        self.tidy(&self.queues.outbox, "VACUUM (SKIP_LOCKED, TRUNCATE off) outbox", taken).await;
        Ok(())
    }

    async fn republish_forgotten(&self, broker: &str, after: Option<i64>, rows_max: u32) -> Result<PutBack> {
        // Whether an event is applied is asked for row by row, so that the plan never reads all of a
        // large table; and the rows are bounded by their numbers for the same reason.
        let query = sqlx::query(
            "WITH seen AS MATERIALIZED (
                 SELECT seq FROM outbox_sent WHERE seq > $1 ORDER BY seq LIMIT $2
             ), gone AS (
                 DELETE FROM outbox_sent s WHERE s.seq > $1 AND s.seq <= (SELECT max(seq) FROM seen)
                 AND (s.broker <> $3 OR s.version <= (
                     SELECT p.version FROM projection_patients p WHERE p.patient_id = s.patient_id))
                 RETURNING s.seq, s.patient_id, s.version
             ), back AS (
                 INSERT INTO outbox (seq, patient_id, version)
                 SELECT g.seq, g.patient_id, g.version FROM gone g WHERE g.version > coalesce((
                     SELECT p.version FROM projection_patients p WHERE p.patient_id = g.patient_id), 0)
                 RETURNING seq
             )
             SELECT (SELECT count(*) FROM back), count(*), max(seq) FROM seen",
        );
        let query = query.bind(after.unwrap_or(i64::MIN)).bind(limit(rows_max)).bind(broker);
        let rows = self.follow_up(query).await?;
        let Some(row) = rows.first() else { return Ok(PutBack::default()) };
        let next = next_after(rows_max, column(row, 1)?, column(row, 2)?);
        Ok(PutBack { rows: count(column(row, 0)?), next })
    }

    async fn any_forgotten(&self, broker: &str) -> Result<bool> {
        let query = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM outbox_sent s WHERE s.broker <> $1 AND NOT EXISTS
                 (SELECT 1 FROM projection_patients p
                  WHERE p.patient_id = s.patient_id AND p.version >= s.version))",
        );
        let rows = self.follow(query.bind(broker)).await?;
        Ok(rows.first().map(|row| column(row, 0)).transpose()?.unwrap_or_default())
    }

    async fn outbox_depth(&self) -> Result<OutboxDepth> {
        let query = sqlx::query(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox LIMIT $1) o),
                 (SELECT count(*) FROM (SELECT 1 FROM unbilled LIMIT $1) u),
                 (SELECT e.at FROM (SELECT patient_id, version FROM outbox ORDER BY seq LIMIT 1) o
                  JOIN patient_events e USING (patient_id, version))",
        );
        let rows = self.follow(query.bind(limit(OUTBOX_DEPTH_ROWS_MAX + 1))).await?;
        let Some(row) = rows.first() else { return Ok(OutboxDepth::default()) };
        Ok(OutboxDepth {
            unpublished_rows: count(column(row, 0)?),
            unbilled_rows: count(column(row, 1)?),
            oldest_at: column::<Option<i64>>(row, 2)?.map(Timestamp),
        })
    }

    async fn unbilled(&self, held: &[PatientId], limit_rows: u32) -> Result<OutboxRows> {
        let query = sqlx::query(
            "SELECT o.seq, e.shard, e.patient_id, e.version, e.event_id, e.command_id, e.kind, e.at,
                 e.subject, e.traceparent, e.body
             FROM (SELECT seq, patient_id, version FROM unbilled
                   WHERE patient_id <> ALL ($2) ORDER BY seq LIMIT $1) o
             JOIN patient_events e USING (patient_id, version) ORDER BY o.seq",
        );
        let rows = self.follow(query.bind(limit(limit_rows)).bind(uuids(held))).await?;
        OutboxRows::gather(rows.iter().map(place_and_event), limit_rows)
    }

    async fn mark_billed(&self, seqs: &[i64]) -> Result<()> {
        let query = sqlx::query("DELETE FROM unbilled WHERE seq = ANY ($1)").bind(seqs);
        let taken = self.change_over(&self.followers, query).await?;
        self.tidy(&self.queues.unbilled, "VACUUM (SKIP_LOCKED, TRUNCATE off) unbilled", taken).await;
        Ok(())
    }
}

/// After how many deletions a queue is vacuumed. A read begins at the queue's head, which is where the deleted
/// rows are: it passes all that are left since the last vacuum. The server's own comes once a minute.
const VACUUM_AFTER_ROWS: u64 = 10_000;

/// How many rows were deleted from each queue by this process since it vacuumed it.
#[derive(Default)]
pub(super) struct Queues {
    outbox: AtomicU64,
    unbilled: AtomicU64,
}

impl PostgresStore {
    /// Vacuums a queue when enough was deleted from it. That it fails or is skipped does not matter: the server
    /// does it in its own time, and reads are slower until then.
    async fn tidy(&self, deleted: &AtomicU64, vacuum: &'static str, rows: u64) {
        if deleted.fetch_add(rows, Ordering::Relaxed) + rows < VACUUM_AFTER_ROWS {
            return;
        }
        deleted.store(0, Ordering::Relaxed);
        let Ok(mut checkout) = checkout(&self.followers).await else { return };
        let vacuum = sqlx::raw_sql(vacuum).execute(&mut *checkout.connection);
        let result = within(self.answer_timeout, vacuum).await;
        checkout.settle(&result);
    }

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
        let query = sqlx::query(
            "WITH seen AS MATERIALIZED (
                 SELECT seq FROM outbox_sent WHERE seq > $1 ORDER BY seq LIMIT $2
             ), gone AS (
                 DELETE FROM outbox_sent s WHERE s.seq > $1 AND s.seq <= (SELECT max(seq) FROM seen)
                 AND s.version <= (
                     SELECT p.version FROM projection_patients p WHERE p.patient_id = s.patient_id)
             )
             SELECT count(*), max(seq) FROM seen",
        );
        let rows = self.follow_up(query.bind(self.trimming.from()).bind(limit(rows_max))).await?;
        let Some(row) = rows.first() else { return Ok(false) };
        Ok(self.trimming.seen(rows_max, column(row, 0)?, column(row, 1)?))
    }
}
