//! Opens a database: parses its URL, applies the limits, and checks that the schema fits this program.

mod url;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;

use super::postgres::PostgresStore;
use super::sqlite::SqliteStore;
use super::{Error, Result, Store};

/// The default: a SQLite file in the data directory.
pub const DEFAULT_URL: &str = "sqlite:hygeia.db";

/// The address of the database, and the limits of its calls.
#[derive(Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `sqlite:path/to/file`, where a relative path is inside the data directory, or
    /// `postgres://user:password@host:port/database`.
    pub url: String,
    /// Number of PostgreSQL connections for commits, loads and lists. Leases have four more, followers of the
    /// commits (outbox, projection) six, and the audit of reads four.
    pub connections_max: u32,
    /// Number of SQLite connections that read; one more connection writes.
    pub read_connections_max: u32,
    /// How long `open` tries to reach PostgreSQL.
    pub connect_timeout_ms: u64,
    /// How long a call waits for a free connection or, in SQLite, for its turn to write. Opening a connection to
    /// PostgreSQL may take twice as long; it then serves the next call.
    pub acquire_timeout_ms: u64,
    /// How long a statement may run before PostgreSQL cancels it. The caller waits half a second longer for
    /// the answer.
    pub statement_timeout_ms: u64,
    /// How long a statement waits for a row that another transaction has locked or, in SQLite, for another
    /// process that writes.
    pub lock_timeout_ms: u64,
    /// How long a migration may run, including the wait for another process that migrates.
    pub migrate_timeout_ms: u64,
    /// Whether the server migrates a PostgreSQL database at start. SQLite is always migrated.
    pub migrate_on_start: bool,
    /// Whether a PostgreSQL server with `fsync = off` is accepted. Such a server loses acknowledged changes
    /// when its machine fails. Only for tests.
    pub fsync_off_allowed: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            url: DEFAULT_URL.to_owned(),
            connections_max: 12,
            read_connections_max: 4,
            connect_timeout_ms: 10_000,
            acquire_timeout_ms: 2_000,
            statement_timeout_ms: 5_000,
            lock_timeout_ms: 2_000,
            migrate_timeout_ms: 600_000,
            migrate_on_start: false,
            fsync_off_allowed: false,
        }
    }
}

/// Shows the URL without its password.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("url", &self.url_for_logs())
            .field("connections_max", &self.connections_max)
            .field("statement_timeout_ms", &self.statement_timeout_ms)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Returns the keys with invalid values, each with the allowed values.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        // Two journals and everything else need a connection each.
        let connections = [
            ("connections_max", 3, self.connections_max),
            ("read_connections_max", 1, self.read_connections_max),
        ];
        let broken = connections.into_iter().filter(|(_, least, value)| !(*least..=10_000).contains(value));
        let mut problems: Vec<_> = broken.map(|(key, least, _)| (key, format!("{least} to 10000"))).collect();
        let limits = [
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("acquire_timeout_ms", self.acquire_timeout_ms),
            ("statement_timeout_ms", self.statement_timeout_ms),
            ("lock_timeout_ms", self.lock_timeout_ms),
            ("migrate_timeout_ms", self.migrate_timeout_ms),
        ];
        // PostgreSQL stores time limits as 31-bit milliseconds, and 0 means no limit.
        let broken = limits.into_iter().filter(|(_, value)| !(1..=2_000_000_000).contains(value));
        problems.extend(broken.map(|(key, _)| (key, "1 to 2000000000".to_owned())));
        if let Err(allowed) = self.location() {
            problems.push(("url", allowed));
        }
        problems
    }

    /// Checks these settings.
    ///
    /// # Errors
    /// Describes the first invalid setting: the key and the allowed values, without secrets.
    pub fn check(&self) -> std::result::Result<(), String> {
        match self.problems().into_iter().next() {
            Some((key, allowed)) => Err(format!("{key}: allowed is {allowed}")),
            None => Ok(()),
        }
    }

    /// Returns the URL without password and parameters, for display.
    pub fn url_for_logs(&self) -> String {
        match self.location() {
            Ok(Location::Sqlite(path)) => format!("sqlite:{}", path.display()),
            Ok(Location::Postgres(options)) => {
                let (user, host, port) = (options.get_username(), options.get_host(), options.get_port());
                let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
                format!("postgres://{user}@{host}:{port}/{}", options.get_database().unwrap_or_default())
            }
            Err(_) => "(not a valid URL)".to_owned(),
        }
    }

    /// Resolves a relative path of a SQLite file inside `data_dir`.
    #[must_use]
    pub fn within(mut self, data_dir: &std::path::Path) -> Self {
        if let Ok(Location::Sqlite(path)) = self.location() {
            self.url = format!("sqlite:{}", data_dir.join(path).display());
        }
        self
    }

    /// Parses the URL.
    pub(super) fn location(&self) -> std::result::Result<Location, String> {
        const ALLOWED: &str = "sqlite:path/to/file or postgres://user@host/database";
        let (scheme, rest) = self.url.split_once(':').unwrap_or_default();
        match scheme {
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if path.is_empty() || path.starts_with(':') {
                    return Err(format!("{ALLOWED}; this one has no path to a file"));
                }
                if path.contains('?') {
                    return Err(format!("{ALLOWED}; with sqlite nothing may follow a `?`"));
                }
                Ok(Location::Sqlite(PathBuf::from(path)))
            }
            "postgres" | "postgresql" => url::postgres(&self.url)
                .map(|options| Location::Postgres(Box::new(options)))
                .map_err(|reason| format!("{ALLOWED}; {reason}")),
            _ => Err(ALLOWED.to_owned()),
        }
    }
}

