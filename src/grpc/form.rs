//! Checks whether a request is a gRPC call at all (gRPC over HTTP/2, "Requests"), and how large its metadata
//! is.

use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tonic::body::Body;

use crate::error::{Error, ErrorCode};

/// Media types of calls. The messages are Protobuf.
const TYPES: [&str; 2] = ["application/grpc", "application/grpc+proto"];

/// Overhead that counts for each field in addition to its name and value (RFC 9113, section 6.5.2).
const FIELD_BYTES: usize = 32;

/// Returns why a request is not a gRPC call; `None` if it is one.
pub(super) fn of_no_call<B>(request: &Request<B>) -> Option<ErrorCode> {
    if request.method() != Method::POST {
        return Some(ErrorCode::MethodNotAllowed);
    }
    let named = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let named = named.split(';').next().unwrap_or_default().trim();
    let known = TYPES.iter().any(|known| named.eq_ignore_ascii_case(known));
    (!known).then_some(ErrorCode::UnsupportedMediaType)
}

/// Returns an HTTP response for a client that does not speak gRPC.
pub(super) fn refused(code: ErrorCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::BAD_REQUEST);
    let (name, value) = match code {
        ErrorCode::MethodNotAllowed => (ALLOW, "POST"),
        _ => (ACCEPT, TYPES[0]),
    };
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}

/// Checks the size of the metadata.
///
/// # Errors
/// `PayloadTooLarge`: the metadata is larger than `max_bytes`.
pub(super) fn size(headers: &HeaderMap, max_bytes: u32) -> Result<(), Error> {
    let bytes: usize =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum();
    if bytes <= max_bytes as usize {
        return Ok(());
    }
    let said = format!(
        "The metadata is {bytes} bytes long; at most {max_bytes} are allowed (grpc.metadata_max_bytes)"
    );
    Err(Error::new(ErrorCode::PayloadTooLarge, said))
}
