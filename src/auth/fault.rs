//! Why callers cannot be told apart for now: what an operator reads in the log and in readiness, and the less that a
//! caller is told.
//!
//! Invariant: a fault of the database, or of the secrets that a node was given, is 503 to a caller and never 500:
//! somebody else can mend it, and the same request will do then.

use super::vault::Locked;
use crate::error::{Error, ErrorCode};
use crate::store;

/// What a node cannot do. The words before the first colon are fixed: readiness tells no more than those.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The database does not say.
    #[error("the {what} are not known, {reason}", reason = error.reason())]
    Database {
        /// What it was asked for.
        what: &'static str,
        /// Why not.
        error: store::Error,
    },
    /// A secret in the database does not open.
    #[error("{reason}: {what} cannot be used")]
    Locked {
        /// The secret.
        what: String,
        /// Why not.
        reason: Locked,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    NoRandomness,
}

impl Fault {
    /// The database was asked for `what`. Told in the log here, once for each question.
    pub(super) fn of_database(what: &'static str, error: &store::Error) -> Self {
        tracing::warn!(%error, what, "the database cannot be asked");
        Fault::Database { what, error: error.clone() }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Database { .. } => Error::new(ErrorCode::Unavailable, "Callers cannot be looked up"),
            Fault::Locked { .. } => Error::new(ErrorCode::Unavailable, "Tokens cannot be signed for now"),
            Fault::NoRandomness => Error::new(ErrorCode::Internal, "Tokens cannot be signed"),
        }
    }
}
