//! The analytics projection.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use time::Date;

use super::{SqliteStore, change, column, rows};
use crate::domain::analytics::{Counts, Observation};
use crate::domain::event::EventType;
use crate::domain::ids::PatientId;
use crate::store::delta::{Delta, Known, delta};
use crate::store::{Applied, Error, PartitionOffset, ProjectionSource, ProjectionStore, Result};

async fn known(
    connection: &mut SqliteConnection,
    observations: &[Observation],
) -> Result<HashMap<PatientId, Known>> {
    let mut known = HashMap::with_capacity(observations.len());
    for observation in observations {
        let id = observation.patient_id;
        if known.contains_key(&id) {
            continue;
        }
        let query = sqlx::query(
            "SELECT version, ahead, date_of_birth FROM projection_patients WHERE patient_id = $1",
        );
        if let Some(row) = rows(connection, query.bind(id.0)).await?.first() {
            let ahead: Option<String> = column(row, 1)?;
            known.insert(id, Known::of(column(row, 0)?, ahead.as_deref(), column(row, 2)?)?);
        }
    }
    Ok(known)
}

async fn write_counts(connection: &mut SqliteConnection, delta: &Delta) -> Result<()> {
    for (id, known) in &delta.patients {
        let query = sqlx::query(
            "INSERT INTO projection_patients (patient_id, version, date_of_birth, ahead) VALUES ($1, $2, $3, $4)
             ON CONFLICT (patient_id) DO UPDATE SET
                 version = excluded.version, date_of_birth = excluded.date_of_birth, ahead = excluded.ahead",
        );
        let query = query.bind(id.0).bind(known.version).bind(known.date_of_birth);
        change(connection, query.bind(known.ahead())).await?;
    }
    for (kind, n) in &delta.event_types {
        let query = sqlx::query(
            "INSERT INTO projection_event_types AS c (kind, n) VALUES ($1, $2)
             ON CONFLICT (kind) DO UPDATE SET n = c.n + excluded.n",
        );
        change(connection, query.bind(*kind).bind(*n)).await?;
    }
    for (day, n) in &delta.registrations {
        let query = sqlx::query(
            "INSERT INTO projection_registrations AS c (day, n) VALUES ($1, $2)
             ON CONFLICT (day) DO UPDATE SET n = c.n + excluded.n",
        );
        change(connection, query.bind(*day).bind(*n)).await?;
    }
    for (birth, n) in &delta.births {
        let query = sqlx::query(
            "INSERT INTO projection_births AS c (date_of_birth, n) VALUES ($1, $2)
             ON CONFLICT (date_of_birth) DO UPDATE SET n = c.n + excluded.n",
        );
        change(connection, query.bind(*birth).bind(*n)).await?;
    }
    Ok(())
}

async fn write_offsets(
    connection: &mut SqliteConnection,
    source: &ProjectionSource,
    offsets: &[PartitionOffset],
) -> Result<()> {
    for offset in offsets {
        let query = sqlx::query(
            "INSERT INTO projection_offsets AS o (consumer_group, broker, topic, partition_no, next_offset)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (consumer_group, broker, topic, partition_no) DO UPDATE SET
                 next_offset = max(o.next_offset, excluded.next_offset)",
        )
        .bind(source.group.clone())
        .bind(source.broker.clone())
        .bind(source.topic.clone())
        .bind(offset.partition)
        .bind(offset.next_offset);
        change(connection, query).await?;
    }
    Ok(())
}

/// Reads the counts in one statement, so that they belong to one moment. The births up to a day are the sum
/// of all earlier years, of the earlier months of its year, and of the days of its month.
pub(super) const COUNTS: &str = "
SELECT 0, kind, NULL, n FROM projection_event_types
UNION ALL SELECT 1, NULL, day, n FROM projection_registrations WHERE day >= $1
UNION ALL SELECT 2, NULL, NULL, coalesce(sum(n), 0) FROM projection_birth_years
UNION ALL SELECT 3, NULL, d.value,
    (SELECT coalesce(sum(n), 0) FROM projection_birth_years WHERE year < CAST(substr(d.value, 1, 4) AS INTEGER))
    + (SELECT coalesce(sum(n), 0) FROM projection_birth_months
       WHERE month >= substr(d.value, 1, 4) || '-01' AND month < substr(d.value, 1, 7))
    + (SELECT coalesce(sum(n), 0) FROM projection_births
       WHERE date_of_birth BETWEEN substr(d.value, 1, 7) || '-01' AND d.value)
FROM json_each($2) AS d
ORDER BY 1, 2, 3";

#[async_trait]
impl ProjectionStore for SqliteStore {
    async fn offsets(&self, source: &ProjectionSource) -> Result<Vec<PartitionOffset>> {
        let query = sqlx::query(
            "SELECT partition_no, next_offset FROM projection_offsets
             WHERE consumer_group = $1 AND broker = $2 AND topic = $3 ORDER BY partition_no",
        )
        .bind(source.group.clone())
        .bind(source.broker.clone())
        .bind(source.topic.clone());
        let rows = self.read(query).await?;
        rows.iter()
            .map(|row| Ok(PartitionOffset { partition: column(row, 0)?, next_offset: column(row, 1)? }))
            .collect()
    }

    async fn apply(
        &self,
        source: &ProjectionSource,
        offsets: &[PartitionOffset],
        observations: &[Observation],
    ) -> Result<Applied> {
        let (source, offsets, batch) = (source.clone(), offsets.to_vec(), observations.to_vec());
        let applied = self
            .writer
            .write(move |connection| {
                Box::pin(async move {
                    let known = known(connection, &batch).await?;
                    let delta = delta(&known, &batch);
                    write_counts(connection, &delta).await?;
                    write_offsets(connection, &source, &offsets).await?;
                    Ok(delta.applied)
                })
            })
            .await?;
        // The clean-up of the outbox is not part of the result.
        if let Some(rows_max) = self.trimming.due(applied.counted + applied.repeated) {
            self.trim_sent(rows_max).await.ok();
        }
        Ok(applied)
    }

    async fn counts(&self, first_day: Date, born_by: &[Date]) -> Result<Counts> {
        let born_by = serde_json::to_string(&born_by.iter().map(Date::to_string).collect::<Vec<_>>())
            .map_err(|_| Error::Broken("days cannot be written as JSON".to_owned()))?;
        let mut counts = Counts::default();
        for row in self.read(sqlx::query(COUNTS).bind(first_day).bind(born_by)).await? {
            let (series, n): (i64, i64) = (column(&row, 0)?, column(&row, 3)?);
            let day: Option<Date> = column(&row, 2)?;
            let kind = column::<Option<i16>>(&row, 1)?.and_then(EventType::from_code);
            match (series, kind, day) {
                (0, Some(kind), _) => counts.by_event_type.push((kind, n)),
                (1, _, Some(day)) => counts.registrations.push((day, n)),
                (2, ..) => counts.living = n,
                (3, _, Some(day)) => counts.born_by.push((day, n)),
                // An event type of a newer version of the program; this version cannot show it.
                _ => {}
            }
        }
        Ok(counts)
    }
}
