//! PostgreSQL. Every change is one statement that commits by itself, but for the projection, which is a
//! transaction.
//!
//! Invariants:
//! - Nothing waits without a bound: the server ends a statement after `statement_timeout_ms` and a wait
//!   for a lock after `lock_timeout_ms`; this side gives up half a second later.
//! - A connection whose last call did not come to a clean end is closed, never used again.
//! - Leases have connections of their own: however many loads and commits wait, a renewal does not wait
//!   behind them. So have commits, and those who follow the commits (outbox, projection): they read in bulk, and what
//!   they do must not stand before a commit.

mod accounts;
mod attempts;
mod audit;
mod commit;
mod connect;
mod fault;
mod keys;
mod lanes;
mod leases;
mod outbox;
mod patients;
mod projection;
mod registration;
mod search;
mod sessions;
#[cfg(test)]
mod tests;
mod topic_log;
mod users;

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, FromRow, PgPool, Postgres, Row};
use tokio::time::{Instant, timeout};

use self::connect::Connector;
use self::fault::{Failure, Intent};
use self::lanes::Lanes;
use super::open::{AppliedMigration, Schema, Settings, Use, compare_schema, ms};
use super::trimming::Trimming;
use super::{AUDIT_BATCHES_MAX, Error, Result, Store};
use crate::domain::time::Timestamp;

static MIGRATOR: Migrator = sqlx::migrate!("migrations/postgres");

/// How much longer than the server this side waits for an answer.
const ANSWER_GRACE: Duration = Duration::from_millis(500);
/// A connection that has been idle this long is tried before it is used, so that a restart of the
/// server between two calls does not make the outcome of the second unknown.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// Connections for leases alone: one for each kind may wait for a commit in flight while the others renew.
const LEASE_CONNECTIONS: u32 = 4;
/// Connections for those who follow the commits: bridge, relay and analytics, each with a read and a write
/// under way.
const FOLLOWER_CONNECTIONS: u32 = 6;
/// Connections for the audit of what is read: nothing is shown before it is audited, so it waits behind nothing, not
/// even behind a batch whose journal has died.
const AUDIT_CONNECTIONS: usize = AUDIT_BATCHES_MAX + 1;
/// The pause between two tries to reach the server at the start.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// The store over its connections.
pub(super) struct PostgresStore {
    pool: PgPool,
    leases: PgPool,
    patient_commits: Lanes,
    account_commits: Lanes,
    audits: Lanes,
    followers: PgPool,
    answer_timeout: Duration,
    trimming: Trimming,
    queues: outbox::Queues,
    options: PgConnectOptions,
    settings: Settings,
}

impl PostgresStore {
    /// For a tool: connects, and checks the schema. For the server the database may be away yet; that
    /// it is there is found out by `prepare`.
    ///
    /// # Errors
    /// As `super::open`.
    pub(super) async fn open(options: &PgConnectOptions, settings: &Settings, by: Use) -> Result<Self> {
        let connector = Connector::new(options, settings);
        let store = PostgresStore {
            pool: connector.pool(settings, shared_connections(settings)),
            leases: connector.pool(settings, LEASE_CONNECTIONS),
            patient_commits: commits(&connector, settings),
            account_commits: commits(&connector, settings),
            audits: Lanes::new(connector.clone(), AUDIT_CONNECTIONS, ms(settings.acquire_timeout_ms)),
            // What they leave out of a read is a long list: only a plan made for its values looks a row up in
            // it by hash, and planning costs nothing beside a bulk.
            followers: connector
                .with([("plan_cache_mode", "force_custom_plan")])
                .pool(settings, FOLLOWER_CONNECTIONS),
            answer_timeout: ms(settings.statement_timeout_ms) + ANSWER_GRACE,
            trimming: Trimming::new(),
            queues: outbox::Queues::default(),
            options: options.clone(),
            settings: settings.clone(),
        };
        if by == Use::Tool {
            store.reach(settings).await?;
            store.check().await?;
        }
        Ok(store)
    }

