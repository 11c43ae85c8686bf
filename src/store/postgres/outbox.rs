//! The outbox: events that wait for Kafka, events that a broker has taken, registrations that wait for an
//! account, and the parked ones of both. All are narrow tables beside the events, which never change.
//!
//! Invariant: an event is in `outbox` or in `outbox_sent` until analytics has applied it.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use sqlx::postgres::PgRow;

use super::{PostgresStore, column, decode, limit, within};
use crate::domain::event::OutboxEvent;
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::domain::topic_log::LogAnchor;
use crate::store::codec::OutboxRow;
use crate::store::trimming::{TRIM_CHUNK_ROWS, next_after};
use crate::store::{
    OUTBOX_DEPTH_ROWS_MAX, OutboxDepth, OutboxRead, OutboxRows, OutboxStore, ParkRow, PutBack, Queue, Result,
    UnreadableRow,
};

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

/// Decodes a row of the columns `seq`, `shard`, `patient_id`, `version`, `parks` and so on into its place and
/// its event.
fn place_and_event(row: &PgRow) -> Result<(UnreadableRow, Result<OutboxEvent>)> {
    let patient_id = PatientId(column(row, 2)?);
    let parks = count(i64::from(column::<i32>(row, 4)?));
    let parks = u32::try_from(parks).unwrap_or(u32::MAX);
    let place = UnreadableRow { seq: column(row, 0)?, patient_id, version: column(row, 3)?, parks };
    Ok((place, decode::<OutboxRow>(row).and_then(OutboxRow::into_event)))
}

#[async_trait]
impl OutboxStore for PostgresStore {
    async fn read_unpublished(&self, read: OutboxRead<'_>) -> Result<OutboxRows> {
        let query = sqlx::query(
            "SELECT o.seq, e.shard, e.patient_id, e.version, coalesce(p.parks, 0) AS parks, o.replay,
                 e.event_id, e.command_id, e.kind, e.at, e.subject, e.traceparent, e.body
             FROM (SELECT seq, patient_id, version, replay FROM outbox w
                   WHERE seq <> ALL ($2)
                   AND NOT EXISTS (SELECT 1 FROM outbox_parked p WHERE p.queue = 'kafka'
                       AND p.patient_id = w.patient_id AND p.retry_at > $3)
                   AND ($4::int8 IS NULL
                       OR w.patient_id < (SELECT replay_patient FROM kafka_log WHERE no = $4)
                       OR (SELECT replay_done FROM kafka_log WHERE no = $4)
                       OR EXISTS (SELECT 1 FROM kafka_replayed r
                           WHERE r.log_no = $4 AND r.patient_id = w.patient_id))
                   ORDER BY seq LIMIT $1) o
             JOIN patient_events e USING (patient_id, version)
             LEFT JOIN outbox_parked p ON p.queue = 'kafka' AND p.seq = o.seq ORDER BY o.seq",
        );
        let query = query.bind(limit(read.limit_rows)).bind(read.known).bind(read.now.0).bind(read.replay_of);
        let rows = self.follow(query).await?;
        OutboxRows::gather(rows.iter().map(place_and_event), read.limit_rows)
    }

