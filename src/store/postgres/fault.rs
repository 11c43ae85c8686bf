//! Classifies failures of calls to PostgreSQL: the call had no effect, or its outcome is unknown.
//!
//! Invariant: an error contains no text of the server that may quote a value of a row.

use sqlx::migrate::MigrateError;

use crate::store::Error;

/// What a call does to the database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// It changes nothing durable, so any failure is harmless.
    Read,
    /// It changes something durable.
    Write,
}

/// Why a call has no result.
pub(super) enum Failure {
    /// There was no connection; nothing was sent.
    NotSent(sqlx::Error),
    /// The server reported an error, or the connection ended.
    Failed(sqlx::Error),
    /// No answer came in time.
    Late,
}

/// What a SQLSTATE means for the statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// The statement was rolled back; a retry may succeed.
    Aborted,
    /// The statement was rolled back, and a retry would fail again: a bug of ours, or a server that needs to
    /// be set up.
    Refused,
    /// The session ended during the statement, or the server itself does not know the outcome.
    Unsure,
}

/// Every class of SQLSTATE (PostgreSQL manual, appendix A; ISO/IEC 9075-2, 24.1, for classes of the standard
/// only). A class that is missing here comes from a later server and counts as `Aborted`, because the server
/// reported a failure.
const CLASSES: [(&str, Meaning); 46] = [
    ("00", Meaning::Aborted), // success
    ("01", Meaning::Aborted), // warning
    ("02", Meaning::Aborted), // no data
    ("03", Meaning::Refused), // statement not yet complete
    ("07", Meaning::Refused), // dynamic SQL
    ("08", Meaning::Unsure),  // connection
    ("09", Meaning::Refused), // triggered action
    ("0A", Meaning::Aborted), // feature not supported: also a cached plan that a migration made invalid
    ("0B", Meaning::Refused), // transaction initiation
    ("0F", Meaning::Refused), // locator
    ("0L", Meaning::Refused), // grantor
    ("0P", Meaning::Refused), // role
    ("0Z", Meaning::Refused), // diagnostics
    ("10", Meaning::Refused), // XQuery
    ("20", Meaning::Refused), // case not found
    ("21", Meaning::Refused), // cardinality
    ("22", Meaning::Refused), // data
    ("23", Meaning::Refused), // a constraint
    ("24", Meaning::Refused), // cursor state
    ("25", Meaning::Aborted), // transaction state: a read-only server, a transaction that was idle too long
    ("26", Meaning::Aborted), // statement name: a pooler that has lost a prepared statement
    ("27", Meaning::Refused), // triggered data change
    ("28", Meaning::Refused), // authorization: the role's password was changed, or it may not log in
    ("2B", Meaning::Refused), // dependent privileges
    ("2D", Meaning::Refused), // transaction termination
    ("2F", Meaning::Refused), // SQL routine
    ("34", Meaning::Refused), // cursor name
    ("38", Meaning::Refused), // external routine
    ("39", Meaning::Refused), // external routine invocation
    ("3B", Meaning::Refused), // savepoint
    ("3D", Meaning::Refused), // there is no such database
    ("3F", Meaning::Refused), // there is no such schema
    ("40", Meaning::Aborted), // rollback: a collision, a deadlock
    ("42", Meaning::Refused), // syntax, names, rights
    ("44", Meaning::Refused), // with check option
    ("53", Meaning::Aborted), // resources: disk, memory, connections
    ("54", Meaning::Refused), // a limit of the program
    ("55", Meaning::Aborted), // object state: a lock
    ("57", Meaning::Aborted), // operator intervention: a statement that was cancelled
    ("58", Meaning::Aborted), // the system: input and output
    ("72", Meaning::Aborted), // the snapshot is too old
    ("F0", Meaning::Aborted), // the server's configuration file
    ("HV", Meaning::Refused), // foreign data
    ("HZ", Meaning::Refused), // remote database access
    ("P0", Meaning::Refused), // PL/pgSQL: an exception that was raised
    ("XX", Meaning::Aborted), // internal: also damaged data, which may be repaired
];

/// States that differ in meaning from their class.
const STATES: [(&str, Meaning); 7] = [
    ("25P03", Meaning::Unsure), // ended: idle in a transaction
    ("25P04", Meaning::Unsure), // ended: the transaction took too long
    ("40003", Meaning::Unsure), // statement completion unknown
    ("57P01", Meaning::Unsure), // ended: by the administrator
    ("57P02", Meaning::Unsure), // ended: another process of the server crashed
    ("57P04", Meaning::Unsure), // ended: the database was dropped
    ("57P05", Meaning::Unsure), // ended: the session was idle
];

fn meaning(state: &str) -> Meaning {
    let find =
        |of: &[(&str, Meaning)], name: &str| of.iter().find(|(known, _)| *known == name).map(|row| row.1);
    let class = state.get(..2).unwrap_or_default();
    find(&STATES, state).or_else(|| find(&CLASSES, class)).unwrap_or(Meaning::Aborted)
}

/// Classes after which a session is closed although the server would accept its next statement. A new session
/// may reach another server, and plans anew.
const SESSION_SPOILT: [&str; 5] = ["0A", "25", "26", "58", "XX"];

