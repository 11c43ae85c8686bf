//! The outbox: events that wait for Kafka, events that a broker has taken, and registrations that wait for an
//! account.
//!
//! Invariant: an event is in `outbox` or in `outbox_sent` until analytics has applied it.

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::{SqliteStore, change, column, decode, rows};
use crate::domain::event::OutboxEvent;
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::domain::topic_log::LogAnchor;
use crate::store::codec::OutboxRow;
use crate::store::trimming::{TRIM_CHUNK_ROWS, next_after};
use crate::store::{
    Error, OUTBOX_DEPTH_ROWS_MAX, OutboxDepth, OutboxRead, OutboxRows, OutboxStore, ParkRow, PutBack, Queue,
    Result, UnreadableRow,
};

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

/// Encodes the numbers as a JSON array. SQLite has no array parameters, but reads JSON as a table.
pub(super) fn json(seqs: &[i64]) -> Result<String> {
    serde_json::to_string(seqs).map_err(|_| Error::Broken("numbers cannot be written as JSON".to_owned()))
}

/// Decodes a row of the columns `seq`, `shard`, `patient_id`, `version`, `parks` and so on into its place and
/// its event.
fn place_and_event(row: &SqliteRow) -> Result<(UnreadableRow, Result<OutboxEvent>)> {
    let patient_id = PatientId(column(row, 2)?);
    let parks = u32::try_from(column::<i64>(row, 4)?).unwrap_or_default();
    let place = UnreadableRow { seq: column(row, 0)?, patient_id, version: column(row, 3)?, parks };
    Ok((place, decode::<OutboxRow>(row).and_then(OutboxRow::into_event)))
}

#[async_trait]
impl OutboxStore for SqliteStore {
    async fn read_unpublished(&self, read: OutboxRead<'_>) -> Result<OutboxRows> {
        let query = sqlx::query(
            "SELECT e.seq, e.shard, e.patient_id, e.version, coalesce(p.parks, 0) AS parks, o.replay,
                 e.event_id, e.command_id, e.kind, e.at, e.subject, e.traceparent, e.body
             FROM outbox o JOIN patient_events e ON e.seq = o.seq
             LEFT JOIN outbox_parked p ON p.queue = 'kafka' AND p.seq = o.seq
             WHERE o.seq NOT IN (SELECT value FROM json_each($2))
             AND NOT EXISTS (SELECT 1 FROM outbox_parked p WHERE p.queue = 'kafka'
                 AND p.patient_id = o.patient_id AND p.retry_at > $3)
             AND ($4 IS NULL
                 OR o.patient_id < (SELECT replay_patient FROM kafka_log WHERE no = $4)
                 OR (SELECT replay_done FROM kafka_log WHERE no = $4)
                 OR EXISTS (SELECT 1 FROM kafka_replayed r
                     WHERE r.log_no = $4 AND r.patient_id = o.patient_id))
             ORDER BY o.seq LIMIT $1",
        );
        let query = query.bind(read.limit_rows).bind(json(read.known)?).bind(read.now.0).bind(read.replay_of);
        let rows = self.read(query).await?;
        OutboxRows::gather(rows.iter().map(place_and_event), read.limit_rows)
    }

