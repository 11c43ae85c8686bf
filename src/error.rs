//! Every way a request can fail, and the one table of how HTTP and gRPC say it. Only the edges call
//! `http_status` and `grpc_code`.

use std::borrow::Cow;
use std::time::Duration;

use crate::domain::validate::FieldErrors;

/// What went wrong. The name (`as_str`) is part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Input that breaks a rule: the caller's to mend.
    Invalid,
    /// No token, or one that does not hold.
    Unauthenticated,
    /// A caller who may not.
    Forbidden,
    /// The thing asked for is not there.
    NotFound,
    /// The route has no such method.
    MethodNotAllowed,
    /// The id or the e-mail address is taken.
    AlreadyExists,
    /// The thing has another version than the caller expects.
    PreconditionFailed,
    /// The caller's key stands for another request of theirs.
    KeyReused,
    /// The caller's key was used too long ago, and too often since.
    KeyExpired,
    /// The body is larger than the limit.
    PayloadTooLarge,
    /// The body is not of the type the route takes.
    UnsupportedMediaType,
    /// The body is sent in a way that nobody here reads.
    NotImplemented,
    /// The caller was too slow in sending its request.
    RequestTimeout,
    /// Too many of the same have come from the caller, or for the account. Nothing was done.
    TooManyRequests,
    /// The caller asks more often than it may. Nothing was done; a little later it works.
    RateLimited,
    /// A limit of ours is reached. Nothing was done; later it may work.
    Overloaded,
    /// A part we need is away. Nothing was done; later it may work.
    Unavailable,
    /// The deadline passed. Nothing was done.
    DeadlineExceeded,
    /// It cannot be known whether the change was made, or will be: look for it (of a registration the caller is
    /// told the id), or, inside the cluster, repeat it under the same command id.
    OutcomeUnknown,
    /// A fault of ours.
    Internal,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [ErrorCode; 20] = [
        ErrorCode::Invalid,
        ErrorCode::Unauthenticated,
        ErrorCode::Forbidden,
        ErrorCode::NotFound,
        ErrorCode::MethodNotAllowed,
        ErrorCode::AlreadyExists,
        ErrorCode::PreconditionFailed,
        ErrorCode::KeyReused,
        ErrorCode::KeyExpired,
        ErrorCode::PayloadTooLarge,
        ErrorCode::UnsupportedMediaType,
        ErrorCode::NotImplemented,
        ErrorCode::RequestTimeout,
        ErrorCode::TooManyRequests,
        ErrorCode::RateLimited,
        ErrorCode::Overloaded,
        ErrorCode::Unavailable,
        ErrorCode::DeadlineExceeded,
        ErrorCode::OutcomeUnknown,
        ErrorCode::Internal,
    ];

    const fn row(self) -> (&'static str, &'static str, u16, i32) {
        match self {
            ErrorCode::Invalid => ("INVALID", "The request is not valid", 400, 3),
            ErrorCode::Unauthenticated => {
                ("UNAUTHENTICATED", "The caller could not be authenticated", 401, 16)
            }
            ErrorCode::Forbidden => ("FORBIDDEN", "The caller may not do this", 403, 7),
            ErrorCode::NotFound => ("NOT_FOUND", "There is no such thing", 404, 5),
            ErrorCode::MethodNotAllowed => ("METHOD_NOT_ALLOWED", "The method is not allowed here", 405, 12),
            ErrorCode::AlreadyExists => ("ALREADY_EXISTS", "It is taken", 409, 6),
            ErrorCode::PreconditionFailed => {
                ("PRECONDITION_FAILED", "It is not as the request expects; nothing was done", 412, 9)
            }
            ErrorCode::KeyReused => {
                ("IDEMPOTENCY_KEY_REUSED", "The key stands for another request; nothing was done", 422, 3)
            }
            ErrorCode::KeyExpired => {
                ("IDEMPOTENCY_KEY_EXPIRED", "The key cannot be used any more; nothing was done", 422, 9)
            }
            ErrorCode::PayloadTooLarge => ("PAYLOAD_TOO_LARGE", "The body is too large", 413, 8),
            ErrorCode::UnsupportedMediaType => {
                ("UNSUPPORTED_MEDIA_TYPE", "The body's type is not supported", 415, 3)
            }
            ErrorCode::NotImplemented => {
                ("NOT_IMPLEMENTED", "The body is in a transfer coding that is not supported", 501, 12)
            }
            ErrorCode::RequestTimeout => ("REQUEST_TIMEOUT", "The request was sent too slowly", 408, 4),
            ErrorCode::TooManyRequests => ("TOO_MANY_REQUESTS", "Too many tries; nothing was done", 429, 8),
            ErrorCode::RateLimited => {
                ("RATE_LIMITED", "Too many requests of this caller; nothing was done", 429, 8)
            }
            ErrorCode::Overloaded => ("OVERLOADED", "Too much to do; nothing was done", 503, 8),
            ErrorCode::Unavailable => ("UNAVAILABLE", "A needed part is away; nothing was done", 503, 14),
            ErrorCode::DeadlineExceeded => ("DEADLINE_EXCEEDED", "The time was up; nothing was done", 504, 4),
            ErrorCode::OutcomeUnknown => {
                ("OUTCOME_UNKNOWN", "Whether the change was made is not known", 504, 4)
            }
            ErrorCode::Internal => ("INTERNAL", "Something is wrong on our side", 500, 13),
        }
    }

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// One line for people: the `title` of a problem.
    pub const fn title(self) -> &'static str {
        self.row().1
    }

    /// The HTTP status (RFC 9110).
    pub const fn http_status(self) -> u16 {
        self.row().2
    }

    /// The gRPC status code, as its number.
    pub const fn grpc_code(self) -> i32 {
        self.row().3
    }

    /// Whether the same request may be sent again soon with a hope of success.
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            ErrorCode::RateLimited
            | ErrorCode::Overloaded
            | ErrorCode::Unavailable
            | ErrorCode::TooManyRequests => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// A failed request. `detail` goes to the caller: it names the thing, never a patient or a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", code.as_str())]
pub struct Error {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What exactly, for the caller.
    pub detail: Cow<'static, str>,
    /// For `Invalid`: the fields, each with its message.
    pub fields: FieldErrors,
    /// When it may be tried again, if that is known better than for the code.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// A failure of this kind.
    pub fn new(code: ErrorCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Error { code, detail: detail.into(), fields: FieldErrors::new(), retry_after: None }
    }

    /// Fields that do not hold.
    pub fn invalid_fields(fields: FieldErrors) -> Self {
        Error { fields, ..Error::new(ErrorCode::Invalid, "Some fields are not valid") }
    }

    /// Too many of the same; it may be tried again after `wait`.
    pub fn too_many_requests(detail: &'static str, wait: Duration) -> Self {
        Error { retry_after: Some(wait), ..Error::new(ErrorCode::TooManyRequests, detail) }
    }

    /// When it may be tried again with a hope of success.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after.or(self.code.retry_after())
    }
}

/// The result of a request.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_statuses_are_errors() {
        let mut names: Vec<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert!(
                (400..600).contains(&code.http_status()) && (1..=16).contains(&code.grpc_code()),
                "{code:?}"
            );
        }
    }

    #[test]
    fn what_is_not_the_callers_fault_is_not_told_as_it() {
        for code in [
            ErrorCode::Overloaded,
            ErrorCode::Unavailable,
            ErrorCode::DeadlineExceeded,
            ErrorCode::OutcomeUnknown,
            ErrorCode::Internal,
        ] {
            assert!(code.http_status() >= 500, "{code:?}");
        }
    }
}
