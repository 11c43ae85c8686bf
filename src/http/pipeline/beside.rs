//! Responses outside the endpoints: refusals of unknown routes and methods, and OPTIONS.

use axum::extract::Request;
use axum::response::Response;
use http::header::{ALLOW, CONTENT_LENGTH};
use http::{HeaderValue, StatusCode};

use super::Edge;
use crate::error::ErrorCode;
use crate::http::observe::Meter;
use crate::http::problem::{ACCEPT_PATCH, Failure};
use crate::http::{body, message, reply};

/// The methods of a route.
#[derive(Clone)]
pub(super) struct Methods {
    /// The `Allow` value.
    pub(super) allow: HeaderValue,
    /// Media type of a patch, if PATCH is one of the methods (RFC 5789, section 3.1).
    pub(super) patches: Option<&'static str>,
}

/// Response to a request that no endpoint accepts.
pub(super) struct Refusal {
    pub(super) code: ErrorCode,
    pub(super) detail: &'static str,
    /// The allowed methods, if the route exists.
    pub(super) allow: Option<HeaderValue>,
    pub(super) meter: Meter,
}

impl<S: Send + Sync + 'static> Edge<S> {
    /// Refuses a request that no endpoint accepts.
    pub(super) async fn refuse(&self, refusal: &Refusal, request: Request) -> Response {
        let exchange = self.frame.begin(request.headers(), self.clock.mono());
        let (parts, incoming) = request.into_parts();
        if parts.headers.get(CONTENT_LENGTH).is_none_or(|length| length != "0") {
            body::discard(&parts.headers, incoming).await;
        }
        let refused = Err(Failure::new(refusal.code, refusal.detail));
        let outcome = message::check(&parts).and(refused);
        let mut response = self.finish(outcome, &refusal.meter, &exchange);
        if let Some(allow) = &refusal.allow {
            response.headers_mut().insert(ALLOW, allow.clone());
        }
        response
    }

    /// Answers OPTIONS (RFC 9110, section 9.3.7) with the `methods` of the requested route.
    pub(super) async fn options(&self, methods: &Methods, meter: &Meter, request: Request) -> Response {
        let exchange = self.frame.begin(request.headers(), self.clock.mono());
        let (parts, incoming) = request.into_parts();
        body::discard(&parts.headers, incoming).await;
        let outcome = message::check(&parts).map(|()| {
            let mut response = reply::empty(StatusCode::NO_CONTENT);
            self.frame.options(&exchange, &parts.headers, &methods.allow, response.headers_mut());
            let patches = methods.patches.map(|taken| (ACCEPT_PATCH, HeaderValue::from_static(taken)));
            response.headers_mut().extend(patches);
            response
        });
        self.finish(outcome, meter, &exchange)
    }
}
