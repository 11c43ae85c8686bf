//! Receives request bodies of the right type and within the limit, and discards unwanted ones within a limit
//! of its own.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap};
use http_body_util::BodyExt;

use hyper::body::Body as _;

use crate::error::ErrorCode;

use super::patch::MERGE_PATCH_JSON;
use super::problem::{Failure, Wanted};

/// How much of an unwanted body is read and discarded, and for how long. A client that is still sending when
/// the connection closes would otherwise see a reset instead of the response.
const DISCARD_MAX_BYTES: usize = 1 << 20;
const DISCARD_MAX: Duration = Duration::from_millis(300);

/// Returns a body of at most `max_bytes` bytes and of the media type `taken`, which is a kind of JSON.
///
/// # Errors
/// `PayloadTooLarge`, `UnsupportedMediaType`, or `Invalid` if the body is incomplete.
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
    check_type(headers, taken)?;
    let mut whole = Bytes::new();
    let mut parts = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Failure::new(ErrorCode::Invalid, "The body breaks off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + parts.len() + data.len() > max_bytes {
            return Err(too_large(max_bytes));
        }
        // Nearly every body arrives in one piece, which then need not be copied.
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

/// Checks that the body is of the type `taken`, encoded in UTF-8 (RFC 8259, section 8.1), and without a
/// content coding. Other parameters of the media type are ignored.
fn check_type(headers: &HeaderMap, taken: &'static str) -> Result<(), Failure> {
    let refused = |detail: String, wanted| {
        Err(Failure { wanted: Some(wanted), ..Failure::new(ErrorCode::UnsupportedMediaType, detail) })
    };
    let codings =
        headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let plain = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
    if !codings.map(<[u8]>::trim_ascii).all(plain) {
        let detail = "The body must not be compressed: send it without Content-Encoding".to_owned();
        return refused(detail, Wanted::Plain);
    }
    let wanted = if taken == MERGE_PATCH_JSON { Wanted::MergePatch } else { Wanted::Json };
    let Some(given) = headers.get(CONTENT_TYPE) else {
        return refused(format!("Content-Type is missing: the body must be {taken}"), wanted);
    };
    let mut parts = given.to_str().unwrap_or_default().split(';').map(str::trim);
    if !parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case(taken)) {
        return refused(format!("The body's media type (Content-Type) must be {taken}"), wanted);
    }
    let utf8 = |charset: &str| charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("utf8");
    let mut charsets = parts
        .filter_map(|parameter| parameter.split_once('='))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    if !charsets.all(|(_, charset)| utf8(charset.trim().trim_matches('"'))) {
        return refused("The body's charset (Content-Type) must be utf-8".to_owned(), wanted);
    }
    Ok(())
}

/// Reads and discards what the client still sends, up to `DISCARD_MAX_BYTES` and for `DISCARD_MAX`.
pub(super) async fn discard(headers: &HeaderMap, mut body: Body) {
    // A client that waits for `100 Continue` has not sent anything, and polling the body would ask for it.
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
    fn what_is_wrong_with_a_body_is_told_apart() {
        const JSON: &str = "application/json";
        for (content_type, codings, wrong) in [
            (Some(JSON), &[][..], None),
            (Some("Application/JSON; charset=UTF-8"), &[], None),
            (Some("application/json;charset=utf8"), &[], None),
            (Some("application/json; charset=\"utf-8\"; v=1"), &["identity"], None),
            (Some(JSON), &["", "Identity, identity"], None),
            (Some("application/json; charset=latin1"), &[], Some(("charset", "accept"))),
            (Some("application/json; charset=utf-8; charset=utf-16"), &[], Some(("charset", "accept"))),
            (Some("application/json; charset="), &[], Some(("charset", "accept"))),
            (Some(JSON), &["gzip"], Some(("compressed", "accept-encoding"))),
            (Some(JSON), &["br"], Some(("compressed", "accept-encoding"))),
            (Some(JSON), &["identity", "deflate"], Some(("compressed", "accept-encoding"))),
            (Some("text/plain"), &["identity, gzip"], Some(("compressed", "accept-encoding"))),
            (Some("application/jsonp"), &[], Some(("media type", "accept"))),
            (Some("text/json"), &[], Some(("media type", "accept"))),
            (Some("application/json, text/plain"), &[], Some(("media type", "accept"))),
            (Some(""), &[], Some(("media type", "accept"))),
            (None, &[], Some(("missing", "accept"))),
        ] {
            let mut map = HeaderMap::new();
            map.extend(content_type.map(|value| (CONTENT_TYPE, HeaderValue::from_static(value))));
            for value in codings {
                map.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            let told = check_type(&map, JSON).err();
            let said = format!("{content_type:?} {codings:?} {told:?}");
            assert_eq!(told.is_some(), wrong.is_some(), "{said}");
            if let (Some(failure), Some((word, takes))) = (told, wrong) {
                assert!(failure.error.detail.contains(word), "{said}");
                assert_eq!(failure.wanted.expect("what is taken").field().0, takes, "{said}");
            }
        }
        let patch = headers(&[(CONTENT_TYPE, JSON)]);
        let refused = check_type(&patch, MERGE_PATCH_JSON).expect_err("no merge patch");
        assert_eq!(refused.wanted, Some(Wanted::MergePatch));
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
