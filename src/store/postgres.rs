//! PostgreSQL. A change is one statement that commits by itself. Exceptions, which run a transaction, are the
//! projection, the first user, and the removal of archived audit rows.
//!
//! Invariants:
//! - Every wait is bounded: the server cancels a statement after `statement_timeout_ms` and a wait for a lock
//!   after `lock_timeout_ms`. The client gives up half a second later.
//! - A connection whose last call did not end cleanly is closed and never used again.
//! - Leases have their own connections, so that a renewal never waits behind loads and commits. Commits have
//!   their own connections too. So do the followers of the commits (outbox, projection), because their bulk
//!   reads must not delay a commit.

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
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, FromRow, Postgres, Row};
use tokio::time::{Instant, timeout};

use self::connect::Connector;
use self::fault::{Failure, Intent};
use self::lanes::{Checkout, Lanes};
use super::open::{AppliedMigration, Schema, Settings, Use, compare_schema, ms};
use super::trimming::Trimming;
use super::{AUDIT_BATCHES_MAX, Error, Result, Store};
use crate::domain::time::Timestamp;

static MIGRATOR: Migrator = sqlx::migrate!("migrations/postgres");

/// How much longer than `statement_timeout_ms` the client waits for an answer.
const ANSWER_GRACE: Duration = Duration::from_millis(500);
/// Connections for leases: one for each kind may wait for a commit in flight while the others renew.
const LEASE_CONNECTIONS: usize = 4;
/// Connections for the followers of the commits: bridge, relay and analytics, each with one read and one
/// write in flight.
const FOLLOWER_CONNECTIONS: usize = 6;
/// Connections for the audit of reads. A reply waits until its audit entry is durable, so these writes must
/// not wait behind anything, not even behind a batch whose journal has died.
const AUDIT_CONNECTIONS: usize = AUDIT_BATCHES_MAX + 1;
/// The pause between two attempts to reach a server that is being started.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// The store, with its connections.
pub(super) struct PostgresStore {
    shared: Lanes,
    leases: Lanes,
    patient_commits: Lanes,
    account_commits: Lanes,
    audits: Lanes,
    followers: Lanes,
    answer_timeout: Duration,
    trimming: Trimming,
    queues: outbox::Queues,
    options: PgConnectOptions,
    settings: Settings,
}

