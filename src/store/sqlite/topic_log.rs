//! The log of the topic, and the replay that fills a new log.

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use uuid::Uuid;

use super::outbox::json;
use super::{SqliteStore, change, column, rows};
use crate::domain::ids::EventId;
use crate::domain::time::Timestamp;
use crate::domain::topic_log::LogAnchor;
use crate::store::{Error, NextLog, Replayed, Result, TopicLog, TopicLogStore};

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn log(row: &SqliteRow) -> Result<TopicLog> {
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

/// The position of a replay.
struct Place {
    patient: Uuid,
    version: i64,
    since: i64,
}

/// Reads the position of the replay of the log `no`; `None` if the replay is done or the log is not in use.
async fn place(connection: &mut SqliteConnection, no: i64) -> Result<Option<Place>> {
    let query = sqlx::query(
        "SELECT replay_patient, replay_version, replay_since FROM kafka_log WHERE no = $1 AND NOT replay_done",
    );
    let found = rows(connection, query.bind(no)).await?;
    let place = |row: &SqliteRow| {
        Ok(Place { patient: column(row, 0)?, version: column(row, 1)?, since: column(row, 2)? })
    };
    found.first().map(place).transpose()
}

#[async_trait]
impl TopicLogStore for SqliteStore {
    async fn topic_log(&self) -> Result<Option<TopicLog>> {
        let query = sqlx::query(
            "SELECT no, name, cluster, topic, began_at, reason, replay_done, replayed_rows FROM kafka_log",
        );
        self.read(query).await?.first().map(log).transpose()
    }

    async fn log_anchors(&self, no: i64) -> Result<Vec<LogAnchor>> {
        let query = sqlx::query(
            "SELECT partition_no, at_offset, event_id FROM kafka_anchors WHERE log_no = $1
             UNION ALL
             SELECT o.partition_no, max(o.next_offset) - 1, NULL FROM projection_offsets o
             JOIN kafka_log l ON l.no = $1 AND l.name = o.broker AND l.topic = o.topic
             WHERE o.next_offset > 0 GROUP BY o.partition_no",
        );
        let rows = self.read(query.bind(no)).await?;
        rows.iter()
            .map(|row| {
                let event_id = column::<Option<Uuid>>(row, 2)?.map(EventId);
                Ok(LogAnchor { partition: column(row, 0)?, offset: column(row, 1)?, event_id })
            })
            .collect()
    }

    async fn begin_log(&self, next: &NextLog) -> Result<TopicLog> {
        let next = next.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    begin(connection, &next).await?;
                    let forget =
                        sqlx::query("DELETE FROM kafka_anchors WHERE log_no < (SELECT no FROM kafka_log)");
                    change(connection, forget).await.map(drop)
                })
            })
            .await?;
        self.topic_log().await?.ok_or_else(|| Error::Broken("the row of kafka_log is missing".to_owned()))
    }

    async fn replay_waiting(&self, no: i64, known: &[i64], now: Timestamp, rows_max: u32) -> Result<u64> {
        let known = json(known)?;
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let Some(place) = place(connection, no).await? else { return Ok(0) };
                    let due = due(connection, no, &place, (&known, now, rows_max)).await?;
                    for patient in &due {
                        put_back(connection, no, &place, *patient).await?;
                    }
                    Ok(due.len() as u64)
                })
            })
            .await
    }

    async fn replay_next(&self, no: i64, rows_max: u32) -> Result<Replayed> {
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let Some(place) = place(connection, no).await? else {
                        return Ok(Replayed { rows: 0, done: true });
                    };
                    step(connection, no, &place, rows_max).await
                })
            })
            .await
    }
}

async fn begin(connection: &mut SqliteConnection, next: &NextLog) -> Result<()> {
    let (since, done) = next.replay_columns();
    let query = sqlx::query(
        "INSERT INTO kafka_log AS l (one, no, name, cluster, topic, began_at, reason, replay_since,
             replay_patient, replay_version, replayed_rows, replay_done)
         VALUES (1, $1 + 1, $2, $3, $4, $5, $6, $7, $9, 0, 0, $8 OR NOT EXISTS (SELECT 1 FROM patient_events)
                     OR $1 = 0 AND (
             EXISTS (SELECT 1 FROM projection_offsets WHERE broker = $2 AND topic = $4)
             OR EXISTS (SELECT 1 FROM outbox_sent WHERE broker = $2)))
         ON CONFLICT (one) DO UPDATE SET no = excluded.no, name = excluded.name, cluster = excluded.cluster,
             topic = excluded.topic, began_at = excluded.began_at, reason = excluded.reason,
             replay_since = excluded.replay_since, replay_patient = excluded.replay_patient,
             replay_version = 0, replayed_rows = 0, replay_done = excluded.replay_done
             WHERE l.no = $1",
    );
    let query = query
        .bind(next.after)
        .bind(next.name())
        .bind(next.cluster.clone())
        .bind(next.topic.clone())
        .bind(next.at.0)
        .bind(next.reason.clone())
        .bind(since)
        .bind(done)
        .bind(Uuid::nil());
    change(connection, query).await.map(drop)
}

