//! The analytics projection. `apply` is a transaction under one advisory lock. The consumers of all nodes
//! count into the same few rows and would wait for each other anyway. The lock also ensures that no two of
//! them read the same state of a patient.

use std::collections::HashMap;

use async_trait::async_trait;
use time::Date;
use uuid::Uuid;

use super::{PostgresStore, Transaction, column};
use crate::domain::analytics::{Counts, Observation};
use crate::domain::event::EventType;
use crate::domain::ids::PatientId;
use crate::store::delta::{Delta, Known, delta};
use crate::store::{Applied, PartitionOffset, ProjectionSource, ProjectionStore, Result};

/// Begins the transaction and takes the lock, in one message. Later statements of the transaction see what
/// the previous holder committed. The number is "hygeia" in ASCII.
const BEGIN: &str = "BEGIN; SELECT pg_advisory_xact_lock(114849211771233)";

/// Reads the counts in one statement, so that they belong to one moment. The births up to a day are the sum
/// of all earlier years, of the earlier months of its year, and of the days of its month.
pub(super) const COUNTS: &str = "
SELECT 0::int2, kind, NULL::date, n FROM projection_event_types
UNION ALL SELECT 1::int2, NULL, day, n FROM projection_registrations WHERE day >= $1
UNION ALL SELECT 2::int2, NULL, NULL, coalesce(sum(n), 0)::int8 FROM projection_birth_years
UNION ALL SELECT 3::int2, NULL, d.day,
    ((SELECT coalesce(sum(n), 0) FROM projection_birth_years WHERE year < extract(year FROM d.day)::int4)
     + (SELECT coalesce(sum(n), 0) FROM projection_birth_months
        WHERE month >= make_date(extract(year FROM d.day)::int4, 1, 1) AND month < projection_month(d.day))
     + (SELECT coalesce(sum(n), 0) FROM projection_births
        WHERE date_of_birth BETWEEN projection_month(d.day) AND d.day))::int8
FROM unnest($2::date[]) AS d(day)
ORDER BY 1, 2, 3";

#[async_trait]
impl ProjectionStore for PostgresStore {
    async fn offsets(&self, source: &ProjectionSource) -> Result<Vec<PartitionOffset>> {
        let query = sqlx::query(
            "SELECT partition_no, next_offset FROM projection_offsets
             WHERE consumer_group = $1 AND broker = $2 AND topic = $3 ORDER BY partition_no",
        );
        let query = query.bind(&source.group).bind(&source.broker).bind(&source.topic);
        let rows = self.follow(query).await?;
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
        let mut transaction = self.begin(BEGIN, self.answer_timeout).await?;
        let known = known(&mut transaction, observations).await?;
        let delta = delta(&known, observations);
        write(&mut transaction, &delta, source, offsets).await?;
        transaction.commit().await?;
        // The clean-up of the outbox is not part of the result.
        if let Some(rows_max) = self.trimming.due(delta.applied.counted + delta.applied.repeated) {
            self.trim_sent(rows_max).await.ok();
        }
        Ok(delta.applied)
    }

    async fn counts(&self, first_day: Date, born_by: &[Date]) -> Result<Counts> {
        let mut counts = Counts::default();
        for row in self.follow(sqlx::query(COUNTS).bind(first_day).bind(born_by)).await? {
            let (series, n): (i16, i64) = (column(&row, 0)?, column(&row, 3)?);
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

async fn known(
    transaction: &mut Transaction,
    observations: &[Observation],
) -> Result<HashMap<PatientId, Known>> {
    let ids: Vec<Uuid> = observations.iter().map(|o| o.patient_id.0).collect();
    let query = sqlx::query(
        "SELECT patient_id, version, ahead, date_of_birth FROM projection_patients WHERE patient_id = ANY ($1)",
    );
    let rows = transaction.rows(query.bind(ids)).await?;
    rows.iter()
        .map(|row| {
            let ahead: Option<String> = column(row, 2)?;
            let known = Known::of(column(row, 1)?, ahead.as_deref(), column(row, 3)?)?;
            Ok((PatientId(column(row, 0)?), known))
        })
        .collect()
}

async fn write(
    transaction: &mut Transaction,
    delta: &Delta,
    source: &ProjectionSource,
    offsets: &[PartitionOffset],
) -> Result<()> {
    let query = sqlx::query(
        "WITH p AS (
             INSERT INTO projection_patients (patient_id, version, date_of_birth, ahead)
             SELECT * FROM unnest($1::uuid[], $2::int8[], $3::date[], $15::text[])
             ON CONFLICT (patient_id) DO UPDATE SET
                 version = excluded.version, date_of_birth = excluded.date_of_birth, ahead = excluded.ahead
         ), t AS (
             INSERT INTO projection_event_types AS c (kind, n) SELECT * FROM unnest($4::int2[], $5::int8[])
             ON CONFLICT (kind) DO UPDATE SET n = c.n + excluded.n
         ), r AS (
             INSERT INTO projection_registrations AS c (day, n) SELECT * FROM unnest($6::date[], $7::int8[])
             ON CONFLICT (day) DO UPDATE SET n = c.n + excluded.n
         ), b AS (
             INSERT INTO projection_births AS c (date_of_birth, n)
             SELECT * FROM unnest($8::date[], $9::int8[])
             ON CONFLICT (date_of_birth) DO UPDATE SET n = c.n + excluded.n
         )
         INSERT INTO projection_offsets AS o (consumer_group, broker, topic, partition_no, next_offset)
         SELECT $10, $11, $12, q, max(n) FROM unnest($13::int4[], $14::int8[]) AS new(q, n)
         GROUP BY q ORDER BY q
         ON CONFLICT (consumer_group, broker, topic, partition_no) DO UPDATE SET
             next_offset = greatest(o.next_offset, excluded.next_offset)",
    )
    .bind(delta.patients.keys().map(|id| id.0).collect::<Vec<_>>())
    .bind(delta.patients.values().map(|known| known.version).collect::<Vec<_>>())
    .bind(delta.patients.values().map(|known| known.date_of_birth).collect::<Vec<_>>())
    .bind(delta.event_types.keys().copied().collect::<Vec<_>>())
    .bind(delta.event_types.values().copied().collect::<Vec<_>>())
    .bind(delta.registrations.keys().copied().collect::<Vec<_>>())
    .bind(delta.registrations.values().copied().collect::<Vec<_>>())
    .bind(delta.births.keys().copied().collect::<Vec<_>>())
    .bind(delta.births.values().copied().collect::<Vec<_>>())
    .bind(&source.group)
    .bind(&source.broker)
    .bind(&source.topic)
    .bind(offsets.iter().map(|o| o.partition).collect::<Vec<_>>())
    .bind(offsets.iter().map(|o| o.next_offset).collect::<Vec<_>>())
    .bind(delta.patients.values().map(Known::ahead).collect::<Vec<_>>());
    transaction.rows(query).await.map(drop)
}
