//! Security headers of every response. Responses are data: browsers must not run or frame them, guess another
//! type, or let pages of other sites read them.

use http::header::{
    CONTENT_SECURITY_POLICY, HeaderMap, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue};

pub(super) const CROSS_ORIGIN_RESOURCE_POLICY: &str = "cross-origin-resource-policy";

/// Content security policy of data.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'";

/// Content security policy of the Swagger UI page: only its own files, and requests only to this server. The
/// page sets style attributes, and has pictures in `data:` URLs.
pub(super) const PAGE: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                               img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; \
                               form-action 'none'; frame-ancestors 'none'";

/// Security headers that depend on the settings.
pub(super) struct Security {
    /// `Strict-Transport-Security`; only where a TLS proxy is in front (RFC 6797, section 7.2).
    transport: Option<HeaderValue>,
}

impl Security {
    /// Creates the headers. If `hsts_max_age_s` is 0, `Strict-Transport-Security` is omitted.
    pub(super) fn new(hsts_max_age_s: u32) -> Self {
        let value = format!("max-age={hsts_max_age_s}");
        Security { transport: HeaderValue::try_from(value).ok().filter(|_| hsts_max_age_s > 0) }
    }

    /// Adds the headers to a response. A content security policy that is already set stays.
    pub(super) fn put_on(&self, headers: &mut HeaderMap) {
        headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(NOTHING));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        let resource_policy = HeaderName::from_static(CROSS_ORIGIN_RESOURCE_POLICY);
        headers.insert(resource_policy, HeaderValue::from_static("same-origin"));
        if let Some(transport) = &self.transport {
            headers.insert(STRICT_TRANSPORT_SECURITY, transport.clone());
        }
    }
}