    /// Whether the server keeps what it commits, and has the schema of this program.
    async fn check(&self) -> Result<()> {
        let rows = self.read(sqlx::query(connect::SERVER_SETTINGS)).await?;
        connect::check_server(&rows, &self.settings)?;
        match self.schema().await? {
            Schema::Fits => Ok(()),
            Schema::Behind(n) => {
                let message = format!("{n} migrations are missing in the database; run `hygeia migrate`");
                Err(Error::Broken(message))
            }
        }
    }

    /// Waits until the server takes a connection.
    async fn reach(&self, settings: &Settings) -> Result<()> {
        let deadline = Instant::now() + ms(settings.connect_timeout_ms);
        loop {
            let Err(error) = checkout(&self.pool).await else { return Ok(()) };
            let hopeless = error.is_refusal();
            let error = error.into_error(Intent::Read);
            if hopeless || Instant::now() + CONNECT_PAUSE > deadline {
                return Err(error.at(&settings.url_for_logs()));
            }
            tokio::time::sleep(CONNECT_PAUSE).await;
        }
    }

    async fn schema(&self) -> Result<Schema> {
        let applied = self
            .rows_or_failure(sqlx::query("SELECT version, checksum, success FROM _sqlx_migrations"))
            .await;
        let rows = match applied {
            Err(failure) if failure.sql_state().as_deref() == Some("42P01") => Vec::new(),
            other => other.map_err(|failure| failure.into_error(Intent::Read))?,
        };
        let applied = rows.iter().map(decode::<AppliedMigration>).collect::<Result<Vec<_>>>()?;
        compare_schema(&MIGRATOR, &applied)
    }

    async fn rows_or_failure(&self, query: PgQuery<'_>) -> std::result::Result<Vec<PgRow>, Failure> {
        self.rows_over(&self.pool, query).await
    }

    async fn rows_over(&self, pool: &PgPool, query: PgQuery<'_>) -> std::result::Result<Vec<PgRow>, Failure> {
        let mut checkout = checkout(pool).await?;
        let result = within(self.answer_timeout, query.fetch_all(&mut *checkout.connection)).await;
        checkout.settle(&result);
        result
    }

    /// Runs a statement that reads.
    async fn read(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        self.rows_or_failure(query).await.map_err(|failure| failure.into_error(Intent::Read))
    }

    /// Runs a statement that changes something, commits by itself, and answers with rows.
    async fn write(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        self.rows_or_failure(query).await.map_err(|failure| failure.into_error(Intent::Write))
    }

    /// As `write`, over the connections for leases.
    async fn write_lease(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        self.rows_over(&self.leases, query).await.map_err(|failure| failure.into_error(Intent::Write))
    }

    /// As `read`, over the connections of those who follow the commits.
    async fn follow(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        self.rows_over(&self.followers, query).await.map_err(|failure| failure.into_error(Intent::Read))
    }

    /// As `write_lease`, over the connections of those who follow the commits.
    async fn follow_up(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        self.rows_over(&self.followers, query).await.map_err(|failure| failure.into_error(Intent::Write))
    }

    /// Runs a statement that changes something; answers with the number of rows changed.
    async fn change(&self, query: PgQuery<'_>) -> Result<u64> {
        self.change_over(&self.pool, query).await
    }

