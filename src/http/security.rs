//! What every answer tells browsers not to do with it. The answers are data: nothing in them is to be run, framed,
//! guessed to be of another type, or read by a page of another site.

use http::header::{
    CONTENT_SECURITY_POLICY, HeaderMap, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue};

pub(super) const CROSS_ORIGIN_RESOURCE_POLICY: &str = "cross-origin-resource-policy";

/// For answers that are data.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'";

/// For the page that shows the interface's description: its own files alone, and requests to this server alone. The
/// page writes style attributes, and has pictures in `data:` addresses.
pub(super) const PAGE: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                               img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; \
                               form-action 'none'; frame-ancestors 'none'";

/// The headers that depend on the settings.
pub(super) struct Security {
    /// Only where TLS stands in front (RFC 6797, section 7.2).
    transport: Option<HeaderValue>,
}

impl Security {
    /// `hsts_max_age_s` of 0 leaves the header out.
    pub(super) fn new(hsts_max_age_s: u32) -> Self {
        let value = format!("max-age={hsts_max_age_s}");
        Security { transport: HeaderValue::try_from(value).ok().filter(|_| hsts_max_age_s > 0) }
    }

    /// Puts the headers on an answer. A policy of its own stays.
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
