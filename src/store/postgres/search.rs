//! Lists: scans of one index each, and the keys of rows that have none yet.

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::fault::{Failure, Intent};
use super::{PgQuery, PostgresStore, column, decode, limit};
use crate::domain::patient::Patient;
use crate::domain::text::search_key;
use crate::store::Result;
use crate::store::codec::PatientRow;
use crate::store::searching::{Dialect, KEYED_AT_ONCE, Scan, Scans};

/// The statement of `scan`.
pub(super) fn query_of(scan: Scan) -> PgQuery<'static> {
    macro_rules! bound {
        ($query:expr, $span:expr) => {{
            let span = $span;
            let (lower, upper) = (span.lower, span.upper);
            let query = $query.bind(lower.0).bind(lower.1).bind(upper.0).bind(upper.1);
            query.bind(limit(span.limit_rows))
        }};
    }
    let query = sqlx::query(scan.sql(Dialect::Postgres));
    match scan {
        Scan::Created(span) => bound!(query, span),
        Scan::Name(span) | Scan::Email(span) => bound!(query, span),
        Scan::Birth(span) | Scan::Registered(span) => bound!(query, span),
    }
}

#[async_trait]
impl Scans for PostgresStore {
    async fn scan(&self, scan: Scan) -> Result<Vec<Patient>> {
        let rows = self.read(query_of(scan)).await?;
        rows.iter().map(|row| Ok(decode::<PatientRow>(row)?.into())).collect()
    }
}

/// Gives the rows their keys that were written before there were any, a few at a time. It may be broken off and
/// called again.
///
/// # Errors
/// `Unavailable`: not done yet.
pub(super) async fn fill_keys(connection: &mut PgConnection) -> Result<()> {
    // Whether the last of it was done does not matter: it is done again.
    let failed = |error: sqlx::Error| Failure::Failed(error).into_error(Intent::Read);
    loop {
        let rows: Vec<PgRow> = sqlx::query(
            "SELECT id, name FROM patients WHERE NOT deleted AND name_key IS NULL ORDER BY id LIMIT $1",
        )
        .bind(i64::from(KEYED_AT_ONCE))
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
        if rows.is_empty() {
            return Ok(());
        }
        let names = rows.iter().map(|row| Ok((column(row, 0)?, column::<String>(row, 1)?)));
        let names = names.collect::<Result<Vec<(Uuid, String)>>>()?;
        let (ids, names): (Vec<Uuid>, Vec<String>) = names.into_iter().unzip();
        let keys: Vec<String> = names.iter().map(|name| search_key(name)).collect();
        // A row that has changed meanwhile is left for the next round.
        sqlx::query(
            "UPDATE patients p SET name_key = t.key
             FROM unnest($1::uuid[], $2::text[], $3::text[]) AS t(id, name, key)
             WHERE p.id = t.id AND p.name = t.name AND p.name_key IS NULL",
        )
        .bind(ids)
        .bind(names)
        .bind(keys)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    }
}
