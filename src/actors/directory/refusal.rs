//! The errors that a caller gets when the rules refuse a request or its deadline has passed.

use crate::actors::entity::Refused;
use crate::error::{Error, ErrorCode};

/// Returns the error for a refusal. Nothing was done.
pub(super) fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::NotFound => Error::new(ErrorCode::NotFound, "There is no record with this id"),
        Refused::IdTaken => Error::new(ErrorCode::AlreadyExists, "A record with this id exists or existed"),
        Refused::EmailTaken => {
            Error::new(ErrorCode::AlreadyExists, "A patient with this email address already exists")
        }
        Refused::Restricted => restricted(),
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

/// Returns the error for a caller that may not see a restricted record.
pub(in crate::actors) fn restricted() -> Error {
    Error::new(
        ErrorCode::Forbidden,
        "The record is restricted: a CLINICIAN may see it who says why in the header X-Break-Glass, in 2 to 500 \
         characters with at least two letters or digits. Taking the mark off needs a reason too",
    )
}

/// Returns the error for an attempt that did nothing while an earlier, lost attempt may still be carried out.
pub(super) fn still_under_way() -> Error {
    Error::new(
        ErrorCode::OutcomeUnknown,
        "A try of this change was lost between two nodes, and it is not known whether it will still be carried out",
    )
}

/// Returns the error for a deadline that has passed. `unknown`: an attempt of a change may have taken effect.
pub(super) fn time_up(unknown: bool) -> Error {
    if unknown {
        Error::new(
            ErrorCode::OutcomeUnknown,
            "The time was up before it was known whether the change was made",
        )
    } else {
        Error::new(
            ErrorCode::DeadlineExceeded,
            "The time was up before the request was done; nothing was changed",
        )
    }
}
