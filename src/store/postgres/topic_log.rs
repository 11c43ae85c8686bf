//! The log of the topic, and the replay that fills a new log.

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{PostgresStore, column, limit};
use crate::domain::ids::EventId;
use crate::domain::time::Timestamp;
use crate::domain::topic_log::LogAnchor;
use crate::store::{Error, NextLog, Replayed, Result, TopicLog, TopicLogStore};

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn log(row: &PgRow) -> Result<TopicLog> {
    Ok(TopicLog {
        no: column(row, 0)?,
        name: column(row, 1)?,
        cluster: column(row, 2)?,
        topic: column(row, 3)?,
        began_at: Timestamp(column(row, 4)?),
        reason: column(row, 5)?,
        replay_done: column(row, 6)?,
        replayed_rows: count(column(row, 7)?),
    })
}

#[async_trait]
impl TopicLogStore for PostgresStore {
    async fn topic_log(&self) -> Result<Option<TopicLog>> {
        let query = sqlx::query(
            "SELECT no, name, cluster, topic, began_at, reason, replay_done, replayed_rows FROM kafka_log",
        );
        self.follow(query).await?.first().map(log).transpose()
    }

    async fn log_anchors(&self, no: i64) -> Result<Vec<LogAnchor>> {
        let query = sqlx::query(
            "SELECT partition_no, at_offset, event_id FROM kafka_anchors WHERE log_no = $1
             UNION ALL
             SELECT o.partition_no, max(o.next_offset) - 1, NULL FROM projection_offsets o
             JOIN kafka_log l ON l.no = $1 AND l.name = o.broker AND l.topic = o.topic
             WHERE o.next_offset > 0 GROUP BY o.partition_no",
        );
        let rows = self.follow(query.bind(no)).await?;
        rows.iter()
            .map(|row| {
                let event_id = column::<Option<Uuid>>(row, 2)?.map(EventId);
                Ok(LogAnchor { partition: column(row, 0)?, offset: column(row, 1)?, event_id })
            })
            .collect()
    }

