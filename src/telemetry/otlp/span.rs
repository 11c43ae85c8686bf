//! Converts events to OTLP spans. The fields are those of the log lines (`docs/LOGGING.md`).

use std::fmt::{self, Write};
use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use tracing::Event;
use tracing::field::{Field, Visit};

use crate::domain::time::Timestamp;

/// The target of handled actor messages.
pub(super) const MESSAGE: &str = "hygeia::message";
/// The target of answered HTTP requests.
pub(super) const HTTP: &str = "hygeia::http";
/// The target of answered gRPC calls.
pub(super) const GRPC: &str = "hygeia::grpc";

/// The trace flag `sampled` (W3C Trace Context, section 3.2.2.5.1).
const SAMPLED: u32 = 1;

/// The message outcomes that make a span an error: the work was not done, or is not known to be done.
const FAILURES: [&str; 10] = [
    "unavailable",
    "unknown",
    "broken",
    "failed",
    "fenced",
    "expired",
    "late",
    "full",
    "busy",
    "dead_letter",
];

/// Returns the span of an event that ended at `at`. Returns `None` if the event belongs to no trace, or is a
/// health check, a scrape or a call to a built-in gRPC service.
pub(super) fn of_event(event: &Event<'_>, at: Timestamp) -> Option<Span> {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let span = match event.metadata().target() {
        MESSAGE => of_message(fields),
        HTTP => of_request(fields),
        GRPC => of_call(fields),
        _ => None,
    };
    let (mut span, took) = span?;
    let end = u64::try_from(at.0).ok()?.saturating_mul(1_000);
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    span.end_time_unix_nano = end;
    span.start_time_unix_nano = end.saturating_sub(took);
    Some(span)
}

fn of_message(fields: Fields) -> Option<(Span, Duration)> {
    let actor = fields.text("actor");
    // The shard number is only in an attribute, because tools group spans by name.
    let role = actor.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
    let (message, outcome) = (fields.text("message"), fields.text("outcome"));
    let kind = match (role, outcome) {
        ("gate", _) => SpanKind::Server,
        ("kafka-bridge", _) => SpanKind::Producer,
        ("analytics", _) if message == "Count" => SpanKind::Consumer,
        (_, "sent" | "passed_on") => SpanKind::Client,
        _ => SpanKind::Internal,
    };
    let mut attributes = vec![text("hygeia.actor", actor), text("hygeia.outcome", outcome)];
    attributes.push(number("hygeia.queue_us", fields.queue_us));
    if let Some(entity) = fields.get("entity") {
        attributes.push(text("hygeia.entity", entity));
    }
    let mut span = fields.span(format!("{role} {message}"), kind)?;
    if FAILURES.contains(&outcome) {
        span.status = failed(outcome);
    }
    span.attributes = attributes;
    Some((span, Duration::from_micros(fields.took_us)))
}

fn of_request(fields: Fields) -> Option<(Span, Duration)> {
    let (method, route) = (fields.text("method"), fields.text("route"));
    if route.starts_with("/health/") || route == "/metrics" {
        return None;
    }
    let mut span = fields.span(format!("{method} {route}"), SpanKind::Server)?;
    span.attributes = vec![
        text("http.request.method", method),
        text("http.route", route),
        number("http.response.status_code", fields.status),
    ];
    if fields.status >= 500 {
        span.status = failed("");
    }
    Some((span, Duration::from_micros(fields.took_us)))
}

fn of_call(fields: Fields) -> Option<(Span, Duration)> {
    let (method, code) = (fields.text("method"), fields.text("code"));
    if method.starts_with("grpc.") {
        return None;
    }
    let mut span = fields.span(method.to_owned(), SpanKind::Server)?;
    span.attributes = vec![text("rpc.system", "grpc"), text("rpc.method", method), text("hygeia.code", code)];
    if matches!(code, "INTERNAL" | "UNAVAILABLE" | "OUTCOME_UNKNOWN" | "DEADLINE_EXCEEDED") {
        span.status = failed(code);
    }
    Some((span, Duration::from_micros(fields.took_us)))
}

fn failed(why: &str) -> Option<Status> {
    Some(Status { message: why.to_owned(), code: StatusCode::Error.into() })
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The fields of an event that go into a span. All other fields are dropped, so that no unknown data leaves
/// the process.
#[derive(Default)]
struct Fields {
    trace: u128,
    span: u64,
    parent: u64,
    status: u64,
    queue_us: u64,
    took_us: u64,
    texts: Vec<(&'static str, String)>,
}

/// The names of the text fields.
const TEXTS: [&str; 7] = ["message", "actor", "entity", "outcome", "method", "route", "code"];

impl Fields {
    fn get(&self, name: &str) -> Option<&str> {
        self.texts.iter().find(|(key, _)| *key == name).map(|(_, text)| text.as_str())
    }

    fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// Returns the span without times and attributes; `None` if the event has no trace.
    fn span(&self, name: String, kind: SpanKind) -> Option<Span> {
        if self.trace == 0 || self.span == 0 {
            return None;
        }
        let parent = if self.parent == 0 { Vec::new() } else { self.parent.to_be_bytes().to_vec() };
        Some(Span {
            trace_id: self.trace.to_be_bytes().to_vec(),
            span_id: self.span.to_be_bytes().to_vec(),
            parent_span_id: parent,
            flags: SAMPLED,
            name,
            kind: kind.into(),
            ..Span::default()
        })
    }

    fn take(&mut self, name: &'static str, value: fmt::Arguments<'_>) {
        let low = |id: u128| u64::try_from(id).unwrap_or_default();
        match name {
            "trace" => self.trace = Hex::read(value),
            "span" => self.span = low(Hex::read(value)),
            "parent" => self.parent = low(Hex::read(value)),
            _ if TEXTS.contains(&name) => self.texts.push((name, value.to_string())),
            _ => {}
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field.name(), format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field.name(), format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "status" => self.status = value,
            "queue_us" => self.queue_us = value,
            "handle_us" | "duration_us" => self.took_us = value,
            _ => {}
        }
    }
}

/// Parses a formatted hexadecimal id without an intermediate string. Zero if the text is not an id.
struct Hex(u128);

impl Hex {
    fn read(value: fmt::Arguments<'_>) -> u128 {
        let mut hex = Hex(0);
        if hex.write_fmt(value).is_ok() { hex.0 } else { 0 }
    }
}

impl Write for Hex {
    fn write_str(&mut self, digits: &str) -> fmt::Result {
        for digit in digits.chars() {
            let digit = digit.to_digit(16).ok_or(fmt::Error)?;
            self.0 = self.0.checked_mul(16).ok_or(fmt::Error)? | u128::from(digit);
        }
        Ok(())
    }
}
