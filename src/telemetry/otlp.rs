//! Spans for an OpenTelemetry collector (OTLP over gRPC), made from the same events as the log lines. Each
//! message handled by an actor, each request and each call becomes a span with the trace, span and parent of
//! its line.
//!
//! Invariants:
//! - No caller waits for the collector: spans go into a bounded queue, and a span that does not fit is
//!   dropped and counted.
//! - An unavailable collector causes one log line when it becomes unavailable and one when it recovers.
//! - A span contains only what its log line contains, so no patient data: see `docs/LOGGING.md`.

mod export;
mod span;
#[cfg(test)]
mod tests;

use std::sync::Mutex;

use metrics::Counter;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::mpsc;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

pub use self::export::Exporter;
use self::export::{Link, Timing};
use super::Settings;
use crate::clock::SystemClock;
use crate::domain::time::Clock;

/// The service name of all nodes; the instance id tells nodes apart.
const SERVICE: &str = "hygeia";

/// The targets whose events become spans.
const TARGETS: [&str; 3] = [span::MESSAGE, span::HTTP, span::GRPC];

/// Returns whether an event becomes a span.
pub(super) fn is_span(metadata: &Metadata<'_>) -> bool {
    TARGETS.contains(&metadata.target())
}

/// Returns what is wrong with an endpoint; `None` if it is valid.
pub(super) fn endpoint_problem(endpoint: &str) -> Option<String> {
    let uri: Result<http::Uri, _> = endpoint.parse();
    let fits = uri.is_ok_and(|uri| {
        let bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
        uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()) && bare
    });
    let allowed = "allowed: http://host:port of a collector that takes OTLP over gRPC (TLS is for the collector's \
                   own way on: run one beside the node)";
    (!fits).then(|| allowed.to_owned())
}

/// Creates spans from events and queues them.
pub(super) struct SpanLayer {
    queue: mpsc::Sender<Span>,
    dropped: Counter,
}

impl SpanLayer {
    /// Returns the layer, and the exporter that sends its spans to `endpoint`.
    pub(super) fn new(settings: &Settings, endpoint: &str, node: &str) -> (Self, Exporter) {
        let (queue, spans) = mpsc::channel(settings.otlp_spans_max.max(1));
        let layer = SpanLayer { queue, dropped: metrics::counter!("hygeia_otlp_spans_dropped_total") };
        let link = Link { endpoint: endpoint.to_owned(), node: node.to_owned() };
        (layer, Exporter::new(link, spans, Timing::of(settings)))
    }
}

impl<S: Subscriber> Layer<S> for SpanLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(span) = span::of_event(event, SystemClock.now()) else { return };
        if self.queue.try_send(span).is_err() {
            self.dropped.increment(1);
        }
    }
}

/// Holds the exporter until it is taken to run.
pub(super) type Waiting = Mutex<Option<Exporter>>;
