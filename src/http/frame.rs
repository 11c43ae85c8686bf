//! What stands around every exchange, whoever answers it: its trace, its request id, what is left of its caller's
//! quota, who may read the answer, and what browsers must not do with it. Values that do not change are made once.

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

/// The header by which a caller names its request, and finds it again in our log.
pub(super) const X_REQUEST_ID: &str = "x-request-id";
/// The longest name of a request that is taken up.
pub(super) const REQUEST_ID_BYTES_MAX: usize = 64;

/// Headers of nearly every answer: room for them is made once.
const TYPICAL_HEADERS: usize = 14;

/// The settings of the frame.
pub(super) struct Frame {
    security: Security,
    cors: Option<Cors>,
    limit: Option<Limit>,
}

/// One request, as far as its answer must know.
pub(super) struct Exchange {
    pub(super) began: MonoTime,
    pub(super) trace: TraceContext,
    /// As the caller gave it.
    request_id: Option<HeaderValue>,
    /// Whose page asks, if it is let in.
    origin: Option<HeaderValue>,
    /// Once its caller is known.
    quota: OnceLock<Quota>,
}

impl Exchange {
    /// The name that the caller gave its request.
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

    /// A request with these headers has come.
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
    /// `RateLimited`
    pub(super) fn count(&self, exchange: &Exchange, caller: &Caller) -> Result<(), Failure> {
        let Some(limit) = &self.limit else { return Ok(()) };
        let (quota, outcome) = limit.take(caller, exchange.began);
        _ = exchange.quota.set(quota);
        outcome
    }

    /// Takes from the caller's limit what a denial costs beyond the request.
    pub(super) fn charge_denial(&self, caller: &Caller, now: MonoTime) {
        if let Some(limit) = &self.limit {
            limit.charge_denial(caller, now);
        }
    }

    /// The answer to OPTIONS, of a route with these methods.
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

    /// Puts on an answer what every answer has.
    pub(super) fn end(&self, exchange: &Exchange, headers: &mut HeaderMap) {
        headers.reserve(TYPICAL_HEADERS);
        let traceparent = Bytes::from(exchange.trace.to_string());
        // A request without a name has that of its trace, which is what its log lines have.
        let trace_id = || HeaderValue::from_maybe_shared(traceparent.slice(3..35)).ok();
        if let Some(id) = exchange.request_id.clone().or_else(trace_id) {
            headers.insert(HeaderName::from_static(X_REQUEST_ID), id);
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(traceparent) {
            headers.insert(HeaderName::from_static(TRACEPARENT), value);
        }
        // Answers are about patients: no cache on the way keeps them.
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

/// A name that is safe to repeat in a header and in the log: short, and of letters, digits and what UUIDs, trace
/// headers and base64 have beside them. No `@`, so that no e-mail address comes into the log this way.
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
