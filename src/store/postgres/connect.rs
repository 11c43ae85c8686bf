//! Creates sessions with the server. Every connection of the store comes from a `Connector`.
//!
//! Invariants:
//! - The server has written a commit to disk before it acknowledges it: `synchronous_commit` of a session is
//!   `on` or `remote_apply`, whatever the server, the database, the role or the URL say.
//! - Every wait is bounded, and no statement is logged.

use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{ConnectOptions, PgConnection};

use super::column;
use crate::store::open::Settings;
use crate::store::{Error, Result};

/// Runs once in each new session. The weaker values (`off`, `local`, `remote_write`) become `on`; the
/// stronger `remote_apply` stays. The value is set even where it is `on` already, because a session that sets
/// none follows a later change of the server's configuration.
const MAKE_DURABLE: &str = "SELECT set_config('synchronous_commit',
    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)";

/// The settings that `check_server` examines.
pub(super) const SERVER_SETTINGS: &str =
    "SELECT current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on'";

/// The options of a session, and its initialization. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Connector {
    options: PgConnectOptions,
}

impl Connector {
    /// Creates the connector of sessions that serve requests.
    pub(super) fn new(options: &PgConnectOptions, settings: &Settings) -> Self {
        Self::limited(options, settings.statement_timeout_ms, settings.lock_timeout_ms)
    }

    /// Creates the connector of the session that migrates.
    pub(super) fn for_migration(options: &PgConnectOptions, settings: &Settings) -> Self {
        Self::limited(options, settings.migrate_timeout_ms, settings.migrate_timeout_ms)
    }

    fn limited(options: &PgConnectOptions, statement_ms: u64, lock_ms: u64) -> Self {
        let limits = [
            ("statement_timeout", statement_ms),
            ("lock_timeout", lock_ms),
            ("idle_in_transaction_session_timeout", statement_ms),
            ("tcp_user_timeout", 15_000),
            ("tcp_keepalives_idle", 10),
            ("tcp_keepalives_interval", 5),
            ("tcp_keepalives_count", 3),
        ];
        let planning = [
            // Planning a commit anew each time would cost more than running it. A cached plan must not depend
            // on the statistics of a table that was small once, so every statement uses an index.
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("jit", "off"),
            // Each statement reads a few rows. Starting a parallel worker takes longer than that.
            ("max_parallel_workers_per_gather", "0"),
        ];
        let options = options.clone().application_name("hygeia").options(limits).options(planning);
        Connector { options: options.disable_statement_logging() }
    }

    /// Returns a connector with additional server settings.
    pub(super) fn with<const N: usize>(&self, settings: [(&str, &str); N]) -> Self {
        Connector { options: self.options.clone().options(settings) }
    }

    /// Opens a session.
    pub(super) async fn connect(&self) -> std::result::Result<PgConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        make_durable(&mut connection).await?;
        Ok(connection)
    }
}

async fn make_durable(connection: &mut PgConnection) -> std::result::Result<(), sqlx::Error> {
    sqlx::raw_sql(MAKE_DURABLE).execute(connection).await.map(drop)
}

/// Checks from the answer to `SERVER_SETTINGS` that the server's commits are durable.
///
/// # Errors
/// `Broken`: the server runs with `fsync = off`, and the settings do not allow that.
pub(super) fn check_server(rows: &[PgRow], settings: &Settings) -> Result<()> {
    let row = rows.first().ok_or_else(|| Error::Broken("a row is missing in an answer".to_owned()))?;
    if !column::<bool>(row, 0)? {
        const LOSES: &str = "the server runs with fsync = off: it may lose what it has acknowledged";
        if !settings.fsync_off_allowed {
            let remedy = "set fsync = on in postgresql.conf, or allow it by store.fsync_off_allowed = true";
            return Err(Error::Broken(format!("{LOSES}; {remedy}")));
        }
        tracing::warn!("{LOSES}; store.fsync_off_allowed permits it");
    }
    if !column::<bool>(row, 1)? {
        tracing::warn!(
            "the server runs with full_page_writes = off: a crash may damage pages, unless its file system writes \
             each page whole"
        );
    }
    Ok(())
}