    async fn begin_log(&self, next: &NextLog) -> Result<TopicLog> {
        let (since, done) = next.replay_columns();
        let query = sqlx::query(
            "WITH begun AS (
                 INSERT INTO kafka_log AS l (one, no, name, cluster, topic, began_at, reason, replay_since,
                     replay_patient, replay_version, replayed_rows, replay_done)
                 VALUES (true, $1 + 1, $2, $3, $4, $5, $6, $7, $9, 0, 0, $8 OR NOT EXISTS (SELECT 1 FROM patient_events)
                     OR $1 = 0 AND (
                     EXISTS (SELECT 1 FROM projection_offsets WHERE broker = $2 AND topic = $4)
                     OR EXISTS (SELECT 1 FROM outbox_sent WHERE broker = $2)))
                 ON CONFLICT (one) DO UPDATE SET no = excluded.no, name = excluded.name,
                     cluster = excluded.cluster, topic = excluded.topic, began_at = excluded.began_at,
                     reason = excluded.reason, replay_since = excluded.replay_since,
                     replay_patient = excluded.replay_patient, replay_version = 0, replayed_rows = 0,
                     replay_done = excluded.replay_done
                     WHERE l.no = $1
                 RETURNING no
             )
             DELETE FROM kafka_anchors a USING begun b WHERE a.log_no < b.no",
        );
        let query = query
            .bind(next.after)
            .bind(next.name())
            .bind(&next.cluster)
            .bind(&next.topic)
            .bind(next.at.0)
            .bind(&next.reason)
            .bind(since)
            .bind(done)
            .bind(Uuid::nil());
        self.change_over(&self.followers, query).await?;
        self.topic_log().await?.ok_or_else(|| Error::Broken("the row of kafka_log is missing".to_owned()))
    }

    async fn replay_waiting(&self, no: i64, known: &[i64], now: Timestamp, rows_max: u32) -> Result<u64> {
        let query = sqlx::query(
            "WITH log AS MATERIALIZED (
                 SELECT replay_patient, replay_version, replay_since FROM kafka_log
                 WHERE no = $1 AND NOT replay_done
             ), due AS MATERIALIZED (
                 SELECT DISTINCT w.patient_id FROM (
                     SELECT patient_id FROM outbox o WHERE seq <> ALL ($2)
                     AND NOT EXISTS (SELECT 1 FROM outbox_parked p WHERE p.queue = 'kafka'
                         AND p.patient_id = o.patient_id AND p.retry_at > $3)
                     ORDER BY seq LIMIT $4) w
                 WHERE w.patient_id >= (SELECT replay_patient FROM log) AND NOT EXISTS (
                     SELECT 1 FROM kafka_replayed r WHERE r.log_no = $1 AND r.patient_id = w.patient_id)
             ), back AS (
                 INSERT INTO outbox (seq, patient_id, version, replay)
                 SELECT e.seq, e.patient_id, e.version, true FROM due JOIN patient_events e USING (patient_id)
                 WHERE (e.patient_id, e.version) > ((SELECT replay_patient FROM log),
                     (SELECT replay_version FROM log)) AND e.at >= (SELECT replay_since FROM log)
                 ON CONFLICT (seq) DO NOTHING RETURNING seq
             ), noted AS (
                 INSERT INTO kafka_replayed (log_no, patient_id) SELECT $1, patient_id FROM due
                 ORDER BY patient_id ON CONFLICT DO NOTHING
             ), counted AS (
                 UPDATE kafka_log SET replayed_rows = replayed_rows + (SELECT count(*) FROM back)
                 WHERE no = $1 AND EXISTS (SELECT 1 FROM due)
             )
             SELECT count(*) FROM due",
        );
        let query = query.bind(no).bind(known).bind(now.0).bind(limit(rows_max));
        let rows = self.follow_up(query).await?;
        rows.first().map_or(Ok(0), |row| column(row, 0).map(count))
    }

    async fn replay_next(&self, no: i64, rows_max: u32) -> Result<Replayed> {
        // The position is compared by sub-selects, so that the index scan starts there and ends at the limit.
        let query = sqlx::query(
            "WITH log AS MATERIALIZED (
                 SELECT replay_patient, replay_version, replay_since FROM kafka_log
                 WHERE no = $1 AND NOT replay_done FOR UPDATE
             ), seen AS MATERIALIZED (
                 SELECT seq, patient_id, version, at FROM patient_events
                 WHERE (patient_id, version) > ((SELECT replay_patient FROM log),
                     (SELECT replay_version FROM log))
                 ORDER BY patient_id, version LIMIT $2
             ), last AS (
                 SELECT patient_id, version FROM seen ORDER BY patient_id DESC, version DESC LIMIT 1
             ), back AS (
                 INSERT INTO outbox (seq, patient_id, version, replay)
                 SELECT s.seq, s.patient_id, s.version, true FROM seen s
                 WHERE s.at >= (SELECT replay_since FROM log) AND NOT EXISTS (
                     SELECT 1 FROM kafka_replayed r WHERE r.log_no = $1 AND r.patient_id = s.patient_id)
                 ON CONFLICT (seq) DO NOTHING RETURNING seq
             ), passed AS (
                 DELETE FROM kafka_replayed
                 WHERE patient_id < (SELECT patient_id FROM last)
                 OR (SELECT count(*) FROM seen) < $2 AND EXISTS (SELECT 1 FROM log)
             ), moved AS (
                 UPDATE kafka_log SET
                     replay_patient = coalesce((SELECT patient_id FROM last), replay_patient),
                     replay_version = coalesce((SELECT version FROM last), replay_version),
                     replayed_rows = replayed_rows + (SELECT count(*) FROM back),
                     replay_done = (SELECT count(*) FROM seen) < $2
                 WHERE no = $1 AND EXISTS (SELECT 1 FROM log)
             )
             SELECT (SELECT count(*) FROM back), (SELECT count(*) FROM seen) < $2",
        );
        let rows = self.follow_up(query.bind(no).bind(limit(rows_max))).await?;
        let Some(row) = rows.first() else { return Ok(Replayed { rows: 0, done: true }) };
        Ok(Replayed { rows: count(column(row, 0)?), done: column(row, 1)? })
    }
}