/// Returns the patients among the first rows of the outbox whom the replay has not reached.
async fn due(
    connection: &mut SqliteConnection,
    no: i64,
    place: &Place,
    (known, now, rows_max): (&str, Timestamp, u32),
) -> Result<Vec<Uuid>> {
    let query = sqlx::query(
        "SELECT DISTINCT w.patient_id FROM (
             SELECT patient_id FROM outbox o WHERE seq NOT IN (SELECT value FROM json_each($2))
             AND NOT EXISTS (SELECT 1 FROM outbox_parked p WHERE p.queue = 'kafka'
                 AND p.patient_id = o.patient_id AND p.retry_at > $3)
             ORDER BY seq LIMIT $4) w
         WHERE w.patient_id >= $5 AND NOT EXISTS (
             SELECT 1 FROM kafka_replayed r WHERE r.log_no = $1 AND r.patient_id = w.patient_id)",
    );
    let query = query.bind(no).bind(known.to_owned()).bind(now.0).bind(rows_max).bind(place.patient);
    rows(connection, query).await?.iter().map(|row| column(row, 0)).collect()
}

/// Puts back the events of one patient beyond `place`, and records the patient as replayed.
async fn put_back(connection: &mut SqliteConnection, no: i64, place: &Place, patient: Uuid) -> Result<()> {
    let back = sqlx::query(
        "INSERT INTO outbox (seq, patient_id, version, replay)
         SELECT seq, patient_id, version, 1 FROM patient_events
         WHERE patient_id = $1 AND at >= $2 AND (patient_id, version) > ($3, $4) ON CONFLICT (seq) DO NOTHING",
    );
    let back = back.bind(patient).bind(place.since).bind(place.patient).bind(place.version);
    let count = change(connection, back).await?;
    let note = sqlx::query("INSERT INTO kafka_replayed (log_no, patient_id) VALUES ($1, $2)");
    change(connection, note.bind(no).bind(patient)).await?;
    let counted = sqlx::query("UPDATE kafka_log SET replayed_rows = replayed_rows + $1");
    change(connection, counted.bind(i64::try_from(count).unwrap_or(i64::MAX))).await.map(drop)
}

/// Scans the next events beyond `place`, puts back those that are due, and moves the position.
async fn step(connection: &mut SqliteConnection, no: i64, place: &Place, rows_max: u32) -> Result<Replayed> {
    let last = sqlx::query(
        "SELECT count(*) OVER (), patient_id, version FROM (
             SELECT patient_id, version FROM patient_events WHERE (patient_id, version) > ($1, $2)
             ORDER BY patient_id, version LIMIT $3)
         ORDER BY patient_id DESC, version DESC LIMIT 1",
    );
    let last = rows(connection, last.bind(place.patient).bind(place.version).bind(rows_max)).await?;
    let (seen, patient, version) = match last.first() {
        Some(row) => (column(row, 0)?, column(row, 1)?, column(row, 2)?),
        None => (0, place.patient, place.version),
    };
    let done = seen < i64::from(rows_max);
    let back = sqlx::query(
        "INSERT INTO outbox (seq, patient_id, version, replay)
         SELECT seq, patient_id, version, 1 FROM patient_events e
         WHERE (patient_id, version) > ($1, $2) AND (patient_id, version) <= ($3, $4) AND at >= $5
         AND NOT EXISTS (SELECT 1 FROM kafka_replayed r WHERE r.log_no = $6 AND r.patient_id = e.patient_id)
         ON CONFLICT (seq) DO NOTHING",
    );
    let back = back.bind(place.patient).bind(place.version).bind(patient).bind(version);
    let count = change(connection, back.bind(place.since).bind(no)).await?;
    let passed = sqlx::query("DELETE FROM kafka_replayed WHERE patient_id < $1 OR $2");
    change(connection, passed.bind(patient).bind(done)).await?;
    let moved = sqlx::query(
        "UPDATE kafka_log SET replay_patient = $1, replay_version = $2, replay_done = $3,
             replayed_rows = replayed_rows + $4",
    );
    let rows = i64::try_from(count).unwrap_or(i64::MAX);
    change(connection, moved.bind(patient).bind(version).bind(done).bind(rows)).await?;
    Ok(Replayed { rows: count, done })
}