    async fn mark_published(&self, seqs: &[i64], log_no: i64, anchors: &[LogAnchor]) -> Result<bool> {
        // The lock on the log's row prevents a replacement of the log before this statement has ended. A
        // replayed event that analytics has counted gets no row in `outbox_sent`, because it need not be
        // published again.
        let query = sqlx::query(
            "WITH log AS MATERIALIZED (SELECT name FROM kafka_log WHERE no = $2 FOR SHARE),
             taken AS (
                 DELETE FROM outbox WHERE seq = ANY ($1) AND EXISTS (SELECT 1 FROM log)
                 RETURNING seq, patient_id, version, replay
             ), sent AS (
                 INSERT INTO outbox_sent (seq, patient_id, version, broker)
                 SELECT t.seq, t.patient_id, t.version, (SELECT name FROM log) FROM taken t
                 WHERE NOT t.replay OR t.version > coalesce((
                     SELECT p.version FROM projection_patients p WHERE p.patient_id = t.patient_id), 0)
                 ON CONFLICT (seq) DO UPDATE SET broker = excluded.broker
             ), freed AS (
                 DELETE FROM outbox_parked WHERE queue = 'kafka' AND seq IN (SELECT seq FROM taken)
             ), noted AS (
                 INSERT INTO kafka_anchors AS a (log_no, partition_no, at_offset, event_id)
                 SELECT $2, n.p, n.o, n.e FROM unnest($3::int4[], $4::int8[], $5::uuid[]) AS n(p, o, e)
                 WHERE EXISTS (SELECT 1 FROM log) ORDER BY n.p
                 ON CONFLICT (log_no, partition_no) DO UPDATE SET
                     at_offset = excluded.at_offset, event_id = excluded.event_id
                     WHERE a.at_offset < excluded.at_offset
             )
             SELECT (SELECT count(*) FROM log), (SELECT count(*) FROM taken)",
        );
        let known: Vec<_> = anchors.iter().filter_map(|a| Some((a, a.event_id?.0))).collect();
        let query = query
            .bind(seqs)
            .bind(log_no)
            .bind(known.iter().map(|(a, _)| a.partition).collect::<Vec<_>>())
            .bind(known.iter().map(|(a, _)| a.offset).collect::<Vec<_>>())
            .bind(known.iter().map(|(_, event)| *event).collect::<Vec<_>>());
        let rows = self.follow_up(query).await?;
        let Some(row) = rows.first() else { return Ok(false) };
        let (logs, taken): (i64, i64) = (column(row, 0)?, column(row, 1)?);
        self.tidy(&self.queues.outbox, "VACUUM (SKIP_LOCKED, TRUNCATE off) outbox", count(taken)).await;
        Ok(logs > 0)
    }

