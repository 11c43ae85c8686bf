//! Classifies SQLite errors. SQLite's messages name tables and columns, never values.

use sqlx::migrate::MigrateError;

use crate::store::Error;

// Primary result codes (sqlite.org/rescode.html). An extended code has its primary code in the low byte.
const ERROR: i32 = 1;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const NOTADB: i32 = 26;

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    Some(code.parse::<i32>().ok()? & 0xff)
}

/// Returns whether another connection had locked the file.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(BUSY | LOCKED))
}

fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => format!("SQLite: {error}"),
        sqlx::Error::PoolTimedOut => "no connection became free in time".to_owned(),
        sqlx::Error::PoolClosed => "the store is closed".to_owned(),
        _ => "SQLite: the connection failed".to_owned(),
    }
}

/// Converts an error outside of a commit: the transaction is rolled back.
pub(super) fn of(error: &sqlx::Error) -> Error {
    match primary_code(error) {
        Some(NOTADB) => Error::Broken("the file is not a database".to_owned()),
        Some(CORRUPT) => Error::Broken(format!("the file is damaged: {}", describe(error))),
        Some(ERROR | CONSTRAINT | MISMATCH) => Error::Broken(describe(error)),
        _ => Error::Unavailable(describe(error)),
    }
}

/// Converts an error of a commit. SQLite guarantees that nothing was written only if another process locked
/// the file or the disk is full. A failed write or sync may have left the commit in the log, where the next
/// start finds it.
pub(super) fn of_commit(error: &sqlx::Error) -> Error {
    match primary_code(error) {
        Some(BUSY | LOCKED | FULL) => Error::Unavailable(describe(error)),
        _ => Error::Unknown(describe(error)),
    }
}

/// Converts an error of a statement that is a transaction by itself; it may come from the statement or from
/// its commit.
pub(super) fn of_lone_statement(error: &sqlx::Error) -> Error {
    match primary_code(error) {
        Some(ERROR | CONSTRAINT | MISMATCH) => of(error),
        _ => of_commit(error),
    }
}

/// The error for a row that cannot be decoded: a bug, or a schema other than ours.
pub(super) fn of_decoding(error: &sqlx::Error) -> Error {
    match error {
        sqlx::Error::ColumnDecode { index, .. } => Error::Broken(format!("column {index} cannot be read")),
        _ => Error::Broken("a row cannot be read".to_owned()),
    }
}

/// The error for a failed migration. Each migration is a transaction, so a failed one leaves nothing behind.
pub(super) fn of_migration(error: MigrateError) -> Error {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => of(&error),
        other => Error::Broken(other.to_string()),
    }
}
