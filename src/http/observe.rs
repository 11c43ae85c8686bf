//! Records each request: one log line with its trace, and metrics. Tools read the names of the fields and
//! metrics.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Histogram};

use crate::context::TraceContext;
use crate::error::ErrorCode;

use super::frame::Exchange;

/// Records the requests of one method and route. The label sets are bounded: templates and methods of the
/// route table, and five classes of status.
pub(super) struct Meter {
    method: &'static str,
    route: &'static str,
    /// Whether the route is a probe. Monitoring calls probes every few seconds, so only failures are logged
    /// as warnings.
    is_probe: bool,
    by_class: [OnceLock<(Counter, Histogram)>; 5],
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Meter {
    pub(super) fn new(method: &'static str, route: &'static str) -> Self {
        let is_probe = route.starts_with("/health/") || route == "/metrics";
        Meter { method, route, is_probe, by_class: Default::default() }
    }

    /// Records one answered request.
    pub(super) fn note(&self, status: u16, exchange: &Exchange, took: Duration) {
        let trace = &exchange.trace;
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        let (count, duration) = self.by_class[class].get_or_init(|| self.register(CLASSES[class]));
        count.increment(1);
        duration.record(took.as_secs_f64());
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "hygeia::http",
                    method = self.method,
                    route = self.route,
                    status,
                    trace = %format_args!("{:032x}", trace.trace_id),
                    span = %format_args!("{:016x}", trace.span_id),
                    parent = %format_args!("{:016x}", trace.parent_id),
                    duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                    request = exchange.request_id(),
                )
            };
        }
        match (self.is_probe, status) {
            (false, _) => line!(info),
            (true, ..400) => line!(debug),
            (true, 400..) => line!(warn),
        }
    }

    fn register(&self, status: &'static str) -> (Counter, Histogram) {
        let (method, route) = (self.method, self.route);
        (
            metrics::counter!("hygeia_http_requests_total", "method" => method, "route" => route, "status" => status),
            metrics::histogram!(
                "hygeia_http_request_duration_seconds", "method" => method, "route" => route, "status" => status),
        )
    }

    /// Counts a request that failed with `code`.
    pub(super) fn note_failure(&self, code: ErrorCode) {
        metrics::counter!("hygeia_http_failures_total", "route" => self.route, "code" => code.as_str())
            .increment(1);
    }

    /// Logs that a handler panicked. The panic message is not logged, because it may contain patient data.
    pub(super) fn note_panic(&self, trace: &TraceContext) {
        let trace = format_args!("{:032x}", trace.trace_id);
        tracing::error!(target: "hygeia::http", method = self.method, route = self.route, %trace, "a handler panicked");
    }
}