    async fn mark_published(&self, seqs: &[i64], log_no: i64, anchors: &[LogAnchor]) -> Result<bool> {
        let (seqs, anchors) = (json(seqs)?, anchors.to_vec());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let name = sqlx::query("SELECT name FROM kafka_log WHERE no = $1").bind(log_no);
                    let Some(row) = rows(connection, name).await?.pop() else { return Ok(false) };
                    take(connection, &seqs, column(&row, 0)?).await?;
                    for anchor in anchors {
                        note(connection, log_no, anchor).await?;
                    }
                    Ok(true)
                })
            })
            .await
    }

    async fn park(&self, queue: Queue, rows: &[ParkRow]) -> Result<()> {
        let rows = rows.to_vec();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    for row in rows {
                        let query = sqlx::query(
                            "INSERT INTO outbox_parked (queue, seq, patient_id, retry_at, parks, reason)
                             VALUES ($1, $2, $3, $4, $5, $6)
                             ON CONFLICT (queue, seq) DO UPDATE SET retry_at = excluded.retry_at,
                                 parks = excluded.parks, reason = excluded.reason",
                        );
                        let query = query
                            .bind(queue.as_str())
                            .bind(row.seq)
                            .bind(row.patient_id.0)
                            .bind(row.retry_at.0)
                            .bind(row.parks)
                            .bind(row.reason);
                        change(connection, query).await?;
                    }
                    Ok(())
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
                        "INSERT INTO outbox (seq, patient_id, version, replay)
                         SELECT seq, patient_id, version, 1 FROM outbox_sent
                         WHERE seq > $1 AND seq <= $2 AND broker <> $3
                         ON CONFLICT (seq) DO NOTHING",
                    );
                    let put_back = put_back.bind(after).bind(last).bind(broker.clone());
                    let rows = change(connection, put_back).await?;
                    let counted = sqlx::query(
                        "UPDATE kafka_log SET replayed_rows = replayed_rows + $1 WHERE name = $2",
                    );
                    let counted = counted.bind(i64::try_from(rows).unwrap_or(i64::MAX));
                    change(connection, counted.bind(broker.clone())).await?;
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
                 (SELECT e.at FROM outbox o JOIN patient_events e ON e.seq = o.seq ORDER BY o.seq LIMIT 1),
                 (SELECT count(*) FROM (SELECT 1 FROM outbox_parked WHERE queue = 'kafka' LIMIT $1) p),
                 (SELECT count(*) FROM (SELECT 1 FROM outbox_parked WHERE queue = 'billing' LIMIT $1) p)",
        );
        let rows = self.read(query.bind(OUTBOX_DEPTH_ROWS_MAX + 1)).await?;
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
            "SELECT e.seq, e.shard, e.patient_id, e.version, coalesce(p.parks, 0) AS parks,
                 e.event_id, e.command_id, e.kind, e.at, e.subject, e.traceparent, e.body
             FROM unbilled u JOIN patient_events e ON e.seq = u.seq
             LEFT JOIN outbox_parked p ON p.queue = 'billing' AND p.seq = u.seq
             WHERE NOT EXISTS (SELECT 1 FROM outbox_parked p WHERE p.queue = 'billing'
                 AND p.patient_id = u.patient_id AND p.retry_at > $2)
             ORDER BY u.seq LIMIT $1",
        );
        let rows = self.read(query.bind(limit_rows).bind(now.0)).await?;
        OutboxRows::gather(rows.iter().map(place_and_event), limit_rows)
    }

    async fn mark_billed(&self, seqs: &[i64]) -> Result<()> {
        let seqs = json(seqs)?;
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let free = sqlx::query(
                        "DELETE FROM outbox_parked
                         WHERE queue = 'billing' AND seq IN (SELECT value FROM json_each($1))",
                    );
                    change(connection, free.bind(seqs.clone())).await?;
                    let query =
                        sqlx::query("DELETE FROM unbilled WHERE seq IN (SELECT value FROM json_each($1))");
                    change(connection, query.bind(seqs)).await.map(drop)
                })
            })
            .await
    }
}

/// Moves the rows `seqs` (JSON) from the outbox to `outbox_sent`, as taken by the log `name`. A replayed
/// event that analytics has counted gets no row in `outbox_sent`, because it need not be published again.
async fn take(connection: &mut SqliteConnection, seqs: &str, name: String) -> Result<()> {
    let copy = sqlx::query(
        "INSERT INTO outbox_sent (seq, patient_id, version, broker)
         SELECT seq, patient_id, version, $2 FROM outbox
         WHERE seq IN (SELECT value FROM json_each($1)) AND (NOT replay OR version > coalesce((
             SELECT p.version FROM projection_patients p WHERE p.patient_id = outbox.patient_id), 0))
         ON CONFLICT (seq) DO UPDATE SET broker = excluded.broker",
    );
    change(connection, copy.bind(seqs.to_owned()).bind(name)).await?;
    let free = sqlx::query(
        "DELETE FROM outbox_parked WHERE queue = 'kafka' AND seq IN (SELECT value FROM json_each($1))",
    );
    change(connection, free.bind(seqs.to_owned())).await?;
    let take = sqlx::query("DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each($1))");
    change(connection, take.bind(seqs.to_owned())).await.map(drop)
}

/// Records the anchor, unless a later offset is recorded already.
async fn note(connection: &mut SqliteConnection, log_no: i64, anchor: LogAnchor) -> Result<()> {
    let Some(event_id) = anchor.event_id else { return Ok(()) };
    let query = sqlx::query(
        "INSERT INTO kafka_anchors AS a (log_no, partition_no, at_offset, event_id) VALUES ($1, $2, $3, $4)
         ON CONFLICT (log_no, partition_no) DO UPDATE SET
             at_offset = excluded.at_offset, event_id = excluded.event_id
             WHERE a.at_offset < excluded.at_offset",
    );
    let query = query.bind(log_no).bind(anchor.partition).bind(anchor.offset).bind(event_id.0);
    change(connection, query).await.map(drop)
}

impl SqliteStore {
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
        let from = self.trimming.from();
        let (n, last) =
            self.writer.write(move |connection| Box::pin(forget_applied(connection, from, rows_max))).await?;
        Ok(self.trimming.seen(rows_max, n, last))
    }
}

/// Deletes those of the first `rows_max` sent events behind the number `from` that analytics has applied.
/// Returns the number of events scanned, and the number (`seq`) of the last.
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
