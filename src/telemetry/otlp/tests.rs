//! Spans from events, and collectors that are available, unavailable, slow or rejecting.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tracing::subscriber::with_default;
use tracing_subscriber::layer::SubscriberExt;
use uuid::Uuid;

use super::*;
use crate::context::{Hop, TraceContext};

const PATIENCE: Duration = Duration::from_secs(20);

/// A collector: the spans it accepted, and how it answers.
#[derive(Clone, Default)]
struct Collector {
    taken: Arc<Mutex<Vec<Span>>>,
    refuse: Option<tonic::Code>,
    silent: bool,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.silent {
            std::future::pending::<()>().await;
        }
        if let Some(code) = self.refuse {
            return Err(Status::new(code, "no"));
        }
        let resources = request.into_inner().resource_spans.into_iter();
        let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        self.taken.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn listen(&self, at: &str) -> SocketAddr {
        let incoming = TcpIncoming::bind(at.parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let service = TraceServiceServer::new(self.clone());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        address
    }

    async fn has(&self, spans: usize) -> Vec<Span> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let taken = self.taken.lock().unwrap().clone();
            if taken.len() >= spans {
                return taken;
            }
            assert!(Instant::now() < deadline, "{} of {spans} spans", taken.len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn settings(spans_max: usize) -> Settings {
    Settings {
        otlp_spans_max: spans_max,
        otlp_batch_spans_max: 4,
        otlp_gather_ms: 1,
        otlp_timeout_ms: 300,
        flush_max_ms: 300,
        ..Settings::default()
    }
}

fn recorded() -> (PrometheusHandle, metrics::LocalRecorderGuard<'static>) {
    let recorder = Box::leak(Box::new(super::super::metrics::recorder().unwrap()));
    let handle = recorder.handle();
    (handle, metrics::set_default_local_recorder(recorder))
}

fn value(metrics: &PrometheusHandle, name: &str) -> u64 {
    let text = metrics.render();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.map_or(0, |value| value.parse().unwrap())
}

fn message(trace: &TraceContext, actor: &str, outcome: &'static str) {
    let entity = Some(Uuid::from_u128(7));
    let (queued, handled) = (Duration::from_micros(5), Duration::from_millis(2));
    Hop { actor, message: "Register", entity, trace, queued, handled, outcome }.log();
}

fn text_of(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key).unwrap();
    match found.value.as_ref().and_then(|value| value.value.as_ref()).unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_hop_is_a_span_with_the_ids_of_its_line() {
    let collector = Collector::default();
    let endpoint = format!("http://{}", collector.listen("127.0.0.1:0").await);
    let (layer, exporter) = SpanLayer::new(&settings(100), &endpoint, "node-1");
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(exporter.run(async { drop(stopped.await) }));
    let trace = TraceContext { trace_id: 0xabc << 64 | 1, span_id: 0x12, parent_id: 0x34, sampled: true };
    with_default(tracing_subscriber::registry().with(layer), || {
        message(&trace, "patient-shard-17", "appending");
        message(&trace.child(), "journal", "unavailable");
        let hex = |id: u64| format!("{id:016x}");
        tracing::info!(target: "hygeia::http", method = "POST", route = "/api/patients", status = 503u16,
            trace = %format_args!("{:032x}", trace.trace_id), span = %hex(9), parent = %hex(0), duration_us = 7u64);
        tracing::info!(target: "hygeia::http", method = "GET", route = "/metrics", status = 200u16,
            trace = %format_args!("{:032x}", 5), span = %hex(9), parent = %hex(0), duration_us = 7u64);
        tracing::info!(target: "hygeia::health", part = "store", "ready");
    });
    let spans = collector.has(3).await;
    // The layer can send no more spans, so the exporter may already have ended by itself.
    let _ = stop.send(());
    running.await.unwrap();
    // Spans whose call was answered too late are sent again.
    let ids: HashSet<_> = collector.taken.lock().unwrap().iter().map(|span| span.span_id.clone()).collect();
    assert_eq!(ids.len(), 3, "scrapes and other lines are none");
    let [shard, journal, request] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!(shard.trace_id, trace.trace_id.to_be_bytes());
    assert_eq!(
        (shard.span_id.clone(), shard.parent_span_id.clone()),
        (0x12u64.to_be_bytes().into(), 0x34u64.to_be_bytes().into())
    );
    assert_eq!((shard.name.as_str(), shard.kind), ("patient-shard Register", i32::from(SpanKind::Internal)));
    assert_eq!(shard.end_time_unix_nano - shard.start_time_unix_nano, 2_000_000);
    assert_eq!(text_of(shard, "hygeia.actor"), "patient-shard-17");
    assert_eq!(text_of(shard, "hygeia.queue_us"), "5");
    assert_eq!(text_of(shard, "hygeia.entity"), Uuid::from_u128(7).to_string());
    assert!(shard.status.is_none() && journal.status.is_some());
    assert_eq!(journal.parent_span_id, 0x12u64.to_be_bytes());
    assert_eq!((request.name.as_str(), request.kind), ("POST /api/patients", i32::from(SpanKind::Server)));
    assert!(request.parent_span_id.is_empty() && request.status.is_some(), "the root of its trace");
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_beyond_the_bound_and_nothing_else() {
    let (metrics, _here) = recorded();
    // A port that is free again.
    let address = Collector::default().listen("127.0.0.1:0").await;
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_ne!(address, elsewhere);
    let (layer, exporter) = SpanLayer::new(&settings(8), &format!("http://{elsewhere}"), "node-1");
    let trace = TraceContext::root();
    let registry = tracing_subscriber::registry().with(layer);
    let begun = Instant::now();
    with_default(registry, || (0..20).for_each(|_| message(&trace, "journal", "committed")));
    assert!(begun.elapsed() < Duration::from_secs(1), "somebody waited for the collector");
    assert_eq!(value(&metrics, "hygeia_otlp_spans_dropped_total"), 12, "all beyond the queue's eight");
    // The collector starts while the exporter retries. The exporter then sends the waiting spans.
    let collector = Collector::default();
    let (stop, stopped) = oneshot::channel::<()>();
    let late = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        collector.listen(&elsewhere.to_string()).await;
        let taken = collector.has(8).await;
        let _ = stop.send(());
        taken
    };
    let (taken, ()) = tokio::join!(late, exporter.run(async { drop(stopped.await) }));
    assert_eq!(taken.len(), 8);
    assert_eq!(value(&metrics, "hygeia_otlp_spans_exported_total"), 8);
}

#[tokio::test]
async fn what_a_collector_will_never_take_is_dropped_and_counted() {
    let (metrics, _here) = recorded();
    let collector = Collector { refuse: Some(tonic::Code::InvalidArgument), ..Collector::default() };
    let endpoint = format!("http://{}", collector.listen("127.0.0.1:0").await);
    let (layer, exporter) = SpanLayer::new(&settings(8), &endpoint, "node-1");
    let trace = TraceContext::root();
    with_default(tracing_subscriber::registry().with(layer), || message(&trace, "journal", "committed"));
    // Dropping the layer closed the queue, so the exporter ends by itself.
    tokio::time::timeout(PATIENCE, exporter.run(std::future::pending())).await.expect("it ended");
    assert_eq!(value(&metrics, "hygeia_otlp_spans_dropped_total"), 1);
}

#[tokio::test]
async fn the_end_waits_for_the_last_spans_as_long_as_it_may() {
    let (metrics, _here) = recorded();
    let collector = Collector { silent: true, ..Collector::default() };
    let endpoint = format!("http://{}", collector.listen("127.0.0.1:0").await);
    let (layer, exporter) = SpanLayer::new(&settings(100), &endpoint, "node-1");
    let trace = TraceContext::root();
    with_default(tracing_subscriber::registry().with(layer), || {
        (0..10).for_each(|_| message(&trace, "journal", "committed"));
    });
    let begun = Instant::now();
    exporter.run(std::future::ready(())).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(value(&metrics, "hygeia_otlp_spans_dropped_total"), 10);
}
