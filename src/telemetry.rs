//! Logs, metrics and spans of the process.
//!
//! The logging thread formats a log line into its own buffer and passes the line to one writer thread.
//! Invariants: logging never waits for the output; its memory is bounded; dropped lines are counted and the
//! count is logged; a line contains no line break except at its end. `docs/LOGGING.md` describes the lines.

mod catalogue;
mod filter;
mod line;
mod metrics;
mod otlp;
mod panics;
mod process;
#[cfg(test)]
pub(crate) mod testing;
mod text;
mod writer;

#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::line::{LineLayer, Style};
pub use self::otlp::Exporter;
use self::otlp::SpanLayer;
use self::writer::Queue;

/// How often histograms are aggregated, so that their memory stays bounded even if `/metrics` is never
/// scraped.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The settings of logs and spans.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The format of log lines.
    pub format: Format,
    /// Which lines are written: comma-separated directives `target=level`; a bare level applies to all other
    /// targets. The directives extend built-in ones that keep chatty libraries at `warn`.
    pub filter: String,
    /// The most bytes of lines that wait to be written; further lines are dropped and counted. The writer may
    /// hold as much again.
    pub buffer_max_bytes: usize,
    /// The longest line in bytes; longer lines are cut.
    pub line_max_bytes: usize,
    /// How long the process waits at exit until the last lines are written, and before that until the
    /// collector has accepted the last spans.
    pub flush_max_ms: u64,
    /// The endpoint of a collector that accepts OTLP over gRPC, `http://host:port`. Without it no spans are
    /// created.
    pub otlp: Option<String>,
    /// The most spans that wait for the collector; further spans are dropped and counted.
    pub otlp_spans_max: usize,
    /// The most spans in one call.
    pub otlp_batch_spans_max: usize,
    /// How long spans are collected before they are sent, in milliseconds.
    pub otlp_gather_ms: u64,
    /// The time limit for an answer of the collector, in milliseconds; after it the same spans are sent
    /// again.
    pub otlp_timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            format: Format::Auto,
            filter: "info".to_owned(),
            buffer_max_bytes: 8 * 1024 * 1024,
            line_max_bytes: 16 * 1024,
            flush_max_ms: 2_000,
            otlp: None,
            otlp_spans_max: 16_384,
            otlp_batch_spans_max: 512,
            otlp_gather_ms: 500,
            otlp_timeout_ms: 5_000,
        }
    }
}

impl Settings {
    /// The lowest allowed `line_max_bytes`: the fixed part of a line must fit.
    pub const LINE_MAX_BYTES_MIN: usize = 512;

    /// Returns the keys whose values are not allowed, each with what is allowed.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if let Err(reason) = filter::parse(&self.filter) {
            problems.push(("filter", reason));
        }
        if self.line_max_bytes < Self::LINE_MAX_BYTES_MIN {
            problems.push(("line_max_bytes", format!("at least {} is needed", Self::LINE_MAX_BYTES_MIN)));
        }
        // The closing bytes may exceed the limit of a line.
        if self.buffer_max_bytes < self.line_max_bytes.saturating_mul(2) {
            let reason = format!("at least twice line_max_bytes ({}) is needed", self.line_max_bytes);
            problems.push(("buffer_max_bytes", reason));
        }
        if let Some(problem) = self.otlp.as_deref().and_then(otlp::endpoint_problem) {
            problems.push(("otlp", problem));
        }
        let limits = [
            ("otlp_spans_max", self.otlp_spans_max, 1_000_000),
            ("otlp_batch_spans_max", self.otlp_batch_spans_max, 8_192),
        ];
        for (key, value, most) in limits {
            if !(1..=most).contains(&value) {
                problems.push((key, format!("allowed: 1 to {most}")));
            }
        }
        if !(1..=60_000).contains(&self.otlp_timeout_ms) {
            problems.push(("otlp_timeout_ms", "allowed: 1 to 60000".to_owned()));
        }
        if self.flush_max_ms > 60_000 {
            problems.push(("flush_max_ms", "allowed: 0 to 60000".to_owned()));
        }
        if self.otlp_gather_ms > 60_000 {
            problems.push(("otlp_gather_ms", "allowed: 0 to 60000".to_owned()));
        }
        problems
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `text` on a terminal, otherwise `json`.
    Auto,
    /// One JSON object per line.
    Json,
    /// Text for people; coloured on a terminal unless `NO_COLOR` is set (no-color.org).
    Text,
}