    async fn park(&self, queue: Queue, rows: &[ParkRow]) -> Result<()> {
        let query = sqlx::query(
            "INSERT INTO outbox_parked (queue, seq, patient_id, retry_at, parks, reason)
             SELECT $1, * FROM unnest($2::int8[], $3::uuid[], $4::int8[], $5::int4[], $6::text[])
             ON CONFLICT (queue, seq) DO UPDATE SET
                 retry_at = excluded.retry_at, parks = excluded.parks, reason = excluded.reason",
        );
        let parks = |row: &ParkRow| i32::try_from(row.parks).unwrap_or(i32::MAX);
        let query = query
            .bind(queue.as_str())
            .bind(rows.iter().map(|row| row.seq).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.patient_id.0).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.retry_at.0).collect::<Vec<_>>())
            .bind(rows.iter().map(parks).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.reason).collect::<Vec<_>>());
        self.change_over(&self.followers, query).await.map(drop)
    }

    async fn republish_forgotten(&self, broker: &str, after: Option<i64>, rows_max: u32) -> Result<PutBack> {
        // Whether an event is applied is checked row by row, so that the plan never reads a large table as a
        // whole. The rows are limited by their numbers for the same reason.
        let query = sqlx::query(
            "WITH seen AS MATERIALIZED (
                 SELECT seq FROM outbox_sent WHERE seq > $1 ORDER BY seq LIMIT $2
             ), gone AS (
                 DELETE FROM outbox_sent s WHERE s.seq > $1 AND s.seq <= (SELECT max(seq) FROM seen)
                 AND (s.broker <> $3 OR s.version <= (
                     SELECT p.version FROM projection_patients p WHERE p.patient_id = s.patient_id))
                 RETURNING s.seq, s.patient_id, s.version
             ), back AS (
                 INSERT INTO outbox (seq, patient_id, version, replay)
                 SELECT g.seq, g.patient_id, g.version, true FROM gone g WHERE g.version > coalesce((
                     SELECT p.version FROM projection_patients p WHERE p.patient_id = g.patient_id), 0)
                 ON CONFLICT (seq) DO NOTHING RETURNING seq
             ), counted AS (
                 UPDATE kafka_log SET replayed_rows = replayed_rows + (SELECT count(*) FROM back)
                 WHERE name = $3 AND EXISTS (SELECT 1 FROM back)
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
                  JOIN patient_events e USING (patient_id, version)),
                 (SELECT count(*) FROM (SELECT 1 FROM outbox_parked WHERE queue = 'kafka' LIMIT $1) p),
                 (SELECT count(*) FROM (SELECT 1 FROM outbox_parked WHERE queue = 'billing' LIMIT $1) p)",
        );
        let rows = self.follow(query.bind(limit(OUTBOX_DEPTH_ROWS_MAX + 1))).await?;
        let Some(row) = rows.first() else { return Ok(OutboxDepth::default()) };
        Ok(OutboxDepth {
            unpublished_rows: count(column(row, 0)?),
            unbilled_rows: count(column(row, 1)?),
            oldest_at: column::<Option<i64>>(row, 2)?.map(Timestamp),
            parked_events: count(column(row, 3)?),
            parked_registrations: count(column(row, 4)?),
        })
    }

    async fn unbilled(&self, now: Timestamp, limit_rows: u32) -> Result<OutboxRows> {
        let query = sqlx::query(
            "SELECT o.seq, e.shard, e.patient_id, e.version, coalesce(p.parks, 0) AS parks,
                 e.event_id, e.command_id, e.kind, e.at, e.subject, e.traceparent, e.body
             FROM (SELECT seq, patient_id, version FROM unbilled w
                   WHERE NOT EXISTS (SELECT 1 FROM outbox_parked p WHERE p.queue = 'billing'
                       AND p.patient_id = w.patient_id AND p.retry_at > $2)
                   ORDER BY seq LIMIT $1) o
             JOIN patient_events e USING (patient_id, version)
             LEFT JOIN outbox_parked p ON p.queue = 'billing' AND p.seq = o.seq ORDER BY o.seq",
        );
        let rows = self.follow(query.bind(limit(limit_rows)).bind(now.0)).await?;
        OutboxRows::gather(rows.iter().map(place_and_event), limit_rows)
    }

    async fn mark_billed(&self, seqs: &[i64]) -> Result<()> {
        let query = sqlx::query(
            "WITH freed AS (DELETE FROM outbox_parked WHERE queue = 'billing' AND seq = ANY ($1))
             DELETE FROM unbilled WHERE seq = ANY ($1)",
        );
        let taken = self.change_over(&self.followers, query.bind(seqs)).await?;
        self.tidy(&self.queues.unbilled, "VACUUM (SKIP_LOCKED, TRUNCATE off) unbilled", taken).await;
        Ok(())
    }
}

/// Number of deletions after which a queue is vacuumed. A read starts at the head of the queue, where the
/// deleted rows are, and passes all that are left since the last vacuum. The server's autovacuum runs only
/// once a minute.
const VACUUM_AFTER_ROWS: u64 = 10_000;

/// Number of rows that this process deleted from each queue since it last vacuumed it.
#[derive(Default)]
pub(super) struct Queues {
    outbox: AtomicU64,
    unbilled: AtomicU64,
}

impl PostgresStore {
    /// Vacuums a queue when enough rows were deleted from it. A failed or skipped vacuum does not matter:
    /// reads are slower until autovacuum runs.
    async fn tidy(&self, deleted: &AtomicU64, vacuum: &'static str, rows: u64) {
        if deleted.fetch_add(rows, Ordering::Relaxed) + rows < VACUUM_AFTER_ROWS {
            return;
        }
        deleted.store(0, Ordering::Relaxed);
        let Ok(mut checkout) = self.followers.checkout().await else { return };
        let vacuum = sqlx::raw_sql(vacuum).execute(checkout.connection());
        let result = within(self.answer_timeout, vacuum).await;
        checkout.settle(&result);
    }

    /// Deletes sent events that analytics has applied. Scans the next `rows_max` rows, one chunk per
    /// transaction. A later call finds what this one misses, so a failure does not matter.
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

    /// Scans one chunk. Returns whether more rows are left.
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
