//! Successful responses.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::{Serialize, Serializer};
use time::Date;

use crate::error::ErrorCode;

use super::problem::Failure;

/// Initial buffer size, large enough for a typical record, so that serializing allocates once.
const TYPICAL_BYTES: usize = 384;

/// Returns `value` as a JSON response.
pub(super) fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Result<Response, Failure> {
    let mut bytes = Vec::with_capacity(TYPICAL_BYTES);
    match serde_json::to_writer(&mut bytes, value) {
        Ok(()) => Ok(bytes_of(status, "application/json", bytes)),
        Err(_) => Err(Failure::new(ErrorCode::Internal, "The answer could not be written")),
    }
}

/// Returns a response with `bytes` of the media type `media_type`.
pub(super) fn bytes_of(status: StatusCode, media_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(bytes.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// Returns a response without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Serializes a date as `YYYY-MM-DD` without an intermediate string; for `serde(serialize_with)`.
pub(super) fn day<S: Serializer>(date: &Date, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!(
        "{:04}-{:02}-{:02}",
        date.year(),
        u8::from(date.month()),
        date.day()
    ))
}
