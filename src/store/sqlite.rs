//! SQLite, for a single process: one connection writes, a few others read.
//!
//! Invariants:
//! - A server holds an exclusive lock on the file for as long as it runs. So no other owner of a lease is
//!   alive when it opens the file, and it expires all leases.
//! - Every change is one transaction of the writer (see `writer`), which begins with `IMMEDIATE` or is a
//!   single statement.
//! - A commit is durable before it is acknowledged: WAL with `synchronous=FULL` (by `fdatasync`, see
//!   `.cargo/config.toml`).

mod accounts;
mod attempts;
mod audit;
mod fault;
mod file;
mod keys;
mod leases;
mod outbox;
mod patients;
mod projection;
mod search;
mod sessions;
#[cfg(test)]
mod tests;
mod topic_log;
mod users;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, FromRow, Row, Sqlite, SqlitePool};
use tokio::time::{Instant, sleep, timeout};

use self::writer::Writer;
use super::open::{AppliedMigration, Schema, Settings, Use, compare_schema, ms};
use super::trimming::Trimming;
use super::{Error, Result, Store};
use crate::clock::SystemClock;
use crate::domain::time::{Clock, Timestamp};

static MIGRATOR: Migrator = sqlx::migrate!("migrations/sqlite");

/// Sizes of the page caches. The kernel's cache does most of the work, and an idle process stays small.
const WRITER_CACHE_KIB: i64 = 2048;
const READER_CACHE_KIB: i64 = 512;
/// The size to which the write-ahead log is truncated after a spike.
const WAL_KEPT_BYTES: i64 = 64 << 20;

type SqliteQuery<'q> = Query<'q, Sqlite, SqliteArguments>;

/// The store, with its connections to one file.
pub(super) struct SqliteStore {
    path: PathBuf,
    writer: Writer,
    readers: SqlitePool,
    answer_timeout: Duration,
    trimming: Trimming,
    /// Held for the lifetime of the server.
    _lock: Option<file::Lock>,
}

impl SqliteStore {
    /// Opens the file, creates it if it is missing, and migrates its schema.
    ///
    /// # Errors
    /// As `super::open`.
    pub(super) async fn open(path: PathBuf, settings: &Settings, by: Use) -> Result<Self> {
        let place = path.display().to_string();
        Self::open_here(path, settings, by).await.map_err(|error| error.at(&place))
    }

    async fn open_here(path: PathBuf, settings: &Settings, by: Use) -> Result<Self> {
        file::make(&path)?;
        let lock = match by {
            Use::Serve => Some(file::Lock::take(&path, Duration::ZERO).await?),
            Use::Tool => None,
        };
        let writing = writing_options(&path, settings);
        let mut connection = connect(&writing, ms(settings.acquire_timeout_ms)).await?;
        prepare_schema(&mut connection, &path, settings, lock.is_some()).await?;
        if by == Use::Serve {
            let expire = sqlx::query("UPDATE leases SET expires_at = 0").execute(&mut connection);
            expire.await.map_err(|error| fault::of(&error))?;
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(settings.read_connections_max)
            .acquire_timeout(ms(settings.acquire_timeout_ms))
            .idle_timeout(Duration::from_secs(60))
            .test_before_acquire(false)
            .connect_lazy_with(reading_options(&path, settings));
        let answer_timeout = ms(settings.statement_timeout_ms);
        let writer =
            Writer::new(writing, connection, ms(settings.acquire_timeout_ms), answer_timeout, path.clone());
        Ok(SqliteStore { path, writer, readers, answer_timeout, trimming: Trimming::new(), _lock: lock })
    }

    /// Runs a statement that reads.
    async fn read(&self, query: SqliteQuery<'_>) -> Result<Vec<SqliteRow>> {
        let result = match timeout(self.answer_timeout, query.fetch_all(&self.readers)).await {
            Ok(Ok(rows)) => return Ok(rows),
            Ok(Err(error)) => fault::of(&error),
            Err(_) => Error::Unavailable("no answer in time".to_owned()),
        };
        Err(result.at(&self.path.display().to_string()))
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn prepare(&self) -> Result<()> {
        // The schema was prepared when the file was opened.
        Ok(())
    }

    fn writers(&self) -> usize {
        1
    }

    /// Returns this process's clock, because SQLite runs in the process.
    async fn ping(&self) -> Result<Timestamp> {
        self.writer.write(|_| Box::pin(async { Ok(()) })).await?;
        self.read(sqlx::query("SELECT count(*) FROM settings")).await?;
        Ok(SystemClock.now())
    }

    async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }
}

/// Migrates the schema.
///
/// # Errors
/// As `super::migrate`.
pub(super) async fn migrate(path: PathBuf, settings: &Settings) -> Result<()> {
    let store = SqliteStore::open(path, settings, Use::Tool).await?;
    store.close().await;
    Ok(())
}

fn writing_options(path: &Path, settings: &Settings) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(ms(settings.lock_timeout_ms))
        .pragma("cache_size", format!("-{WRITER_CACHE_KIB}"))
        .pragma("journal_size_limit", WAL_KEPT_BYTES.to_string())
        .thread_name(|_| "sqlite-writer".to_owned())
        .disable_statement_logging()
}

