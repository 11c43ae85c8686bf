//! Every way in which a request can fail, and the one table that maps each failure to HTTP and gRPC. Only the
//! edges call `http_status` and `grpc_code`.

use std::borrow::Cow;
use std::time::Duration;

use crate::domain::validate::FieldErrors;

/// The kind of a failure. The name (`as_str`) is part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The input breaks a rule. The caller has to correct it.
    Invalid,
    /// The token is missing or not valid.
    Unauthenticated,
    /// The caller lacks the permission.
    Forbidden,
    /// The requested item does not exist.
    NotFound,
    /// The route does not support the method.
    MethodNotAllowed,
    /// The id or the e-mail address is taken.
    AlreadyExists,
    /// The record has another version than the caller expects.
    PreconditionFailed,
    /// The caller's idempotency key belongs to another request of the same caller.
    KeyReused,
    /// The caller's idempotency key has expired, and all its reuses are spent.
    KeyExpired,
    /// The body is larger than the limit.
    PayloadTooLarge,
    /// The route does not accept the media type of the body.
    UnsupportedMediaType,
    /// The body has a transfer coding that is not supported.
    NotImplemented,
    /// The caller sent its request too slowly.
    RequestTimeout,
    /// Too many attempts from the caller or for the account. Nothing was done.
    TooManyRequests,
    /// The caller exceeds its request rate. Nothing was done; a retry after a short wait succeeds.
    RateLimited,
    /// A limit of the service is reached. Nothing was done; a later retry may succeed.
    Overloaded,
    /// A required part is unavailable. Nothing was done; a later retry may succeed.
    Unavailable,
    /// The deadline passed before anything was done.
    DeadlineExceeded,
    /// Whether the change was made, or will be made, is not known. A client looks for the change (the reply
    /// to a registration names the id). A caller inside the cluster repeats the command under the same
    /// command id.
    OutcomeUnknown,
    /// A fault of the service.
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

    /// Returns the stable name of the code.
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// Returns one line for people: the `title` of an HTTP problem.
    pub const fn title(self) -> &'static str {
        self.row().1
    }

    /// Returns the HTTP status (RFC 9110).
    pub const fn http_status(self) -> u16 {
        self.row().2
    }

    /// Returns the number of the gRPC status code.
    pub const fn grpc_code(self) -> i32 {
        self.row().3
    }

    /// Returns how long to wait before the same request may succeed; `None` if a retry does not help.
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

/// A failed request. `detail` is sent to the caller, so it never contains patient data or a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", code.as_str())]
pub struct Error {
    /// The kind of failure.
    pub code: ErrorCode,
    /// The details for the caller.
    pub detail: Cow<'static, str>,
    /// For `Invalid`: the fields that are not valid, each with a message.
    pub fields: FieldErrors,
    /// When a retry may succeed, if that is known better than from the code.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// Returns an error of this kind.
    pub fn new(code: ErrorCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Error { code, detail: detail.into(), fields: FieldErrors::new(), retry_after: None }
    }

    /// Returns an `Invalid` error for these fields.
    pub fn invalid_fields(fields: FieldErrors) -> Self {
        Error { fields, ..Error::new(ErrorCode::Invalid, "Some fields are not valid") }
    }

    /// Returns a `TooManyRequests` error; a retry is possible after `wait`.
    pub fn too_many_requests(detail: &'static str, wait: Duration) -> Self {
        Error { retry_after: Some(wait), ..Error::new(ErrorCode::TooManyRequests, detail) }
    }

    /// Returns how long to wait before a retry may succeed.
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
