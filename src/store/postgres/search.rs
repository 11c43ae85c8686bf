//! Lists: scans of one index each, and the filling in of missing keys.

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::fault::{Failure, Intent};
use super::{PgQuery, PostgresStore, column, decode, limit};
use crate::domain::email::email_key;
use crate::domain::patient::Patient;
use crate::domain::text::search_key;
use crate::store::codec::PatientRow;
use crate::store::searching::{Dialect, KEYED_AT_ONCE, Scan, Scans, warn_of_taken};
use crate::store::{Error, Result};

/// Builds the query of `scan`.
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

/// Converts a failure while keys are filled in. An unknown outcome does not matter, because the step is
/// repeated.
fn failed(error: sqlx::Error) -> Error {
    Failure::Failed(error).into_error(Intent::Read)
}

/// Fills in the name keys of rows that were written before keys existed, a few at a time. The call may be
/// interrupted and repeated.
///
/// # Errors
/// `Unavailable`: not finished; call it again.
pub(super) async fn fill_keys(connection: &mut PgConnection) -> Result<()> {
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
        // A row whose name has changed meanwhile is left for the next round.
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

/// Returns the new and the old form of those `keys` whose form changes.
fn moved(keys: Vec<String>) -> (Vec<String>, Vec<String>) {
    keys.into_iter().map(|old| (email_key(&old), old)).filter(|(new, old)| new != old).unzip()
}

/// Converts the e-mail keys of patients and users that were stored before the ASCII form was introduced.
/// Where another patient already has the converted key, the claim is given up: one address, one claim. A user
/// in that case keeps the old form.
///
/// # Errors
/// `Unavailable`: not finished; call it again.
pub(super) async fn move_emails(connection: &mut PgConnection) -> Result<()> {
    const PATIENTS: &str = "SELECT email_key FROM patient_emails
        WHERE octet_length(email_key) <> char_length(email_key) AND email_key > $1 ORDER BY email_key LIMIT $2";
    // A row that was deleted meanwhile is not inserted again.
    const MOVE: &str = "WITH gone AS (
            DELETE FROM patient_emails e USING unnest($1::text[], $2::text[]) AS t(new, old)
            WHERE e.email_key = t.old RETURNING t.new, e.patient_id
        ), moved AS (
            INSERT INTO patient_emails (email_key, patient_id) SELECT new, patient_id FROM gone
            ON CONFLICT DO NOTHING RETURNING 1
        )
        SELECT (SELECT count(*) FROM gone) - (SELECT count(*) FROM moved)";
    const USERS: &str = "SELECT email FROM users
        WHERE octet_length(email) <> char_length(email) AND email > $1 ORDER BY email LIMIT $2";
    const RENAME: &str = "WITH named AS (
            UPDATE users u SET email = t.new FROM (
                SELECT new, min(old) AS old FROM unnest($1::text[], $2::text[]) AS t(new, old)
                WHERE NOT EXISTS (SELECT FROM users WHERE email = t.new) GROUP BY new
            ) AS t
            WHERE u.email = t.old RETURNING 1
        )
        SELECT cardinality($1) - (SELECT count(*) FROM named)";
    for (what, read, change) in [("patients", PATIENTS, MOVE), ("users", USERS, RENAME)] {
        let (mut after, mut taken) = (String::new(), 0_u64);
        loop {
            let query = sqlx::query(read).bind(&after).bind(i64::from(KEYED_AT_ONCE));
            let rows: Vec<PgRow> = query.fetch_all(&mut *connection).await.map_err(failed)?;
            let keys = rows.iter().map(|row| column(row, 0)).collect::<Result<Vec<String>>>()?;
            let Some(last) = keys.last() else { break };
            after.clone_from(last);
            let (new, old) = moved(keys);
            let query = sqlx::query(change).bind(new).bind(old);
            let left: i64 = column(&query.fetch_one(&mut *connection).await.map_err(failed)?, 0)?;
            taken += u64::try_from(left).unwrap_or_default();
        }
        warn_of_taken(what, taken);
    }
    Ok(())
}
