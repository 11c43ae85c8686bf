//! PostgreSQL: the server that ours and pgbench share, and pgbench.

#[path = "../../tests/harness/postgres.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::{Connection, Executor, PgConnection};

pub(crate) use self::harness::{Database, Postgres};
use crate::{Result, say};

/// The same rows as a registration of ours with its audit, one patient per transaction, as few round trips as there
/// can be: one statement that checks the lease under the lock that a commit of ours takes. Ids rise with time, as ours
/// do; a client has an audit chain of its own, as each of our transactions under way has; the body is as long as that
/// of one entry.
const SCRIPT: &str = r#"\set shard random(0, 63)
WITH moment AS MATERIALIZED (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS at
), prefix AS MATERIALIZED (
    SELECT at, regexp_replace(lpad(to_hex(at / 1000), 12, '0'), '(.{8})', '\1-') || '-7' AS hex FROM moment
), new AS MATERIALIZED (
    SELECT (hex || substr(gen_random_uuid()::text, 16))::uuid AS id,
           (hex || substr(gen_random_uuid()::text, 16))::uuid AS event_id,
           (hex || substr(gen_random_uuid()::text, 16))::uuid AS command_id,
           gen_random_uuid()::text || '@example.com' AS email, at
    FROM prefix
), fence AS MATERIALIZED (
    SELECT epoch FROM leases WHERE kind = 'patient' AND shard = :shard AND epoch = 1 FOR KEY SHARE
), claimed AS (
    INSERT INTO patient_emails (email_key, patient_id) SELECT email, id FROM new CROSS JOIN fence
), inserted AS (
    INSERT INTO patients (id, version, deleted, created_at, name, email, address, date_of_birth, registered_date, name_key)
    SELECT id, 1, false, at, 'Bench Patient', email, '1 Bench Street, Benchtown', '1980-05-17', '2026-01-02', 'bench patient'
    FROM new CROSS JOIN fence
), written AS (
    INSERT INTO patient_events (patient_id, version, event_id, command_id, kind, shard, at, subject, traceparent, body)
    SELECT id, 1, event_id, command_id, 1, :shard, at, 'bench@example.com',
           '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
           '{"name":"Bench Patient","email":"' || email || '","address":"1 Bench Street, Benchtown","date_of_birth":"1980-05-17","registered_date":"2026-01-02"}'
    FROM new CROSS JOIN fence RETURNING seq, version, patient_id
), told AS (
    INSERT INTO outbox (seq, version, patient_id) SELECT seq, version, patient_id FROM written
), owed AS (
    INSERT INTO unbilled (seq, version, patient_id) SELECT seq, version, patient_id FROM written
), audited AS (
    INSERT INTO audit_batches (chain, seq, at, mac, body, terms)
    SELECT lpad((:client_id + 1)::text, 32, '0')::uuid, at, at, decode(repeat('a7', 32), 'hex'),
           decode(repeat('5c', 200), 'hex'), ARRAY[hashtext(id::text), 1, 2, 3]
    FROM new CROSS JOIN fence
)
SELECT count(*) FROM fence;
"#;

/// What pgbench measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Transactions, that is rows, per second.
    pub(crate) rate: f64,
    /// The mean of a transaction.
    pub(crate) mean_us: f64,
}

/// A database with our schema and leases that hold, for pgbench alone.
pub(crate) async fn yardstick_database(server: &Postgres) -> Result<Database> {
    let database = server.create_database().await;
    let mut connection = PgConnection::connect(database.url()).await?;
    let migrations = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/postgres"));
    Migrator::new(migrations).await?.run(&mut connection).await?;
    connection
        .execute(
            "INSERT INTO leases (kind, shard, owner, epoch, expires_at)
             SELECT 'patient', shard, 'pgbench', 1, 'infinity' FROM generate_series(0, 63) AS shard",
        )
        .await?;
    connection.close().await?;
    Ok(database)
}

