//! The same in PostgreSQL: made by the server from a series of numbers, without indexes, which are built afterwards.

use std::fmt::Write;

use hygeia::domain::time::Timestamp;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use super::{Filled, RARE_NAMES, audit, this_month};
use crate::Result;

/// `$1` patients, registered one after the other over the last year.
const PATIENTS: &str = "
INSERT INTO patients (id, version, deleted, created_at, name, email, address, date_of_birth, registered_date,
    name_key, restricted)
SELECT (lpad(to_hex(at / 1000), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid,
    CASE WHEN n % 10 = 0 THEN 5 ELSE 1 END, false, at, first || ' ' || n, lower(first) || '.' || n || '@example.com',
    '12 Main Street, Springfield', date '1930-01-01' + (n * 7919 % 34000)::int4,
    (to_timestamp(at / 1000000) AT TIME ZONE 'UTC')::date, lower(first) || ' ' || n, n % 100 = 99
FROM (SELECT n, (extract(epoch FROM now()) * 1000000)::int8 - ($1 - n + 1) * (31536000000000 / $1) AS at,
          CASE WHEN n % ($1 / $2) = 0 THEN 'Zephyrine' WHEN n % 20 = 1 THEN 'Anna' WHEN n % 7 = 0 THEN 'John'
               ELSE 'P' || (n % 997) END AS first
      FROM generate_series(1::int8, $1) n) made";

/// The rows that follow from the patients: addresses, events, accounts, and the counts of analytics.
const DERIVED: [&str; 8] = [
    "INSERT INTO patient_emails (email_key, patient_id) SELECT email, id FROM patients ORDER BY email",
    "INSERT INTO patient_events (patient_id, version, at, command_id, event_id, shard, kind, subject, traceparent, body)
     SELECT id, v, created_at + v, gen_random_uuid(), gen_random_uuid(), 0, CASE WHEN v = 1 THEN 1 ELSE 2 END,
         'user-1@example.com', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
         json_build_object('createdAt', created_at, 'name', name, 'email', email, 'address', address || v,
             'dateOfBirth', date_of_birth, 'registeredDate', registered_date)::text
     FROM patients CROSS JOIN LATERAL generate_series(1, version) v",
    "INSERT INTO accounts (patient_id, id, status, opened_at, name, email)
     SELECT id, gen_random_uuid(), 'ACTIVE', created_at, name, email FROM patients",
    "INSERT INTO projection_patients (patient_id, version, date_of_birth)
     SELECT id, version, date_of_birth FROM patients",
    "INSERT INTO projection_event_types (kind, n)
     SELECT 1, count(*) FROM patients UNION ALL SELECT 2, sum(version - 1) FROM patients",
    "INSERT INTO projection_registrations (day, n) SELECT registered_date, count(*) FROM patients GROUP BY 1",
    "INSERT INTO projection_births (date_of_birth, n) SELECT date_of_birth, count(*) FROM patients GROUP BY 1",
    "SELECT setval(pg_get_serial_sequence('patient_events', 'seq'), (SELECT max(seq) FROM patient_events))",
];

/// The indexes of the large tables: what takes each away, and what makes it again.
const INDEXES: &str = "
SELECT 'ALTER TABLE ' || t.relname || ' DROP CONSTRAINT ' || c.conname,
    'ALTER TABLE ' || t.relname || ' ADD CONSTRAINT ' || c.conname || ' ' || pg_get_constraintdef(c.oid)
FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
WHERE c.contype IN ('p', 'u')
  AND t.relname IN ('patients', 'patient_emails', 'patient_events', 'accounts', 'projection_patients')
UNION ALL
SELECT 'DROP INDEX ' || i.relname, pg_get_indexdef(i.oid)
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
WHERE t.relname IN ('patients', 'patient_emails', 'patient_events', 'accounts', 'projection_patients')
  AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.oid)";

/// Fills the database at `url`, whose schema is there, with `patients` of them.
pub(crate) async fn fill(url: &str, patients: u64, secret: &str) -> Result<Filled> {
    let mut session = PgConnection::connect(url).await?;
    session
        .execute("SET synchronous_commit = off; SET maintenance_work_mem = '512MB'; SET jit = off")
        .await?;
    let indexes: Vec<(String, String)> = sqlx::query_as(INDEXES).fetch_all(&mut session).await?;
    for (drop, _) in &indexes {
        session.execute(AssertSqlSafe(drop.clone())).await?;
    }
    let filling = sqlx::query(PATIENTS).bind(i64::try_from(patients)?).bind(i64::try_from(RARE_NAMES)?);
    filling.execute(&mut session).await?;
    for statement in DERIVED {
        session.execute(statement).await?;
    }
    for (_, make) in &indexes {
        session.execute(AssertSqlSafe(make.clone())).await?;
    }
    let ids: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM patients ORDER BY created_at, id").fetch_all(&mut session).await?;
    let half_audited = copy_audit(&mut session, &ids, secret).await?;
    session.execute("VACUUM ANALYZE").await?;
    session.execute("CHECKPOINT").await?;
    session.close().await?;
    Filled::among(&ids, half_audited)
}

async fn copy_audit(session: &mut PgConnection, ids: &[Uuid], secret: &str) -> Result<Timestamp> {
    /// Sent at once.
    const CHUNK_BYTES: usize = 1 << 20;
    let (first, last) = this_month()?;
    let copy = "COPY audit_batches (chain, seq, at, mac, body, terms) FROM STDIN";
    let mut sink = session.copy_in_raw(copy).await?;
    let mut chunk = String::with_capacity(2 * CHUNK_BYTES);
    for batch in audit(ids, secret, first, last) {
        let terms: Vec<String> = batch.terms.iter().map(i32::to_string).collect();
        write!(chunk, "{}\t{}\t{}\t\\\\x", batch.chain, batch.seq, batch.at.0)?;
        hex(&mut chunk, &batch.mac)?;
        chunk.push_str("\t\\\\x");
        hex(&mut chunk, &batch.body)?;
        writeln!(chunk, "\t{{{}}}", terms.join(","))?;
        if chunk.len() >= CHUNK_BYTES {
            sink.send(chunk.as_bytes()).await?;
            chunk.clear();
        }
    }
    sink.send(chunk.as_bytes()).await?;
    sink.finish().await?;
    Ok(Timestamp(first.0 + (last.0 - first.0) / 2))
}

fn hex(into: &mut String, bytes: &[u8]) -> Result<()> {
    for byte in bytes {
        write!(into, "{byte:02x}")?;
    }
    Ok(())
}