impl PostgresStore {
    /// For a tool: connects and checks the schema. For the server, which may start before the database: opens
    /// no connection; `prepare` checks the database later.
    ///
    /// # Errors
    /// As `super::open`.
    pub(super) async fn open(options: &PgConnectOptions, settings: &Settings, by: Use) -> Result<Self> {
        let connector = Connector::new(options, settings);
        // A read of the followers passes the rows to leave out as a long array. Only a plan made for the actual
        // values looks rows up in that array by hash, and the cost of planning is small beside a bulk read.
        let following = connector.with([("plan_cache_mode", "force_custom_plan")]);
        let lanes = |connector: &Connector, lanes_max: usize| {
            Lanes::new(connector.clone(), lanes_max, ms(settings.acquire_timeout_ms))
        };
        let store = PostgresStore {
            shared: lanes(&connector, shared_connections(settings)),
            leases: lanes(&connector, LEASE_CONNECTIONS),
            patient_commits: lanes(&connector, writers(settings)),
            account_commits: lanes(&connector, writers(settings)),
            audits: lanes(&connector, AUDIT_CONNECTIONS),
            followers: lanes(&following, FOLLOWER_CONNECTIONS),
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

    /// Checks that the server's commits are durable, and that the database has the schema of this program.
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

    /// Waits until the server accepts a connection.
    async fn reach(&self, settings: &Settings) -> Result<()> {
        let deadline = Instant::now() + ms(settings.connect_timeout_ms);
        loop {
            let Err(error) = self.shared.warm().await else { return Ok(()) };
            let hopeless = error.is_refusal();
            let error = error.into_error(Intent::Read);
            if hopeless || Instant::now() + CONNECT_PAUSE > deadline {
                return Err(error.at(&settings.url_for_logs()));
            }
            tokio::time::sleep(CONNECT_PAUSE).await;
        }
    }

    /// Opens a connection for each purpose. The first change of a shard that this node has just taken over must
    /// not wait for one.
    async fn warm(&self) -> std::result::Result<(), Failure> {
        let commits = [&self.patient_commits, &self.account_commits];
        let (patients, accounts) = tokio::join!(commits[0].warm(), commits[1].warm());
        let (leases, audits) = tokio::join!(self.leases.warm(), self.audits.warm());
        patients.and(accounts).and(leases).and(audits)
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
        self.shared.rows(self.answer_timeout, query).await
    }

    /// Runs a statement that reads.
    async fn read(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        self.rows_or_failure(query).await.map_err(|failure| failure.into_error(Intent::Read))
    }

    /// Runs a statement that changes rows, commits by itself, and returns rows.
    async fn write(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        self.rows_or_failure(query).await.map_err(|failure| failure.into_error(Intent::Write))
    }

    /// As `write`, over the connections for leases.
    async fn write_lease(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        self.leases
            .rows(self.answer_timeout, query)
            .await
            .map_err(|failure| failure.into_error(Intent::Write))
    }

    /// As `read`, over the connections of the followers.
    async fn follow(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        self.followers
            .rows(self.answer_timeout, query)
            .await
            .map_err(|failure| failure.into_error(Intent::Read))
    }

    /// As `write`, over the connections of the followers.
    async fn follow_up(&self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        self.followers
            .rows(self.answer_timeout, query)
            .await
            .map_err(|failure| failure.into_error(Intent::Write))
    }

    /// Runs a statement that changes rows. Returns the number of rows changed.
    async fn change(&self, query: PgQuery<'_>) -> Result<u64> {
        self.change_over(&self.shared, query).await
    }

    async fn change_over(&self, lanes: &Lanes, query: PgQuery<'_>) -> Result<u64> {
        let changed = lanes.change(self.answer_timeout, query).await;
        changed.map_err(|failure| failure.into_error(Intent::Write))
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn prepare(&self) -> Result<()> {
        if self.settings.migrate_on_start {
            migrate(&self.options, &self.settings).await?;
        }
        self.check().await.map_err(|error| error.at(&self.settings.url_for_logs()))?;
        self.warm().await.map_err(|failure| failure.into_error(Intent::Read))
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
            // Class 42: the table is missing or has other columns. The database was emptied, or belongs to
            // another program.
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
            self.shared.close(),
            self.leases.close(),
            self.followers.close()
        );
    }
}

/// The error for a database that had the right schema at start and no longer has it.
const NOT_OURS: &str =
    "the database has not the tables of this program any more: restore it, or run `hygeia migrate`";

/// How many transactions each of the two journals may have in flight: at least one. Together they use at most
/// half of the connections where there are four or more; the rest serves loads and lists.
fn writers(settings: &Settings) -> usize {
    (settings.connections_max as usize / 4).max(1)
}

/// The number of connections for all calls without connections of their own.
fn shared_connections(settings: &Settings) -> usize {
    (settings.connections_max as usize).saturating_sub(2 * writers(settings)).max(1)
}

/// Runs the migrations on a connection of their own. Waits for another process that migrates.
///
/// # Errors
/// `Unavailable`: the server was not reached, or the migrations did not end in time; the call may be
/// repeated. `Broken`: a migration does not fit the database.
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

/// Completes the migrations with steps that may be interrupted and repeated.
async fn after_migrations(connection: &mut sqlx::PgConnection) -> Result<()> {
    audit::make_months(connection).await?;
    search::fill_keys(connection).await?;
    search::move_emails(connection).await
}

fn clone_of(migrator: &Migrator) -> Migrator {
    Migrator { migrations: migrator.migrations.clone(), ..Migrator::DEFAULT }
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

/// The connection of a transaction. Dropping it before `commit` closes the connection, which rolls back the
/// transaction.
struct Transaction {
    checkout: Checkout,
    limit: Duration,
}

impl PostgresStore {
    /// Begins a transaction on a connection of the followers, with the SQL `begin`, which may hold further
    /// statements.
    async fn begin(&self, begin: &'static str, limit: Duration) -> Result<Transaction> {
        let failed = |failure: Failure| failure.into_error(Intent::Read);
        let checkout = self.followers.checkout().await.map_err(failed)?;
        let mut transaction = Transaction { checkout, limit };
        transaction.batch(begin).await.map_err(failed)?;
        Ok(transaction)
    }
}

impl Transaction {
    async fn batch(&mut self, sql: &'static str) -> std::result::Result<(), Failure> {
        within(self.limit, sqlx::raw_sql(sql).execute(self.checkout.connection())).await.map(drop)
    }

    /// Runs one statement. Nothing is committed before `commit`, so a failure means that the transaction is
    /// aborted.
    async fn rows(&mut self, query: PgQuery<'_>) -> Result<Vec<PgRow>> {
        within(self.limit, query.fetch_all(self.checkout.connection()))
            .await
            .map_err(|failure| failure.into_error(Intent::Read))
    }

    async fn commit(mut self) -> Result<()> {
        let result = self.batch("COMMIT").await;
        self.checkout.settle(&result);
        result.map_err(|failure| failure.into_error(Intent::Write))
    }
}

/// Decodes a row into a struct.
fn decode<T: for<'r> FromRow<'r, PgRow>>(row: &PgRow) -> Result<T> {
    T::from_row(row).map_err(|error| fault::of_decoding(&error))
}

/// Decodes one column of a row.
fn column<'r, T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>>(row: &'r PgRow, at: usize) -> Result<T> {
    row.try_get(at).map_err(|error| fault::of_decoding(&error))
}

/// Converts a limit on rows to the type that PostgreSQL expects.
fn limit(rows: u32) -> i64 {
    i64::from(rows)
}
