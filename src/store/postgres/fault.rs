//! Why a call to PostgreSQL failed, and what that means: did it not happen, or is that unknown?
//!
//! Invariant: no text of the server's that may quote a value of a row goes into an error.

use sqlx::migrate::MigrateError;

use crate::store::Error;

/// What the call was to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// Nothing that lasts: any failure is harmless.
    Read,
    /// Something that lasts once it is done.
    Write,
}

/// Why there is no result.
pub(super) enum Failure {
    /// No connection: nothing was sent.
    NotSent(sqlx::Error),
    /// The server said so, or the connection ended.
    Failed(sqlx::Error),
    /// No answer in time.
    Late,
}

/// What a class of SQLSTATE (PostgreSQL manual, appendix A) says of the statement.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It was undone; trying again may help.
    Aborted,
    /// It was undone, and would be again.
    Refused,
    /// The session ended around it.
    SessionEnded,
}

fn meaning(state: &str) -> Meaning {
    match state {
        "57P01" | "57P02" => Meaning::SessionEnded,
        _ => match state.get(..2).unwrap_or_default() {
            "08" => Meaning::SessionEnded,
            // Bad data, a broken constraint, bad credentials or rights, a missing database or table.
            "22" | "23" | "28" | "3D" | "3F" | "42" => Meaning::Refused,
            _ => Meaning::Aborted,
        },
    }
}

impl Failure {
    /// The SQLSTATE that the server gave.
    pub(super) fn sql_state(&self) -> Option<String> {
        match self {
            Failure::NotSent(sqlx::Error::Database(e)) | Failure::Failed(sqlx::Error::Database(e)) => {
                e.code().map(|code| code.into_owned())
            }
            _ => None,
        }
    }

    /// Whether trying again is without hope.
    pub(super) fn is_refusal(&self) -> bool {
        match self.sql_state() {
            Some(state) => meaning(&state) == Meaning::Refused,
            None => matches!(
                self,
                Failure::NotSent(sqlx::Error::Configuration(_)) | Failure::Failed(sqlx::Error::Encode(_))
            ),
        }
    }

    /// Whether the server has undone the statement, and may do it another time: two transactions in each
    /// other's way.
    pub(super) fn is_collision(&self) -> bool {
        matches!(self.sql_state().as_deref(), Some("40P01" | "40001" | "55P03"))
    }

    /// Whether a row stood in the way that must not be there.
    pub(super) fn is_duplicate(&self) -> bool {
        self.sql_state().as_deref() == Some("23505")
    }

    /// Whether the session can go on after it: the server refused the statement and waits for the next.
    pub(super) fn leaves_session_clean(&self) -> bool {
        // 0A000 is said of a cached plan that a migration made invalid: a new session plans anew.
        self.sql_state().is_some_and(|state| {
            meaning(&state) != Meaning::SessionEnded && !state.starts_with("0A") && !state.starts_with("25P")
        })
    }

    /// The error for the caller.
    pub(super) fn into_error(self, intent: Intent) -> Error {
        let text = self.describe();
        let unknown = match &self {
            Failure::NotSent(_) | Failure::Failed(sqlx::Error::Encode(_)) => false,
            Failure::Late => true,
            Failure::Failed(_) => self.sql_state().is_none_or(|s| meaning(&s) == Meaning::SessionEnded),
        };
        if unknown && intent == Intent::Write {
            Error::Unknown(text)
        } else if self.is_refusal() {
            Error::Broken(text)
        } else {
            Error::Unavailable(text)
        }
    }

    fn describe(&self) -> String {
        match self {
            Failure::Late => "no answer in time".to_owned(),
            Failure::NotSent(error) => format!("no connection: {}", describe(error)),
            Failure::Failed(error) => describe(error),
        }
    }
}

fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => {
            let state = error.code().unwrap_or_default();
            // The messages of these classes speak of the server, of names in the schema, of users and
            // databases; those of others may quote a value.
            let harmless = matches!(
                state.get(..2).unwrap_or_default(),
                "08" | "25" | "28" | "3D" | "40" | "42" | "53" | "55" | "57" | "58"
            );
            match error.constraint() {
                _ if harmless => format!("SQLSTATE {state}: {}", error.message()),
                Some(constraint) => format!("SQLSTATE {state} at {constraint}"),
                None => format!("SQLSTATE {state}"),
            }
        }
        sqlx::Error::Io(error) => format!("the connection failed: {error}"),
        sqlx::Error::Tls(_) => "TLS failed".to_owned(),
        sqlx::Error::PoolTimedOut => "none became free, or could be made, in time".to_owned(),
        sqlx::Error::PoolClosed => "the store is closed".to_owned(),
        sqlx::Error::Configuration(_) => "the connection's settings are not valid".to_owned(),
        sqlx::Error::Encode(_) => "a parameter cannot be sent".to_owned(),
        _ => "the connection is out of step".to_owned(),
    }
}

/// A row that cannot be read: a bug, or another schema than ours.
pub(super) fn of_decoding(error: &sqlx::Error) -> Error {
    match error {
        sqlx::Error::ColumnDecode { index, .. } => Error::Broken(format!("column {index} cannot be read")),
        _ => Error::Broken("a row cannot be read".to_owned()),
    }
}

/// A migration that did not go through. It leaves nothing half done: each is a transaction.
pub(super) fn of_migration(error: MigrateError) -> Error {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            Failure::Failed(error).into_error(Intent::Read)
        }
        other => Error::Broken(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_sent_did_not_happen() {
        let error = Failure::NotSent(sqlx::Error::PoolTimedOut).into_error(Intent::Write);
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
    }

    #[test]
    fn a_write_without_an_answer_is_unknown_and_a_read_is_not() {
        let cut = || Failure::Failed(sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()));
        assert!(matches!(cut().into_error(Intent::Write), Error::Unknown(_)));
        assert!(matches!(Failure::Late.into_error(Intent::Write), Error::Unknown(_)));
        assert!(matches!(cut().into_error(Intent::Read), Error::Unavailable(_)));
        assert!(!cut().leaves_session_clean() && !Failure::Late.leaves_session_clean());
    }

    #[test]
    fn states_mean_what_the_manual_says() {
        for state in ["57P01", "57P02", "08006"] {
            assert!(meaning(state) == Meaning::SessionEnded, "{state}");
        }
        for state in ["40P01", "40001", "55P03", "57014", "53100", "53300", "25006", ""] {
            assert!(meaning(state) == Meaning::Aborted, "{state}");
        }
        for state in ["22P02", "23505", "42P01", "28P01", "3D000"] {
            assert!(meaning(state) == Meaning::Refused, "{state}");
        }
    }
}
