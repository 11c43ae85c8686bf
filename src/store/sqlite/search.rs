//! Lists: scans of one index each, and the keys of rows that have none yet.

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{SqliteQuery, SqliteStore, change, column, decode, rows};
use crate::domain::patient::Patient;
use crate::domain::text::search_key;
use crate::store::Result;
use crate::store::codec::PatientRow;
use crate::store::searching::{Dialect, KEYED_AT_ONCE, Scan, Scans};

/// The statement of `scan`.
pub(super) fn query_of(scan: Scan) -> SqliteQuery<'static> {
    macro_rules! bound {
        ($query:expr, $span:expr) => {{
            let span = $span;
            let (lower, upper) = (span.lower, span.upper);
            let query = $query.bind(lower.0).bind(lower.1).bind(upper.0).bind(upper.1);
            query.bind(span.limit_rows)
        }};
    }
    let query = sqlx::query(scan.sql(Dialect::Sqlite));
    match scan {
        Scan::Created(span) => bound!(query, span),
        Scan::Name(span) | Scan::Email(span) => bound!(query, span),
        Scan::Birth(span) | Scan::Registered(span) => bound!(query, span),
    }
}

#[async_trait]
impl Scans for SqliteStore {
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
pub(super) async fn fill_keys(connection: &mut SqliteConnection) -> Result<()> {
    loop {
        let query = sqlx::query(
            "SELECT id, name FROM patients WHERE deleted = 0 AND name_key IS NULL ORDER BY id LIMIT $1",
        );
        let found = rows(connection, query.bind(KEYED_AT_ONCE)).await?;
        if found.is_empty() {
            return Ok(());
        }
        for row in &found {
            let (id, name): (Uuid, String) = (column(row, 0)?, column(row, 1)?);
            let fill = sqlx::query("UPDATE patients SET name_key = $1 WHERE id = $2 AND name = $3");
            change(connection, fill.bind(search_key(&name)).bind(id).bind(name)).await?;
        }
    }
}