/// The database that a URL names.
pub(super) enum Location {
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
}

/// The purpose of opening the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The server. Only one server at a time may open a SQLite file; a server migrates it if needed.
    Serve,
    /// A tool that does one task, possibly beside a running server.
    Tool,
}

/// Opens the database that `settings` name. PostgreSQL need not be reachable when the server opens it:
/// `Store::prepare` connects later.
///
/// # Errors
/// `Unavailable`: a tool cannot reach the database within `connect_timeout_ms`, or another server uses the
/// SQLite file. `Broken`: the settings are invalid, the file is not a database, or the schema does not fit.
pub async fn open(settings: &Settings, by: Use) -> Result<Arc<dyn Store>> {
    settings.check().map_err(Error::Broken)?;
    match settings.location().map_err(Error::Broken)? {
        Location::Sqlite(path) => Ok(Arc::new(SqliteStore::open(path, settings, by).await?)),
        Location::Postgres(options) => Ok(Arc::new(PostgresStore::open(&options, settings, by).await?)),
    }
}

/// Migrates the schema to the version of this program. Safe beside a running server and beside another
/// process that migrates.
///
/// # Errors
/// As `open`.
pub async fn migrate(settings: &Settings) -> Result<()> {
    settings.check().map_err(Error::Broken)?;
    match settings.location().map_err(Error::Broken)? {
        Location::Sqlite(path) => super::sqlite::migrate(path, settings).await,
        Location::Postgres(options) => super::postgres::migrate(&options, settings).await,
    }
}

impl Error {
    /// Returns the same error with `place` in front of its text.
    pub(super) fn at(self, place: &str) -> Error {
        match self {
            Error::Unavailable(text) => Error::Unavailable(format!("{place}: {text}")),
            Error::Unknown(text) => Error::Unknown(format!("{place}: {text}")),
            Error::Broken(text) => Error::Broken(format!("{place}: {text}")),
        }
    }
}

/// Converts a setting in milliseconds.
pub(super) fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// A migration as recorded in the database.
#[derive(sqlx::FromRow)]
pub(super) struct AppliedMigration {
    version: i64,
    checksum: Vec<u8>,
    success: bool,
}

/// The state of a schema, compared with this program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Schema {
    /// All migrations of this program are applied. A newer program may have applied more; its schema still
    /// serves this one.
    Fits,
    /// The number of missing migrations.
    Behind(usize),
}

/// Compares the `applied` migrations with those of this program.
///
/// # Errors
/// `Broken`: a migration failed half way, or differs from that of this program.
pub(super) fn compare_schema(migrator: &Migrator, applied: &[AppliedMigration]) -> Result<Schema> {
    let mut missing = 0;
    for migration in migrator.iter() {
        match applied.iter().find(|a| a.version == migration.version) {
            None => missing += 1,
            Some(found) if !found.success => {
                let message = format!("migration {} failed half way", migration.version);
                return Err(Error::Broken(message));
            }
            Some(found) if found.checksum != *migration.checksum => {
                let message = format!("migration {} is not the one of this program", migration.version);
                return Err(Error::Broken(message));
            }
            Some(_) => {}
        }
    }
    Ok(if missing == 0 { Schema::Fits } else { Schema::Behind(missing) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_url(url: &str) -> Settings {
        Settings { url: url.to_owned(), ..Settings::default() }
    }

    #[test]
    fn an_unknown_scheme_says_what_is_allowed() {
        for url in [
            "mysql://root:hunter2@host/db",
            "hygeia.db",
            "",
            "sqlite:",
            "sqlite::memory:",
            "sqlite:a.db?mode=ro",
        ] {
            let said = with_url(url).check().expect_err(url);
            assert!(said.contains("sqlite:path/to/file") && said.contains("postgres://"), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
        with_url("sqlite:a.db").check().expect("a path");
        with_url("sqlite:///var/lib/a.db").check().expect("an absolute path");
    }

    #[test]
    fn a_password_is_never_shown() {
        for url in ["postgres://ada:hunter2@db.example:5433/clinic", "postgres://ada:hunter2@[bad/clinic"] {
            let settings = with_url(url);
            let shown = format!("{settings:?} {} {:?}", settings.url_for_logs(), settings.check());
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let shown = with_url("postgres://ada:hunter2@db.example:5433/clinic").url_for_logs();
        assert_eq!(shown, "postgres://ada@db.example:5433/clinic");
        assert_eq!(
            with_url("postgres://ada:x@[::1]/clinic").url_for_logs(),
            "postgres://ada@[::1]:5432/clinic"
        );
    }

    #[test]
    fn limits_have_bounds() {
        let said = Settings { lock_timeout_ms: 0, ..Settings::default() }.check().expect_err("zero");
        assert!(said.contains("lock_timeout_ms") && said.contains("allowed"), "{said}");
        let much = Settings { statement_timeout_ms: u64::MAX, ..Settings::default() };
        assert!(much.check().is_err());
    }
}
