//! Why authentication is unavailable. The operator sees the details in the log and in readiness; the caller
//! is told less.
//!
//! Invariant: a fault of the database or of a node's secrets is 503 to the caller and never 500. An operator
//! can fix it, and the same request then succeeds.

use super::vault::Locked;
use crate::error::{Error, ErrorCode};
use crate::store;

/// A failure of authentication. The text before the first colon is fixed, because readiness shows only that
/// part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The database did not answer.
    #[error("the {what} are not known, {reason}", reason = error.reason())]
    Database {
        /// What was read.
        what: &'static str,
        /// The error of the database.
        error: store::Error,
    },
    /// A secret from the database cannot be decrypted.
    #[error("{reason}: {what} cannot be used")]
    Locked {
        /// The description of the secret.
        what: String,
        /// Why it cannot be decrypted.
        reason: Locked,
    },
    /// The operating system provides no random bytes.
    #[error("the system gives no random bytes")]
    NoRandomness,
}

impl Fault {
    /// Returns the fault of a failed read of `what`, and logs it, once per read.
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
