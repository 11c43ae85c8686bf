//! Answers that are no failures.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::{Serialize, Serializer};
use time::Date;

use crate::error::ErrorCode;

use super::problem::Failure;

/// Room for a typical record, so that writing it allocates once.
const TYPICAL_BYTES: usize = 384;

/// `value` as JSON.
pub(super) fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Result<Response, Failure> {
    let mut bytes = Vec::with_capacity(TYPICAL_BYTES);
    match serde_json::to_writer(&mut bytes, value) {
        Ok(()) => Ok(bytes_of(status, "application/json", bytes)),
        Err(_) => Err(Failure::new(ErrorCode::Internal, "The answer could not be written")),
    }
}

/// `bytes` of a media type.
pub(super) fn bytes_of(status: StatusCode, media_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(bytes.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// No body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// For `serde(serialize_with)`: `YYYY-MM-DD`, without a string in between.
pub(super) fn day<S: Serializer>(date: &Date, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!(
        "{:04}-{:02}-{:02}",
        date.year(),
        u8::from(date.month()),
        date.day()
    ))
}
