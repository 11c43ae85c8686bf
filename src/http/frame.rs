//! The headers of every response, whichever code produced it: trace, request id, remaining quota of the
//! caller, CORS, and security headers for browsers. Constant values are built once.

use std::sync::OnceLock;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, HeaderMap};
use http::{HeaderName, HeaderValue};

use crate::context::TraceContext;
use crate::context::fields::{TRACEPARENT, trace_of};
use crate::domain::access::Caller;
use crate::domain::time::MonoTime;
use crate::rate::Quota;

use super::Settings;
use super::cors::Cors;
use super::problem::Failure;
use super::rate::Limit;
use super::security::Security;

/// Header in which a client names its request. The log line repeats the value.
pub(super) const X_REQUEST_ID: &str = "x-request-id";
/// Longest request id that is accepted.
pub(super) const REQUEST_ID_BYTES_MAX: usize = 64;

/// Number of headers of a typical response; used to reserve space once.
const TYPICAL_HEADERS: usize = 14;

/// The settings of the response headers.
pub(super) struct Frame {
    security: Security,
    cors: Option<Cors>,
    limit: Option<Limit>,
}

/// The scope of one request, as far as its response needs it.
pub(super) struct Exchange {
    pub(super) began: MonoTime,
    pub(super) trace: TraceContext,
    /// The client's request id, if it is acceptable.
    request_id: Option<HeaderValue>,
    /// Origin of the requesting page, if it is allowed.
    origin: Option<HeaderValue>,
    /// Set once the caller is authenticated.
    quota: OnceLock<Quota>,
}

impl Exchange {
    /// Returns the request id that the client gave.
    pub(super) fn request_id(&self) -> Option<&str> {
        self.request_id.as_ref().and_then(|id| id.to_str().ok())
    }
}

impl Frame {
    pub(super) fn new(settings: &Settings) -> Self {
        Frame {
            security: Security::new(settings.hsts_max_age_s),
            cors: Cors::new(&settings.cors_origins),
            limit: Limit::new(settings),
        }
    }

    /// Starts the scope of a request with the headers `asked`, received at `began`.
    pub(super) fn begin(&self, asked: &HeaderMap, began: MonoTime) -> Exchange {
        Exchange {
            began,
            trace: trace_of(asked),
            request_id: asked.get(X_REQUEST_ID).filter(|id| is_request_id(id.as_bytes())).cloned(),
            origin: self.cors.as_ref().and_then(|cors| cors.origin(asked)),
            quota: OnceLock::new(),
        }
    }

    /// Counts the request towards its caller's limit.
    ///
    /// # Errors
    /// `RateLimited`: the caller has no requests left.
    pub(super) fn count(&self, exchange: &Exchange, caller: &Caller) -> Result<(), Failure> {
        let Some(limit) = &self.limit else { return Ok(()) };
        let (quota, outcome) = limit.take(caller, exchange.began);
        _ = exchange.quota.set(quota);
        outcome
    }

    /// Charges the caller's limit the cost of a denial beyond the request itself.
    pub(super) fn charge_denial(&self, caller: &Caller, now: MonoTime) {
        if let Some(limit) = &self.limit {
            limit.charge_denial(caller, now);
        }
    }

    /// Adds the headers of the response to OPTIONS, for a route with the methods `allow`.
    pub(super) fn options(
        &self,
        exchange: &Exchange,
        asked: &HeaderMap,
        allow: &HeaderValue,
        headers: &mut HeaderMap,
    ) {
        headers.insert(http::header::ALLOW, allow.clone());
        if self.cors.is_some() {
            Cors::preflight(exchange.origin.as_ref(), asked, allow, headers);
        }
    }

    /// Adds the headers that every response has.
    pub(super) fn end(&self, exchange: &Exchange, headers: &mut HeaderMap) {
        headers.reserve(TYPICAL_HEADERS);
        let traceparent = Bytes::from(exchange.trace.to_string());
        // Without a request id of the client, use the trace id, because the log lines contain it.
        let trace_id = || HeaderValue::from_maybe_shared(traceparent.slice(3..35)).ok();
        if let Some(id) = exchange.request_id.clone().or_else(trace_id) {
            headers.insert(HeaderName::from_static(X_REQUEST_ID), id);
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(traceparent) {
            headers.insert(HeaderName::from_static(TRACEPARENT), value);
        }
        // Responses are about patients, so no cache on the way may keep them.
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        self.security.put_on(headers);
        if self.cors.is_some() {
            Cors::allow(exchange.origin.as_ref(), headers);
        }
        if let (Some(limit), Some(quota)) = (&self.limit, exchange.quota.get()) {
            limit.tell(*quota, headers);
        }
    }
}

/// Returns whether a request id is safe to repeat in a header and in the log: short, and made only of
/// letters, digits and the punctuation of UUIDs, trace headers and base64. `@` is not allowed, so that no
/// e-mail address gets into the log.
fn is_request_id(bytes: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:=+/".contains(byte);
    (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_short_and_plain() {
        let longest = "x".repeat(REQUEST_ID_BYTES_MAX);
        for good in
            ["7", "0af7651916cd43dd8448eb211c80319c", "Root=1-67891233-abcdef012345678912345678", &longest]
        {
            assert!(is_request_id(good.as_bytes()), "{good}");
        }
        let too_long = "x".repeat(REQUEST_ID_BYTES_MAX + 1);
        for bad in ["", "a b", "ada@example.com", "a\"b", "a{b}", "ä", "a\tb", &too_long] {
            assert!(!is_request_id(bad.as_bytes()), "{bad}");
        }
    }
}
