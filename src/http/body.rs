//! Receiving bodies: of the right type, within the limit, or thrown away within a limit of its own.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap};
use http_body_util::BodyExt;

use hyper::body::Body as _;

use crate::error::ErrorCode;

use super::problem::Failure;

/// How much of a body that nobody wants is read all the same, and for how long: a caller who still sends
/// when the connection closes would otherwise see a reset instead of the answer.
const DISCARD_MAX_BYTES: usize = 1 << 20;
const DISCARD_MAX: Duration = Duration::from_millis(300);

/// A body of at most `max_bytes` and of the type `taken`, which is a kind of JSON.
///
/// # Errors
/// `PayloadTooLarge`, `UnsupportedMediaType`, or `Invalid` if it breaks off.
pub(super) async fn receive(
    headers: &HeaderMap,
    body: &mut Body,
    max_bytes: usize,
    taken: &'static str,
) -> Result<Bytes, Failure> {
    let declared =
        headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if declared.is_some_and(|length| length > max_bytes as u64) {
        return Err(too_large(max_bytes));
    }
    if !is_json(headers, taken) {
        let detail = format!("The body must be {taken}, in UTF-8 and not compressed");
        return Err(Failure::new(ErrorCode::UnsupportedMediaType, detail));
    }
    let mut whole = Bytes::new();
    let mut parts = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Failure::new(ErrorCode::Invalid, "The body breaks off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + parts.len() + data.len() > max_bytes {
            return Err(too_large(max_bytes));
        }
        // Nearly every body comes in one piece, which is not copied then.
        if whole.is_empty() && parts.is_empty() {
            whole = data;
        } else {
            parts.extend_from_slice(&std::mem::take(&mut whole));
            parts.extend_from_slice(&data);
        }
    }
    Ok(if parts.is_empty() { whole } else { parts.freeze() })
}

fn too_large(max_bytes: usize) -> Failure {
    Failure::new(ErrorCode::PayloadTooLarge, format!("The body may have at most {max_bytes} bytes"))
}

/// The type `taken`, whatever its parameters but for a charset other than UTF-8 (RFC 8259, section 8.1),
/// and without a content coding.
fn is_json(headers: &HeaderMap, taken: &str) -> bool {
    let text = |name| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    let plain = text(CONTENT_ENCODING).is_none_or(|coding| coding.eq_ignore_ascii_case("identity"));
    let mut parts = text(CONTENT_TYPE).unwrap_or_default().split(';').map(str::trim);
    let json = parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case(taken));
    let utf8 = parts.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
        !name.trim().eq_ignore_ascii_case("charset")
            || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    plain && json && utf8
}

/// Reads on for a while what the request still sends, for nothing.
pub(super) async fn discard(headers: &HeaderMap, mut body: Body) {
    // A caller who waits for a `100 Continue` has not sent anything: polling would ask for it.
    if body.is_end_stream() || headers.contains_key(EXPECT) {
        return;
    }
    let reading = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > DISCARD_MAX_BYTES {
                break;
            }
        }
    };
    _ = tokio::time::timeout(DISCARD_MAX, reading).await;
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(http::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    fn pieces(sizes: &[usize]) -> Body {
        let pieces: Vec<std::io::Result<Bytes>> =
            sizes.iter().map(|n| Ok(Bytes::from(vec![b'x'; *n]))).collect();
        Body::from_stream(stream::iter(pieces))
    }

    #[test]
    fn only_plain_utf8_json_is_json() {
        for (content_type, coding, taken) in [
            (Some("application/json"), None, true),
            (Some("Application/JSON; charset=UTF-8"), None, true),
            (Some("application/json; charset=\"utf-8\"; v=1"), Some("identity"), true),
            (Some("application/json; charset=latin1"), None, false),
            (Some("application/json"), Some("gzip"), false),
            (Some("application/jsonp"), None, false),
            (Some("text/json"), None, false),
            (Some(""), None, false),
            (None, None, false),
        ] {
            let mut map = HeaderMap::new();
            if let Some(value) = content_type {
                map.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            }
            if let Some(value) = coding {
                map.insert(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            assert_eq!(is_json(&map, "application/json"), taken, "{content_type:?} {coding:?}");
        }
    }

    #[tokio::test]
    async fn a_body_is_taken_up_to_the_limit_in_any_number_of_pieces() {
        let json = headers(&[(CONTENT_TYPE, "application/json")]);
        for sizes in [&[10][..], &[4, 6], &[1; 10], &[]] {
            let body = receive(&json, &mut pieces(sizes), 10, "application/json").await.expect("fits");
            assert_eq!(body.len(), sizes.iter().sum::<usize>());
        }
        for sizes in [&[11][..], &[5, 6], &[1; 11]] {
            let failure =
                receive(&json, &mut pieces(sizes), 10, "application/json").await.expect_err("too large");
            assert_eq!(failure.error.code, ErrorCode::PayloadTooLarge);
        }
    }

    #[tokio::test]
    async fn a_declared_length_over_the_limit_is_refused_unread() {
        let json = headers(&[(CONTENT_TYPE, "application/json"), (CONTENT_LENGTH, "11")]);
        let failure = receive(&json, &mut pieces(&[1]), 10, "application/json").await.expect_err("too large");
        assert_eq!(failure.error.code, ErrorCode::PayloadTooLarge);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_invalid() {
        let json = headers(&[(CONTENT_TYPE, "application/json")]);
        let broken = stream::iter([Ok(Bytes::from("{")), Err(std::io::Error::other("gone"))]);
        let failure =
            receive(&json, &mut Body::from_stream(broken), 10, "application/json").await.expect_err("broken");
        assert_eq!(failure.error.code, ErrorCode::Invalid);
    }

    #[tokio::test]
    async fn throwing_away_has_an_end() {
        let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[0; 65_536])));
        discard(&HeaderMap::new(), Body::from_stream(endless)).await;
        let silent = stream::pending::<std::io::Result<Bytes>>();
        discard(&HeaderMap::new(), Body::from_stream(silent)).await;
    }
}
