//! Cross-origin requests (Fetch standard, section 3.2) from the configured origins; by default there are
//! none.
//!
//! Callers are authenticated by a token that a page must set on each request itself, never by a cookie.
//! Therefore no response allows credentials, and a page of an allowed origin can do no more than its user
//! could with that token.
//!
//! This is a part of the pipeline rather than a tower layer, because the available layer answers every
//! OPTIONS request as a preflight. OPTIONS requests without `Origin` would lose their `Allow`, and none would
//! be logged or counted.

use http::HeaderValue;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, ORIGIN,
    VARY,
};
use url::{Host, Url};

/// Maximum number of configured origins. Each request with an `Origin` is compared with all of them.
const ORIGINS_MAX: usize = 32;

/// Request headers that a page may send in addition to the CORS-safelisted ones.
const REQUEST_HEADERS: &str = "accept-language, authorization, content-type, idempotency-key, if-match, \
                               if-none-match, traceparent, tracestate, x-break-glass, x-request-id";
/// Response headers that a page may read in addition to the CORS-safelisted ones.
const EXPOSED_HEADERS: &str = "allow, etag, link, location, ratelimit, ratelimit-policy, retry-after, traceparent, \
                               www-authenticate, x-request-id";
/// How long a browser may cache the result of a preflight, in seconds.
const MAX_AGE_S: &str = "600";

/// Returns what is wrong with a list of origins, if anything.
pub(super) fn problem(origins: &[String]) -> Option<String> {
    let holds = origins.len() <= ORIGINS_MAX && origins.iter().all(|origin| is_origin(origin));
    (!holds).then(|| {
        format!(
            "at most {ORIGINS_MAX} origins as browsers write them, such as https://app.example.org: without a path, \
             a pattern, or the port that the scheme has anyway"
        )
    })
}

/// Returns whether `text` is an origin as browsers serialize it (RFC 6454, section 6.2; WHATWG URL). Any
/// other text would never match.
fn is_origin(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let pattern = matches!(url.host(), Some(Host::Domain(name)) if name.contains('*'));
    matches!(url.scheme(), "http" | "https") && !pattern && url.origin().ascii_serialization() == text
}

/// The allowed origins.
pub(super) struct Cors {
    origins: Vec<HeaderValue>,
}

impl Cors {
    /// Returns `None` if there are no `origins`.
    pub(super) fn new(origins: &[String]) -> Option<Self> {
        let origins: Vec<_> =
            origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()).collect();
        (!origins.is_empty()).then_some(Cors { origins })
    }

    /// Returns the origin of a request, if it is allowed.
    pub(super) fn origin(&self, asked: &HeaderMap) -> Option<HeaderValue> {
        let origin = asked.get(ORIGIN)?;
        self.origins.iter().find(|known| *known == origin).cloned()
    }

    /// Allows `origin` to read the response with these `headers`.
    pub(super) fn allow(origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        // Set even without an origin, so that a cache does not give this response to a page of another
        // origin.
        headers.append(VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
        }
    }

    /// If the request is a preflight, states in the response to OPTIONS what `origin` may send.
    pub(super) fn preflight(
        origin: Option<&HeaderValue>,
        asked: &HeaderMap,
        methods: &HeaderValue,
        headers: &mut HeaderMap,
    ) {
        if origin.is_some() && asked.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(REQUEST_HEADERS));
            headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_S));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        for good in [
            "https://app.example.org",
            "http://localhost:3000",
            "https://[::1]:8443",
            "http://10.0.0.1",
            "https://a.org:80",
        ] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "",
            "*",
            "null",
            "app.example.org",
            "https://",
            "https://app.example.org/",
            "https://app.example.org/x",
            "https://App.example.org",
            "ftp://app.example.org",
            "https://user@app.example.org",
            "https://a?b",
            "https://*.example.org",
            "https://*",
            "https://app.example.org:443",
            "http://app.example.org:80",
            "https://app.example.org:",
            "https://app.example.org:0443",
            "https://app.example.org:65536",
            "https://b\u{fc}cher.example",
            "https://127.1",
            "https://[0:0::1]",
            "https://app.example.org,https://b.example.org",
            " https://app.example.org",
            "https://app.example.org#x",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
        assert_eq!(problem(&[]), None);
        let many = vec!["https://app.example.org".to_owned(); ORIGINS_MAX + 1];
        assert_eq!(problem(&many[1..]), None);
        assert!(problem(&many).is_some());
    }
}