/// Runs the script with `clients` at a time for `measured`.
///
/// # Errors
/// Also if it did not do what it is the measure of: each transaction inserts its row, durably. A statement
/// whose lease does not hold inserts nothing, and is fast.
pub(crate) async fn pgbench(database: &Database, clients: usize, measured: Duration) -> Result<Outcome> {
    let before = inspect(database).await?;
    let (outcome, transactions) = run_script(database.url().to_owned(), clients, measured).await?;
    let after = inspect(database).await?;
    let (rows, syncs) = (after.rows - before.rows, after.wal_syncs - before.wal_syncs);
    say(&format!(
        "pgbench, {clients} clients: {transactions} transactions, {rows} rows, {syncs} syncs of the log"
    ));
    if rows != transactions {
        return Err(format!("pgbench: {transactions} transactions inserted {rows} rows").into());
    }
    if !after.durable {
        return Err("the server does not wait for its disk: no measure of a durable commit".into());
    }
    Ok(outcome)
}

/// What tells whether a yardstick did its work.
struct Inspected {
    rows: i64,
    /// How often the server has waited for its log to be on disk, over all databases.
    wal_syncs: i64,
    durable: bool,
}

async fn inspect(database: &Database) -> Result<Inspected> {
    let mut connection = PgConnection::connect(database.url()).await?;
    let query = "SELECT (SELECT count(*) FROM patient_events), (SELECT wal_sync FROM pg_stat_wal),
        current_setting('fsync') = 'on' AND current_setting('synchronous_commit') = 'on'";
    let (rows, wal_syncs, durable) = sqlx::query_as(query).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(Inspected { rows, wal_syncs, durable })
}

async fn run_script(url: String, clients: usize, measured: Duration) -> Result<(Outcome, i64)> {
    tokio::task::spawn_blocking(move || -> Result<(Outcome, i64)> {
        let script = tempfile::NamedTempFile::new()?;
        std::fs::write(script.path(), SCRIPT)?;
        let output = Command::new(program("pgbench")?)
            .args(["--no-vacuum", "--protocol=prepared", "--file"])
            .arg(script.path())
            .args(["--client", &clients.to_string(), "--jobs", &clients.min(2).to_string()])
            .args(["--time", &measured.as_secs().to_string(), &url])
            .output()?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!("pgbench: {told}{}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let number = |before: &str| -> Result<f64> {
            let line = told.lines().find_map(|line| line.strip_prefix(before));
            let text = line.and_then(|rest| rest.split_whitespace().next());
            Ok(text.ok_or_else(|| format!("pgbench did not tell {before:?}: {told}"))?.parse()?)
        };
        let transactions = number("number of transactions actually processed: ")? as i64;
        let outcome = Outcome { rate: number("tps = ")?, mean_us: number("latency average = ")? * 1_000.0 };
        Ok((outcome, transactions))
    })
    .await?
}

/// What `pgbench --version` says.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(program("pgbench").ok()?).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().replace("pgbench", "PostgreSQL"))
}

/// A program of PostgreSQL: from the path, or where Debian keeps the newest version's.
fn program(name: &str) -> Result<PathBuf> {
    let on_path = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|d| d.join(name)).find(|file| file.exists()));
    let installed = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let mut files: Vec<_> = versions
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
            .map(|(version, path)| (version, path.join("bin").join(name)))
            .filter(|(_, file)| file.exists())
            .collect();
        files.sort();
        files.pop().map(|(_, file)| file)
    };
    on_path.or_else(installed).ok_or_else(|| format!("no {name} found: install PostgreSQL").into())
}

/// Whether rows wait in the queues of a node's database.
pub(crate) async fn rows_waiting(database: &Database) -> Result<i64> {
    let mut connection = PgConnection::connect(database.url()).await?;
    let query = "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM unbilled)";
    let waiting = sqlx::query_scalar(query).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(waiting)
}

/// Makes every event of a node's database one that no broker has taken; answers with how many. The node
/// must not run.
pub(crate) async fn refill_outbox(database: &Database) -> Result<usize> {
    let mut connection = PgConnection::connect(database.url()).await?;
    connection.execute("DELETE FROM outbox_sent").await?;
    let filled = connection
        .execute(
            "INSERT INTO outbox (seq, version, patient_id)
             SELECT seq, version, patient_id FROM patient_events ON CONFLICT DO NOTHING",
        )
        .await?
        .rows_affected();
    connection.execute("VACUUM ANALYZE").await?;
    connection.close().await?;
    Ok(usize::try_from(filled)?)
}
