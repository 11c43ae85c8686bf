//! Checks of every message before it is processed. hyper has parsed the message, but accepts some that a
//! server must refuse according to RFC 9112.

use http::header::{HOST, HeaderMap, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{Version, request};

use crate::context::fields::repeated;
use crate::domain::validate::FieldErrors;
use crate::error::{Error, ErrorCode};

use super::problem::Failure;

/// Checks that the message may be processed.
///
/// # Errors
/// - `Invalid`: the host is missing or malformed, or a field that allows one value is repeated.
/// - `NotImplemented`: the body has a transfer coding other than chunked.
pub(super) fn check(request: &request::Parts) -> Result<(), Failure> {
    if let Some(name) = repeated(&request.headers) {
        return Err(Error::invalid_fields(FieldErrors::from([(name, "Given more than once")])).into());
    }
    match request.headers.get(HOST) {
        Some(host) if is_host(host.as_bytes()) => {}
        Some(_) => return Err(Failure::field("host", "Should be a host, with a port or without")),
        // Required since HTTP/1.1 (RFC 9112, section 3.2).
        None if request.version >= Version::HTTP_11 => {
            return Err(Failure::field("host", "Host is required"));
        }
        None => {}
    }
    if is_transfer_coded(&request.headers) {
        let detail = "The only transfer coding that is read is chunked, applied once";
        return Err(Failure::new(ErrorCode::NotImplemented, detail));
    }
    Ok(())
}

/// Returns whether `value` is `uri-host [ ":" port ]` (RFC 9110, section 7.2) as in `http` URLs: not empty,
/// and without user information.
fn is_host(value: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(value) else { return false };
    let text = authority.as_str();
    let (host, port) = match text.rfind(']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&b);
    let named = match literal {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(plain),
    };
    let digits = port.strip_prefix(':').unwrap_or_default();
    // The port may be empty after the colon (RFC 3986, section 3.2.3).
    let numbered = digits.bytes().all(|b| b.is_ascii_digit())
        && (digits.is_empty() || digits.parse::<u16>().is_ok())
        && (port.is_empty() || port.starts_with(':'));
    named && numbered
}

/// Returns whether the body has a transfer coding other than one `chunked`. hyper decodes only `chunked`, and
/// only as the last coding.
fn is_transfer_coded(headers: &HeaderMap) -> bool {
    let mut codings = headers
        .get_all(TRANSFER_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|coding| !coding.is_empty());
    codings.next().is_some_and(|coding| !coding.eq_ignore_ascii_case(b"chunked")) || codings.next().is_some()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Request};

    use super::*;

    fn checked(version: Version, headers: &[(&'static str, &str)]) -> Result<(), ErrorCode> {
        let (mut parts, ()) = Request::builder().version(version).body(()).expect("a request").into_parts();
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
            parts.headers.append(HeaderName::from_static(name), value);
        }
        check(&parts).map_err(|failure| failure.error.code)
    }

    #[test]
    fn a_host_is_named_once_and_well() {
        for good in [
            "example.org",
            "example.org:80",
            "example.org:",
            "localhost",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:8080",
            "EXAMPLE.org",
            "a_b",
            "xn--bcher-kva.example",
        ] {
            assert_eq!(checked(Version::HTTP_11, &[("host", good)]), Ok(()), "{good}");
        }
        for bad in [
            "",
            " ",
            "a b",
            "a/b",
            "a?b",
            "a#b",
            "ada@example.org",
            "http://example.org",
            "example.org:x",
            "example.org:80:80",
            "example.org:65536",
            "example.org:-1",
            "[::1",
            "::1",
            "[::1]x",
            "[1::2::3]",
            "[a]",
            ":80",
            "a,b c",
            "a\\b",
            "\"a\"",
            "a<b",
            "\u{e9}.org",
            "a%zz^",
        ] {
            assert_eq!(checked(Version::HTTP_11, &[("host", bad)]), Err(ErrorCode::Invalid), "{bad}");
        }
        assert_eq!(checked(Version::HTTP_11, &[]), Err(ErrorCode::Invalid));
        assert_eq!(checked(Version::HTTP_11, &[("host", "a"), ("host", "a")]), Err(ErrorCode::Invalid));
        assert_eq!(checked(Version::HTTP_10, &[("host", "a"), ("host", "b")]), Err(ErrorCode::Invalid));
        assert_eq!(checked(Version::HTTP_10, &[]), Ok(()));
    }

    #[test]
    fn a_body_comes_in_chunks_or_not() {
        let coded = |values: &[&str]| {
            let mut headers = vec![("host", "a")];
            headers.extend(values.iter().map(|value| ("transfer-encoding", *value)));
            checked(Version::HTTP_11, &headers)
        };
        for plain in [&[][..], &["chunked"], &["Chunked"], &[" chunked , "]] {
            assert_eq!(coded(plain), Ok(()), "{plain:?}");
        }
        for other in [
            &["gzip, chunked"][..],
            &["gzip", "chunked"],
            &["chunked, chunked"],
            &["chunked", "chunked"],
            &["x;q=1, chunked"],
            &["identity, chunked"],
            &["chunked;a=b"],
        ] {
            assert_eq!(coded(other), Err(ErrorCode::NotImplemented), "{other:?}");
        }
    }
}