/// The destination of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output, for a node.
    Stdout,
    /// Standard error, for a tool that prints its result on standard output.
    Stderr,
}

impl Output {
    fn style(self, format: Format) -> Style {
        let terminal = match self {
            Output::Stdout => std::io::stdout().is_terminal(),
            Output::Stderr => std::io::stderr().is_terminal(),
        };
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        match format {
            Format::Json => Style::Json,
            Format::Auto if !terminal => Style::Json,
            Format::Auto | Format::Text => Style::Text { colour, compact: terminal },
        }
    }

    fn stream(self) -> Box<dyn Write + Send> {
        match self {
            Output::Stdout => Box::new(std::io::stdout()),
            Output::Stderr => Box::new(std::io::stderr()),
        }
    }
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter does not parse.
    #[error("telemetry.filter: {0}")]
    Filter(String),
    /// The writer thread did not start.
    #[error("the thread that writes log lines did not start: {0}")]
    Thread(#[source] std::io::Error),
    /// Telemetry was already started in this process.
    #[error("telemetry was started twice")]
    Twice,
}

/// The metrics of the process, for `/metrics`. Cloning is cheap.
#[derive(Clone)]
pub struct TelemetryHandle {
    metrics: PrometheusHandle,
    lines: Arc<Queue>,
    /// The exporter, until `exporter` takes it.
    exporter: Arc<otlp::Waiting>,
}

impl TelemetryHandle {
    /// Takes the exporter of spans. Returns `None` if no collector is set or the exporter was already taken.
    /// A node runs the exporter once on its runtime.
    pub fn exporter(&self) -> Option<Exporter> {
        self.exporter.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Renders all metrics in the Prometheus text format, with the process metrics read now. Reads a few
    /// small files of `/proc`, which takes some tens of microseconds.
    pub fn render(&self) -> String {
        process::observe();
        ::metrics::counter!("hygeia_log_lines_dropped_total").absolute(self.lines.dropped_lines());
        self.metrics.render()
    }

    /// Aggregates histograms periodically; never returns. A node spawns this once.
    pub async fn upkeep(self) {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.metrics.run_upkeep();
        }
    }

    /// Returns the number of log lines dropped or lost so far.
    pub fn dropped_log_lines(&self) -> u64 {
        self.lines.dropped_lines()
    }
}

/// Writes the remaining lines when dropped. The process keeps it until exit.
#[must_use = "without it the last lines are lost"]
pub struct Guard {
    lines: Arc<Queue>,
    flush_max: Duration,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.lines.close(self.flush_max);
    }
}

/// Starts logs, metrics and the panic hook. Call it once per process.
///
/// # Errors
/// See `Error`.
pub fn init(settings: &Settings, node: &str, output: Output) -> Result<(TelemetryHandle, Guard), Error> {
    process::started();
    let filter = filter::parse(&settings.filter).map_err(Error::Filter)?;
    let style = output.style(settings.format);
    let lines = Queue::new(settings.buffer_max_bytes);
    let layer = LineLayer::new(style, node, settings.line_max_bytes, lines.clone());
    let notice = layer.dropped_notice();
    writer::spawn(lines.clone(), output.stream(), notice).map_err(Error::Thread)?;
    let metrics = metrics::install().map_err(|_| Error::Twice)?;
    // A tool creates no spans, because its work is not part of a request.
    let endpoint = settings.otlp.as_deref().filter(|_| output == Output::Stdout);
    let exporter = match endpoint.map(|endpoint| SpanLayer::new(settings, endpoint, node)) {
        None => {
            let registry =
                tracing_subscriber::registry().with(filter).with(filter::no_payloads()).with(layer);
            registry.try_init().map_err(|_| Error::Twice)?;
            None
        }
        Some((spans, exporter)) => {
            // The filter applies to lines only. All span events become spans.
            let layer = layer.with_filter(filter.and(filter::no_payloads()));
            let spans = spans.with_filter(filter_fn(otlp::is_span));
            tracing_subscriber::registry().with(layer).with(spans).try_init().map_err(|_| Error::Twice)?;
            Some(exporter)
        }
    };
    panics::install_hook();
    let guard = Guard { lines: lines.clone(), flush_max: Duration::from_millis(settings.flush_max_ms) };
    Ok((TelemetryHandle { metrics, lines, exporter: Arc::new(Mutex::new(exporter)) }, guard))
}