    async fn change_over(&self, pool: &PgPool, query: PgQuery<'_>) -> Result<u64> {
        let failed = |failure: Failure| failure.into_error(Intent::Write);
        let mut checkout = checkout(pool).await.map_err(failed)?;
        let result = within(self.answer_timeout, query.execute(&mut *checkout.connection)).await;
        checkout.settle(&result);
        Ok(result.map_err(failed)?.rows_affected())
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn prepare(&self) -> Result<()> {
        if self.settings.migrate_on_start {
            migrate(&self.options, &self.settings).await?;
        }
        self.check().await.map_err(|error| error.at(&self.settings.url_for_logs()))
    }

    fn writers(&self) -> usize {
        writers(&self.settings)
    }

    async fn ping(&self) -> Result<Timestamp> {
        let query = sqlx::query(
            "SELECT current_setting('transaction_read_only') = 'on',
                    (extract(epoch FROM clock_timestamp()) * 1000000)::int8,
                    (SELECT count(*) FROM _sqlx_migrations WHERE success AND version = $1) > 0,
                    (SELECT count(name) FROM settings WHERE value >= 0) >= 0",
        );
        let newest = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default();
        let rows = match self.rows_or_failure(query.bind(newest)).await {
            // No such table, or one with other columns (class 42): a database that was emptied, or somebody else's.
            Err(failure) if failure.sql_state().is_some_and(|state| state.starts_with("42")) => {
                return Err(Error::Broken(NOT_OURS.to_owned()));
            }
            other => other.map_err(|failure| failure.into_error(Intent::Read))?,
        };
        let row = rows.first().ok_or_else(|| Error::Broken("a row is missing in an answer".to_owned()))?;
        if column::<bool>(row, 0)? {
            return Err(Error::Unavailable("the server is read-only".to_owned()));
        }
        if !(column::<bool>(row, 2)? && column::<bool>(row, 3)?) {
            return Err(Error::Broken(NOT_OURS.to_owned()));
        }
        Ok(Timestamp(column(row, 1)?))
    }

    async fn close(&self) {
        tokio::join!(
            self.patient_commits.close(),
            self.account_commits.close(),
            self.audits.close(),
            self.pool.close(),
            self.leases.close(),
            self.followers.close()
        );
    }
}

/// What a node says of a database that fitted when it began.
const NOT_OURS: &str =
    "the database has not the tables of this program any more: restore it, or run `hygeia migrate`";

/// How many transactions each of the two journals may have in flight: together no more than half of the
/// connections, the rest is for loads and lists.
fn writers(settings: &Settings) -> usize {
    (settings.connections_max as usize / 4).max(1)
}

/// The connections for everything that has none of its own.
fn shared_connections(settings: &Settings) -> u32 {
    let commits = u32::try_from(2 * writers(settings)).unwrap_or(u32::MAX);
    settings.connections_max.saturating_sub(commits).max(1)
}

/// The connections of one journal.
fn commits(connector: &Connector, settings: &Settings) -> Lanes {
    Lanes::new(connector.clone(), writers(settings), ms(settings.acquire_timeout_ms))
}

async fn checkout(pool: &PgPool) -> std::result::Result<Checkout, Failure> {
    match pool.acquire().await {
        Ok(connection) => Ok(Checkout { connection, clean: false }),
        Err(error) => Err(Failure::NotSent(error)),
    }
}

/// Runs the migrations on a connection of their own. Another process that migrates is waited for.
///
/// # Errors
/// `Unavailable`: not reached, or not done in time; it may be called again. `Broken`: a migration
/// does not fit the database.
pub(super) async fn migrate(options: &PgConnectOptions, settings: &Settings) -> Result<()> {
    let limit = ms(settings.migrate_timeout_ms);
    let connector = Connector::for_migration(options, settings);
    let deadline = Instant::now() + ms(settings.connect_timeout_ms);
    let mut connection = loop {
        let failure = match timeout(ms(settings.connect_timeout_ms), connector.connect()).await {
            Ok(Ok(connection)) => break connection,
            Ok(Err(error)) => Failure::NotSent(error),
            Err(_) => Failure::Late,
        };
        if failure.is_refusal() || Instant::now() + CONNECT_PAUSE > deadline {
            return Err(failure.into_error(Intent::Read).at(&settings.url_for_logs()));
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    };
    let rows = within(limit, sqlx::query(connect::SERVER_SETTINGS).fetch_all(&mut connection)).await;
    let rows = rows.map_err(|failure| failure.into_error(Intent::Read))?;
    connect::check_server(&rows, settings).map_err(|error| error.at(&settings.url_for_logs()))?;
    let migrator = Migrator { ignore_missing: true, ..clone_of(&MIGRATOR) };
    let outcome = timeout(limit, migrator.run_direct(None, &mut connection, false)).await;
    let outcome = match outcome {
        Ok(Ok(())) => match timeout(limit, after_migrations(&mut connection)).await {
            Ok(done) => done,
            Err(_) => Err(Error::Unavailable("filling the keys took too long: call it again".to_owned())),
        },
        Ok(Err(error)) => Err(fault::of_migration(error)),
        Err(_) => Err(Error::Unavailable("the migration took too long".to_owned())),
    };
    connection.close().await.ok();
    outcome
}

/// What a migration leaves to be done, and may be broken off and done again.
async fn after_migrations(connection: &mut sqlx::PgConnection) -> Result<()> {
    audit::make_months(connection).await?;
    search::fill_keys(connection).await?;
    search::move_emails(connection).await
}

fn clone_of(migrator: &Migrator) -> Migrator {
    Migrator { migrations: migrator.migrations.clone(), ..Migrator::DEFAULT }
}

/// A connection in use. Unless the call came to a clean end it is closed: what was sent on it may
/// still run, and its answer must not be taken for that of the next call.
struct Checkout {
    connection: PoolConnection<Postgres>,
    clean: bool,
}

impl Checkout {
    fn settle<T>(&mut self, result: &std::result::Result<T, Failure>) {
        self.clean = match result {
            Ok(_) => true,
            Err(failure) => failure.leaves_session_clean(),
        };
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if !self.clean {
            self.connection.close_on_drop();
        }
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = std::result::Result<T, sqlx::Error>>,
) -> std::result::Result<T, Failure> {
    match timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::Failed(error)),
        Err(_) => Err(Failure::Late),
    }
}

/// A transaction's connection: any early end of its use closes it, and with that undoes the transaction.
struct Transaction {
    checkout: Checkout,
    limit: Duration,
}

impl PostgresStore {
    /// Begins a transaction of one who follows the commits with `begin`, which may hold further statements.
    async fn begin(&self, begin: &'static str, limit: Duration) -> Result<Transaction> {
        let failed = |failure: Failure| failure.into_error(Intent::Read);
        let checkout = checkout(&self.followers).await.map_err(failed)?;
        let mut transaction = Transaction { checkout, limit };
        transaction.batch(begin).await.map_err(failed)?;
        Ok(transaction)
    }
}

impl Transaction {
    async fn batch(&mut self, sql: &'static str) -> std::result::Result<(), Failure> {
        within(self.limit, sqlx::raw_sql(sql).execute(&mut *self.checkout.connection)).await.map(drop)
    }

    /// Runs one statement. A failure is a known abort: nothing is committed before `commit`.
    async fn rows(&mut self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        within(self.limit, query.fetch_all(&mut *self.checkout.connection))
            .await
            .map_err(|failure| failure.into_error(Intent::Read))
    }

    async fn commit(mut self) -> Result<()> {
        let result = self.batch("COMMIT").await;
        self.checkout.settle(&result);
        result.map_err(|failure| failure.into_error(Intent::Write))
    }
}

/// A row as a struct.
fn decode<T: for<'r> FromRow<'r, PgRow>>(row: &PgRow) -> Result<T> {
    T::from_row(row).map_err(|error| fault::of_decoding(&error))
}

/// One column of a row.
fn column<'r, T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>>(row: &'r PgRow, at: usize) -> Result<T> {
    row.try_get(at).map_err(|error| fault::of_decoding(&error))
}

/// A limit on rows as PostgreSQL takes it.
fn limit(rows: u32) -> i64 {
    i64::from(rows)
}
