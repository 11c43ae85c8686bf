//! Lists: scans of one index each, and the filling in of missing keys.

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{SqliteQuery, SqliteStore, change, column, decode, rows};
use crate::domain::email::email_key;
use crate::domain::patient::Patient;
use crate::domain::text::search_key;
use crate::store::Result;
use crate::store::codec::PatientRow;
use crate::store::searching::{Dialect, KEYED_AT_ONCE, Scan, Scans, warn_of_taken};

/// Builds the query of `scan`.
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

/// Fills in the name keys of rows that were written before keys existed, a few at a time. The call may be
/// interrupted and repeated.
///
/// # Errors
/// `Unavailable`: not finished; call it again.
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

/// Converts the e-mail keys of patients and users that were stored before the ASCII form was introduced.
/// Where another patient already has the converted key, the claim is given up: one address, one claim. A user
/// in that case keeps the old form.
///
/// # Errors
/// `Unavailable`: not finished; call it again.
pub(super) async fn move_emails(connection: &mut SqliteConnection) -> Result<()> {
    const PATIENTS: (&str, [&str; 2]) = (
        "SELECT email_key FROM patient_emails
         WHERE length(CAST(email_key AS BLOB)) <> length(email_key) AND email_key > $1 ORDER BY email_key LIMIT $2",
        [
            "INSERT INTO patient_emails (email_key, patient_id)
             SELECT $1, patient_id FROM patient_emails WHERE email_key = $2 ON CONFLICT DO NOTHING",
            "DELETE FROM patient_emails WHERE email_key = $2 AND $1 <> $2",
        ],
    );
    const USERS: (&str, [&str; 2]) = (
        "SELECT email FROM users
         WHERE length(CAST(email AS BLOB)) <> length(email) AND email > $1 ORDER BY email LIMIT $2",
        ["UPDATE OR IGNORE users SET email = $1 WHERE email = $2", "SELECT $1, $2"],
    );
    for (what, (read, [first, second])) in [("patients", PATIENTS), ("users", USERS)] {
        let (mut after, mut taken) = (String::new(), 0);
        loop {
            let found = rows(connection, sqlx::query(read).bind(after.clone()).bind(KEYED_AT_ONCE)).await?;
            let keys = found.iter().map(|row| column(row, 0)).collect::<Result<Vec<String>>>()?;
            let Some(last) = keys.last() else { break };
            after.clone_from(last);
            // One transaction, so that no claim is lost between the insertion and the deletion.
            change(connection, sqlx::query("BEGIN IMMEDIATE")).await?;
            for old in keys {
                let new = email_key(&old);
                if new != old {
                    let moved = sqlx::query(first).bind(new.clone()).bind(old.clone());
                    taken += u64::from(change(connection, moved).await? == 0);
                    change(connection, sqlx::query(second).bind(new).bind(old)).await?;
                }
            }
            change(connection, sqlx::query("COMMIT")).await?;
        }
        warn_of_taken(what, taken);
    }
    Ok(())
}
