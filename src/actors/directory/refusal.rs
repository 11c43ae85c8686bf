//! What a caller is told: that the rules refuse, or that its time is up.

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

/// What a caller is told who may not see a restricted record.
pub(in crate::actors) fn restricted() -> Error {
    Error::new(
        ErrorCode::Forbidden,
        "The record is restricted: a CLINICIAN may see it who says why in the header X-Break-Glass, in 2 to 500 \
         characters with at least two letters or digits. Taking the mark off needs a reason too",
    )
}

/// A try did nothing, and an earlier one was lost that may yet do something.
pub(super) fn still_under_way() -> Error {
    Error::new(
        ErrorCode::OutcomeUnknown,
        "A try of this change was lost between two nodes, and it is not known whether it will still be carried out",
    )
}

/// The time is up. `unknown`: a try of a change may have done something.
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