fn reading_options(path: &Path, settings: &Settings) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(ms(settings.lock_timeout_ms))
        .pragma("cache_size", format!("-{READER_CACHE_KIB}"))
        .thread_name(|n| format!("sqlite-reader-{n}"))
        .disable_statement_logging()
}

/// Connects. Retries for at most `patience` while another process opens or closes the file: SQLite does not
/// wait for the locks by which it enters or leaves WAL mode (`busy_timeout` does not apply to them).
async fn connect(options: &SqliteConnectOptions, patience: Duration) -> Result<SqliteConnection> {
    let deadline = Instant::now() + patience;
    loop {
        match options.connect().await {
            Err(error) if fault::is_busy(&error) && Instant::now() < deadline => sleep(file::PAUSE).await,
            connected => return connected.map_err(|error| fault::of(&error)),
        }
    }
}

/// Migrates the schema if needed, under the lock of the file.
async fn prepare_schema(
    connection: &mut SqliteConnection,
    path: &Path,
    settings: &Settings,
    locked: bool,
) -> Result<()> {
    if schema(connection).await? == Schema::Fits {
        return fill_keys(connection, settings).await;
    }
    let _lock = match locked {
        true => None,
        false => Some(file::Lock::take(path, ms(settings.acquire_timeout_ms)).await?),
    };
    let migrator =
        Migrator { migrations: MIGRATOR.migrations.clone(), ignore_missing: true, ..Migrator::DEFAULT };
    match timeout(ms(settings.migrate_timeout_ms), migrator.run_direct(None, connection, false)).await {
        Ok(Ok(())) => fill_keys(connection, settings).await,
        Ok(Err(error)) => Err(fault::of_migration(error)),
        Err(_) => Err(Error::Unavailable("the migration took too long".to_owned())),
    }
}

async fn fill_keys(connection: &mut SqliteConnection, settings: &Settings) -> Result<()> {
    let filling = async {
        search::fill_keys(connection).await?;
        search::move_emails(connection).await
    };
    match timeout(ms(settings.migrate_timeout_ms), filling).await {
        Ok(filled) => filled,
        Err(_) => Err(Error::Unavailable("filling the keys took too long: call it again".to_owned())),
    }
}

async fn schema(connection: &mut SqliteConnection) -> Result<Schema> {
    let failed = |error: sqlx::Error| fault::of(&error);
    let known = sqlx::query("SELECT 1 FROM sqlite_master WHERE name = '_sqlx_migrations'");
    if known.fetch_optional(&mut *connection).await.map_err(failed)?.is_none() {
        return compare_schema(&MIGRATOR, &[]);
    }
    let applied = sqlx::query("SELECT version, checksum, success FROM _sqlx_migrations");
    let rows = applied.fetch_all(connection).await.map_err(failed)?;
    let applied = rows.iter().map(decode::<AppliedMigration>).collect::<Result<Vec<_>>>()?;
    compare_schema(&MIGRATOR, &applied)
}

/// Decodes a row into a struct.
fn decode<T: for<'r> FromRow<'r, SqliteRow>>(row: &SqliteRow) -> Result<T> {
    T::from_row(row).map_err(|error| fault::of_decoding(&error))
}

/// Decodes one column of a row.
fn column<'r, T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>>(row: &'r SqliteRow, at: usize) -> Result<T> {
    row.try_get(at).map_err(|error| fault::of_decoding(&error))
}

/// Runs one statement of a transaction. Returns the number of rows changed.
async fn change(connection: &mut SqliteConnection, query: SqliteQuery<'_>) -> Result<u64> {
    let done = query.execute(connection).await.map_err(|error| fault::of(&error))?;
    Ok(done.rows_affected())
}

/// Runs one statement of a transaction that returns rows.
async fn rows(connection: &mut SqliteConnection, query: SqliteQuery<'_>) -> Result<Vec<SqliteRow>> {
    query.fetch_all(connection).await.map_err(|error| fault::of(&error))
}