impl Failure {
    /// Returns the SQLSTATE that the server reported.
    pub(super) fn sql_state(&self) -> Option<String> {
        match self {
            Failure::NotSent(sqlx::Error::Database(e)) | Failure::Failed(sqlx::Error::Database(e)) => {
                e.code().map(|code| code.into_owned())
            }
            _ => None,
        }
    }

    /// Returns whether a retry cannot succeed.
    pub(super) fn is_refusal(&self) -> bool {
        match self.sql_state() {
            Some(state) => meaning(&state) == Meaning::Refused,
            None => matches!(
                self,
                Failure::NotSent(sqlx::Error::Configuration(_)) | Failure::Failed(sqlx::Error::Encode(_))
            ),
        }
    }

    /// Returns whether the server rolled the statement back because two transactions collided. A retry may
    /// succeed.
    pub(super) fn is_collision(&self) -> bool {
        matches!(self.sql_state().as_deref(), Some("40P01" | "40001" | "55P03"))
    }

    /// Returns whether a duplicate key made the statement fail.
    pub(super) fn is_duplicate(&self) -> bool {
        self.sql_state().as_deref() == Some("23505")
    }

    /// Returns whether the session can be used again: the server refused the statement and waits for the next
    /// one.
    pub(super) fn leaves_session_clean(&self) -> bool {
        self.sql_state().is_some_and(|state| {
            let spoilt = SESSION_SPOILT.iter().any(|class| state.starts_with(class));
            meaning(&state) != Meaning::Unsure && !spoilt
        })
    }

    /// Converts the failure to the error for the caller.
    pub(super) fn into_error(self, intent: Intent) -> Error {
        let text = self.describe();
        let unknown = match &self {
            Failure::NotSent(_) | Failure::Failed(sqlx::Error::Encode(_)) => false,
            Failure::Late => true,
            Failure::Failed(_) => self.sql_state().is_none_or(|s| meaning(&s) == Meaning::Unsure),
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
            // Messages of these classes name the server, objects of the schema, users and databases. Messages
            // of other classes may quote a value.
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

    /// An error as the server reports it.
    #[derive(Debug)]
    struct Told(String);

    impl std::fmt::Display for Told {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("as the server says it")
        }
    }

    impl std::error::Error for Told {}

    impl sqlx::error::DatabaseError for Told {
        fn message(&self) -> &str {
            "as the server says it"
        }
        fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
            Some(self.0.as_str().into())
        }
        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }

    fn told(state: &str) -> sqlx::Error {
        sqlx::Error::Database(Box::new(Told(state.to_owned())))
    }

    /// The classes of the manual's appendix A (versions 9.0 to 18) and of the standard. The letters are the
    /// errors of a failure before anything was sent, of a write, and of a read (`U`navailable, `B`roken,
    /// unknown `?`).
    #[test]
    fn every_class_says_whether_it_happened_and_whether_to_try_again() {
        let table = [
            ("UUU", "00 01 02 0A 25 26 40 53 55 57 58 72 F0 XX"),
            ("U?U", "08"),
            (
                "BBB",
                "03 07 09 0B 0F 0L 0P 0Z 10 20 21 22 23 24 27 28 2B 2D 2F 34 38 39 3B 3D 3F 42 44 54 HV HZ P0",
            ),
        ];
        let letter = |error: Error| match error {
            Error::Unavailable(_) => 'U',
            Error::Unknown(_) => '?',
            Error::Broken(_) => 'B',
        };
        let mut classes = Vec::new();
        for (expected, class) in
            table.iter().flat_map(|(e, all)| all.split(' ').map(move |class| (*e, class)))
        {
            classes.push(class);
            let state = format!("{class}000");
            let found: String = [
                letter(Failure::NotSent(told(&state)).into_error(Intent::Write)),
                letter(Failure::Failed(told(&state)).into_error(Intent::Write)),
                letter(Failure::Failed(told(&state)).into_error(Intent::Read)),
            ]
            .into_iter()
            .collect();
            assert_eq!(found, expected, "{state}");
        }
        classes.sort_unstable();
        assert_eq!(classes, CLASSES.map(|(class, _)| class), "every class once, in order");
        assert_eq!(meaning("ZZ000"), Meaning::Aborted, "a class of a later server");
    }

    #[test]
    fn states_mean_what_the_manual_says() {
        for state in ["57P01", "57P02", "57P04", "57P05", "08006", "08007", "40003", "25P03"] {
            assert_eq!(meaning(state), Meaning::Unsure, "{state}");
            let failure = Failure::Failed(told(state));
            assert!(!failure.leaves_session_clean(), "{state}");
            assert!(matches!(failure.into_error(Intent::Write), Error::Unknown(_)), "{state}");
        }
        for state in ["40P01", "40001", "55P03", "57014", "57P03", "53100", "53300", "25006", "XX001", ""] {
            assert_eq!(meaning(state), Meaning::Aborted, "{state}");
        }
        for state in ["22P02", "23505", "42P01", "42501", "28000", "28P01", "3D000"] {
            assert_eq!(meaning(state), Meaning::Refused, "{state}");
        }
        for (state, clean) in
            [("23505", true), ("40001", true), ("25006", false), ("0A000", false), ("26000", false)]
        {
            assert_eq!(Failure::Failed(told(state)).leaves_session_clean(), clean, "{state}");
        }
    }
}
