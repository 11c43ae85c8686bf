//! The exporter: sends spans to the collector in batches, one call at a time.

use std::time::Duration;

use metrics::Counter;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::span::text;
use super::{SERVICE, Settings};

/// The target of log lines about the collector.
const TARGET: &str = "hygeia::telemetry";
/// The pause after the first failure. It doubles with each further failure.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// The endpoint of the collector, and the name of this node.
pub(super) struct Link {
    pub(super) endpoint: String,
    pub(super) node: String,
}

/// The limits for collecting and sending spans.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// The most spans in one call.
    batch_max: usize,
    /// How long spans are collected.
    gather: Duration,
    /// The time limit of one call.
    call_max: Duration,
    /// The time limit for the last spans at shutdown.
    flush_max: Duration,
}

impl Timing {
    pub(super) fn of(settings: &Settings) -> Self {
        Timing {
            batch_max: settings.otlp_batch_spans_max.max(1),
            gather: Duration::from_millis(settings.otlp_gather_ms),
            call_max: Duration::from_millis(settings.otlp_timeout_ms),
            flush_max: Duration::from_millis(settings.flush_max_ms),
        }
    }
}

/// Sends the spans of this process.
pub struct Exporter {
    link: Link,
    spans: mpsc::Receiver<Span>,
    timing: Timing,
    exported: Counter,
    dropped: Counter,
    failures: u32,
}

/// The result of sending a batch.
enum Sent {
    /// The collector accepted the batch.
    Taken,
    /// The call failed; a retry may succeed.
    Later(String),
    /// The collector rejected the batch for good.
    Refused(String),
}

impl Exporter {
    pub(super) fn new(link: Link, spans: mpsc::Receiver<Span>, timing: Timing) -> Self {
        let exported = metrics::counter!("hygeia_otlp_spans_exported_total");
        let dropped = metrics::counter!("hygeia_otlp_spans_dropped_total");
        Exporter { link, spans, timing, exported, dropped, failures: 0 }
    }

    /// Sends spans until `stop` completes. Then sends the remaining spans for at most `flush_max_ms`, or a
    /// quarter of that if the collector is not answering. Spans that are still left are counted as dropped.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) {
        let Some(mut client) = self.client() else { return };
        let mut batch = Vec::with_capacity(self.timing.batch_max);
        tokio::select! {
            () = self.send_for_ever(&mut client, &mut batch) => {}
            () = stop => {}
        }
        self.spans.close();
        // A collector that has not answered so far will hardly answer now, and the shutdown of the process
        // waits for this.
        let limit = if self.failures == 0 { self.timing.flush_max } else { self.timing.flush_max / 4 };
        let flush = timeout(limit, self.send_rest(&mut client, &mut batch));
        if flush.await.is_err() {
            let left = batch.len() + self.spans.len();
            self.dropped.increment(left as u64);
            tracing::warn!(target: TARGET, spans = left, "spans that the collector did not take in time are dropped");
        }
    }

    fn client(&self) -> Option<TraceServiceClient<Channel>> {
        match Endpoint::from_shared(self.link.endpoint.clone()) {
            Ok(endpoint) => {
                let limits = endpoint.connect_timeout(self.timing.call_max).timeout(self.timing.call_max);
                // Connects at the first call, and again when the connection is lost.
                Some(TraceServiceClient::new(limits.connect_lazy()))
            }
            Err(error) => {
                // Does not happen, because the settings were checked.
                tracing::error!(target: TARGET, %error, "spans are not exported");
                None
            }
        }
    }

    async fn send_for_ever(&mut self, client: &mut TraceServiceClient<Channel>, batch: &mut Vec<Span>) {
        while self.next(batch).await {
            self.send(client, batch).await;
        }
    }

    async fn send_rest(&mut self, client: &mut TraceServiceClient<Channel>, batch: &mut Vec<Span>) {
        loop {
            if !batch.is_empty() {
                self.send(client, batch).await;
            }
            if self.spans.recv_many(batch, self.timing.batch_max).await == 0 {
                return;
            }
        }
    }

    /// Fills `batch` with the spans that arrive within the collection time. Returns false when no more spans
    /// can come.
    async fn next(&mut self, batch: &mut Vec<Span>) -> bool {
        let most = self.timing.batch_max;
        if batch.is_empty() && self.spans.recv_many(batch, most).await == 0 {
            return false;
        }
        let until = Instant::now() + self.timing.gather;
        while batch.len() < most {
            let more = self.spans.recv_many(batch, most - batch.len());
            match tokio::time::timeout_at(until, more).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        true
    }

    /// Sends `batch` until it is accepted or rejected, then clears it.
    async fn send(&mut self, client: &mut TraceServiceClient<Channel>, batch: &mut Vec<Span>) {
        loop {
            match self.try_once(client, batch).await {
                Sent::Taken => {
                    self.exported.increment(batch.len() as u64);
                    self.answers();
                    return batch.clear();
                }
                Sent::Refused(reason) => {
                    self.dropped.increment(batch.len() as u64);
                    self.does_not_answer(&reason);
                    return batch.clear();
                }
                Sent::Later(reason) => {
                    let doubled = RETRY_MIN.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
                    self.does_not_answer(&reason);
                    // A random pause between half and the whole, so that the nodes do not retry in step.
                    sleep(doubled.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                }
            }
        }
    }

    async fn try_once(&self, client: &mut TraceServiceClient<Channel>, batch: &[Span]) -> Sent {
        let call = client.export(self.request(batch.to_vec()));
        match timeout(self.timing.call_max, call).await {
            // After a partial success the rejected spans must not be sent again (OTLP, "Partial Success").
            Ok(Ok(_)) => Sent::Taken,
            Ok(Err(status)) if is_passing(&status) => Sent::Later(told(&status)),
            Ok(Err(status)) => Sent::Refused(told(&status)),
            Err(_) => Sent::Later(format!("no answer within {} ms", self.timing.call_max.as_millis())),
        }
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let attributes = vec![
            text("service.name", SERVICE),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", &self.link.node),
        ];
        let scope = InstrumentationScope { name: SERVICE.to_owned(), ..InstrumentationScope::default() };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes, ..Resource::default() }),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }],
        }
    }

    fn answers(&mut self) {
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!(target: TARGET, "the collector takes spans again");
        }
    }

    fn does_not_answer(&mut self, reason: &str) {
        if self.failures == 0 {
            tracing::warn!(target: TARGET, endpoint = self.link.endpoint, reason, "the collector does not take spans");
        }
        self.failures = self.failures.saturating_add(1);
    }
}

/// Returns whether a retry may succeed (OTLP, "Failures").
fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
            | Code::Unknown
    )
}

fn told(status: &Status) -> String {
    format!("{:?}", status.code())
}
