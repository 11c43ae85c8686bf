//! The same in SQLite: made from a series of numbers, in one transaction, without the indexes that can be built afterwards.

use std::path::Path;

use hygeia::domain::time::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, SqliteConnection};
use uuid::Uuid;

use super::{Filled, RARE_NAMES, audit, this_month};
use crate::Result;

/// `$1` patients, registered one after the other over the last year.
const PATIENTS: &str = "
INSERT INTO patients (id, version, deleted, created_at, name, email, address, date_of_birth, registered_date,
    name_key, restricted)
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < $1),
made AS (
    SELECT n, CAST(unixepoch() AS INTEGER) * 1000000 - ($1 - n + 1) * (31536000000000 / $1) AS at,
        CASE WHEN n % ($1 / $2) = 0 THEN 'Zephyrine' WHEN n % 20 = 1 THEN 'Anna' WHEN n % 7 = 0 THEN 'John'
             ELSE 'P' || (n % 997) END AS first
    FROM numbers)
SELECT unhex(printf('%012x', at / 1000) || '7' || substr(hex(randomblob(2)), 1, 3) || '8'
        || substr(hex(randomblob(8)), 1, 15)),
    CASE WHEN n % 10 = 0 THEN 5 ELSE 1 END, 0, at, first || ' ' || n, lower(first) || '.' || n || '@example.com',
    '12 Main Street, Springfield', date('1930-01-01', (n * 7919 % 34000) || ' days'),
    date(at / 1000000, 'unixepoch'), lower(first) || ' ' || n, n % 100 = 99
FROM made";

/// The rows that follow from the patients: addresses, events, accounts, and the counts of analytics.
const DERIVED: [&str; 7] = [
    "INSERT INTO patient_emails (email_key, patient_id) SELECT email, id FROM patients ORDER BY email",
    "INSERT INTO patient_events (patient_id, version, at, command_id, event_id, shard, kind, subject, traceparent, body)
     SELECT p.id, v.value, p.created_at + v.value, randomblob(16), randomblob(16), 0,
         CASE WHEN v.value = 1 THEN 1 ELSE 2 END, 'user-1@example.com',
         '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
         json_object('createdAt', p.created_at, 'name', p.name, 'email', p.email, 'address', p.address || v.value,
             'dateOfBirth', p.date_of_birth, 'registeredDate', p.registered_date)
     FROM patients p CROSS JOIN json_each('[1,2,3,4,5]') v WHERE v.value <= p.version",
    "INSERT INTO accounts (patient_id, id, status, opened_at, name, email)
     SELECT id, unhex(substr(hex(id), 1, 16) || hex(randomblob(8))), 'ACTIVE', created_at, name, email FROM patients",
    "INSERT INTO projection_patients (patient_id, version, date_of_birth)
     SELECT id, version, date_of_birth FROM patients",
    "INSERT INTO projection_event_types (kind, n)
     SELECT 1, count(*) FROM patients UNION ALL SELECT 2, sum(version - 1) FROM patients",
    "INSERT INTO projection_registrations (day, n) SELECT registered_date, count(*) FROM patients GROUP BY 1",
    "INSERT INTO projection_births (date_of_birth, n) SELECT date_of_birth, count(*) FROM patients GROUP BY 1",
];

/// The indexes of the large tables that can be taken away, and what makes each again.
const INDEXES: &str = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL
    AND tbl_name IN ('patients', 'patient_events', 'accounts', 'audit_batches')";

/// Fills the database in `file`, whose schema is there and which nobody else uses, with `patients` of them.
pub(crate) async fn fill(file: &Path, patients: u64, secret: &str) -> Result<Filled> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Off)
        .synchronous(SqliteSynchronous::Off)
        // In KiB.
        .pragma("cache_size", "-1000000")
        .disable_statement_logging();
    let mut session = options.connect().await?;
    let indexes: Vec<(String, String)> = sqlx::query_as(INDEXES).fetch_all(&mut session).await?;
    session.execute("BEGIN").await?;
    for (name, _) in &indexes {
        session.execute(AssertSqlSafe(format!("DROP INDEX {name}"))).await?;
    }
    let filling = sqlx::query(PATIENTS).bind(i64::try_from(patients)?).bind(i64::try_from(RARE_NAMES)?);
    filling.execute(&mut session).await?;
    for statement in DERIVED {
        session.execute(statement).await?;
    }
    let ids: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM patients ORDER BY id").fetch_all(&mut session).await?;
    let half_audited = insert_audit(&mut session, &ids, secret).await?;
    for (_, make) in &indexes {
        session.execute(AssertSqlSafe(make.clone())).await?;
    }
    session.execute("COMMIT").await?;
    session.close().await?;
    Filled::among(&ids, half_audited)
}

async fn insert_audit(session: &mut SqliteConnection, ids: &[Uuid], secret: &str) -> Result<Timestamp> {
    let (first, last) = this_month()?;
    for batch in audit(ids, secret, first, last) {
        let terms: Vec<u8> = batch.terms.iter().flat_map(|term| term.to_le_bytes()).collect();
        sqlx::query(
            "INSERT INTO audit_batches (id, chain, seq, at, mac, terms, body) VALUES ($3 * 1024, $1, $2, $3, $4, $5, $6)",
        )
        .bind(batch.chain)
        .bind(batch.seq)
        .bind(batch.at.0)
        .bind(batch.mac.to_vec())
        .bind(terms)
        .bind(batch.body)
        .execute(&mut *session)
        .await?;
    }
    Ok(Timestamp(first.0 + (last.0 - first.0) / 2))
}
