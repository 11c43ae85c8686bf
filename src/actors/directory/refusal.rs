//! What a caller is told whom the rules refuse.

use crate::actors::entity::Refused;
use crate::error::{Error, ErrorCode};

/// The error of a refusal. Nothing was done.
pub(super) fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::NotFound => Error::new(ErrorCode::NotFound, "There is no record with this id"),
        Refused::IdTaken => Error::new(ErrorCode::AlreadyExists, "A record with this id exists or existed"),
        Refused::EmailTaken => {
            Error::new(ErrorCode::AlreadyExists, "A patient with this email address already exists")
        }
        Refused::Restricted => Error::new(ErrorCode::Forbidden, "The record is restricted"),
        Refused::OtherVersion => Error::new(
            ErrorCode::PreconditionFailed,
            "The record has another version than those named; nothing was changed",
        ),
        Refused::KeyReused => {
            Error::new(ErrorCode::KeyReused, "This Idempotency-Key was used for another request")
        }
        Refused::KeyExpired => {
            Error::new(ErrorCode::KeyExpired, "This Idempotency-Key was used too long ago: take a new one")
        }
    }
}
