//! Converts errors to gRPC statuses: the code from the table in `error.rs`, its name and the trace id in the
//! metadata, and machine-readable details in `grpc-status-details-bin`, a `google.rpc.Status` with the
//! standard messages.
//!
//! | detail | when | content |
//! |---|---|---|
//! | `ErrorInfo` | always | `reason`: the name of the `ErrorCode`, as in HTTP problems; `domain`: `hygeia` |
//! | `BadRequest` | some fields are invalid | each field with its message |
//! | `RetryInfo` | the call can be repeated | the time to wait |

use std::collections::HashMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{Error, ErrorCode};

/// Metadata key of the name of the `ErrorCode`, which is more precise than gRPC's own codes.
pub(super) const ERROR_CODE: &str = "error-code";
/// Metadata key of every response: the trace id of the call, 32 hexadecimal digits.
pub(super) const TRACE_ID: &str = "trace-id";
/// The `ErrorInfo.domain` of the reasons.
const DOMAIN: &str = "hygeia";
/// Metadata key of a failure that can be repeated: the milliseconds to wait (gRFC A6, client retries).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Returns `error` as a status, whose message names the invalid fields.
pub(super) fn of_error(error: &Error) -> Status {
    with_code(error, Code::from_i32(error.code.grpc_code()))
}

fn with_code(error: &Error, code: Code) -> Status {
    let mut message = error.detail.to_string();
    for (at, (field, problem)) in error.fields.iter().enumerate() {
        message.push_str(if at == 0 { ": " } else { "; " });
        message.push_str(field);
        message.push_str(": ");
        message.push_str(problem);
    }
    let mut headers = HeaderMap::new();
    headers.insert(ERROR_CODE, HeaderValue::from_static(error.code.as_str()));
    if let Some(wait) = error.retry_after() {
        headers.insert(PUSHBACK, HeaderValue::from(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)));
    }
    Status::with_error_details_and_metadata(code, message, details(error), MetadataMap::from_headers(headers))
}

fn details(error: &Error) -> ErrorDetails {
    let mut details = ErrorDetails::with_error_info(error.code.as_str(), DOMAIN, HashMap::new());
    for (field, problem) in &error.fields {
        details.add_bad_request_violation(*field, *problem);
    }
    if let Some(wait) = error.retry_after() {
        details.set_retry_info(Some(wait));
    }
    details
}

/// Returns the error that corresponds to a status created by tonic.
pub(super) fn of_library(status: &Status) -> Error {
    let code = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => ErrorCode::PayloadTooLarge,
        // tonic uses these codes for messages that are missing or cannot be decoded. Internal errors of this
        // server never have a status created by tonic.
        Code::Internal | Code::Unknown | Code::InvalidArgument => ErrorCode::Invalid,
        Code::NotFound => ErrorCode::NotFound,
        Code::Unimplemented if status.metadata().contains_key("grpc-accept-encoding") => {
            ErrorCode::UnsupportedMediaType
        }
        Code::Unimplemented => ErrorCode::MethodNotAllowed,
        Code::Unavailable => ErrorCode::Unavailable,
        Code::Cancelled | Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
        _ => ErrorCode::Internal,
    };
    Error::new(code, status.message().to_owned())
}

/// Returns a response with `error` for a status created by the library. For codings the protocol prescribes
/// the code ("Compression"): UNIMPLEMENTED with the supported codings for an unknown coding, INTERNAL for a
/// missing one.
pub(super) fn retold(library: &HeaderMap, error: &Error) -> http::Response<Body> {
    const CODINGS: &str = "grpc-accept-encoding";
    let codings = library.get(CODINGS);
    let code = match Status::from_header_map(library).map(|status| status.code()) {
        Some(Code::Unimplemented) if codings.is_some() => Code::Unimplemented,
        // Other statuses with this code are about messages that cannot be decoded.
        Some(Code::Internal) if error.detail.starts_with("protocol error") => Code::Internal,
        _ => Code::from_i32(error.code.grpc_code()),
    };
    let mut response = with_code(error, code).into_http();
    response.headers_mut().extend(codings.map(|codings| (HeaderName::from_static(CODINGS), codings.clone())));
    response
}

/// Returns the name of the error code in a response: `None` if it is no failure, or a stream that has started
/// successfully.
///
/// A status created by the library has no such name and is returned as `Err`.
pub(super) fn failure(headers: &HeaderMap) -> Option<Result<&'static str, Error>> {
    let known = headers.get(ERROR_CODE).and_then(|name| {
        ErrorCode::ALL.into_iter().map(ErrorCode::as_str).find(|known| known.as_bytes() == name.as_bytes())
    });
    match (known, Status::from_header_map(headers)) {
        (_, None) => None,
        (_, Some(status)) if status.code() == Code::Ok => None,
        (Some(name), Some(_)) => Some(Ok(name)),
        (None, Some(status)) => Some(Err(of_library(&status))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::validate::FieldErrors;

    #[test]
    fn every_error_has_its_code_and_name() {
        for code in ErrorCode::ALL {
            let status = of_error(&Error::new(code, "Something"));
            assert_eq!(status.code() as i32, code.grpc_code());
            assert_eq!(status.metadata().get(ERROR_CODE).unwrap(), code.as_str());
            assert_eq!(status.metadata().get(PUSHBACK).is_some(), code.retry_after().is_some(), "{code:?}");
            let response = status.into_http::<()>();
            assert_eq!(failure(response.headers()), Some(Ok(code.as_str())));
        }
    }

    #[test]
    fn programs_read_the_same_in_the_details() {
        for code in ErrorCode::ALL {
            let details = of_error(&Error::new(code, "Something")).get_error_details();
            let info = details.error_info().expect("always");
            assert_eq!((&*info.reason, &*info.domain), (code.as_str(), DOMAIN));
            assert_eq!(
                details.retry_info().and_then(|retry| retry.retry_delay),
                code.retry_after(),
                "{code:?}"
            );
            assert!(details.bad_request().is_none());
        }
        // An error's own wait replaces that of its code, in the details and in the metadata.
        let wait = Duration::from_millis(2_700);
        let status = of_error(&Error::too_many_requests("Too many", wait));
        let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
        assert_eq!(retry, Some(wait));
        assert_eq!(status.metadata().get(PUSHBACK).unwrap(), "2700");
        let fields = FieldErrors::from([("email", "Email should be valid"), ("name", "Name is required")]);
        let details = of_error(&Error::invalid_fields(fields)).get_error_details();
        let told: Vec<_> = details.bad_request().expect("fields").field_violations.iter().collect();
        assert_eq!(told.len(), 2);
        assert_eq!((&*told[0].field, &*told[0].description), ("email", "Email should be valid"));
    }

    #[test]
    fn fields_are_named_in_the_message() {
        let fields = FieldErrors::from([("email", "Email should be valid"), ("name", "Name is required")]);
        let status = of_error(&Error::invalid_fields(fields));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "Some fields are not valid: email: Email should be valid; name: Name is required"
        );
    }
}
