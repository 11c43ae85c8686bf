//! Logs, metrics and spans of the process.
//!
//! A log line is formatted by the thread that logs, into a buffer of its own, and handed to one
//! writer thread. Invariants: logging never waits for whoever reads the lines; the memory it takes is
//! bounded; lines that found no room are counted and the count is logged; a line holds no line break
//! but its last. `docs/LOGGING.md` describes the lines.

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

/// How often histograms are folded, so that their memory stays bounded though nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How log lines are written and which.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How a line looks.
    pub format: Format,
    /// Which lines are written: directives `target=level` after commas, a bare level for all other
    /// targets. They go on top of built-in ones that keep chatty libraries at `warn`.
    pub filter: String,
    /// Lines that wait to be written; further ones are dropped and counted. As much again may be on
    /// its way out.
    pub buffer_max_bytes: usize,
    /// The longest line; what is longer is cut.
    pub line_max_bytes: usize,
    /// How long the process waits at its end for the last lines to be written, and before that for the last
    /// spans to be taken.
    pub flush_max_ms: u64,
    /// Where a collector takes spans: OTLP over gRPC, `http://host:port`. Without it none are made.
    pub otlp: Option<String>,
    /// Spans that wait for the collector; further ones are dropped and counted.
    pub otlp_spans_max: usize,
    /// Spans sent at once.
    pub otlp_batch_spans_max: usize,
    /// How long spans gather before they are sent.
    pub otlp_gather_ms: u64,
    /// How long the collector may take to answer; then the same spans are sent again.
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
    /// The shortest `line_max_bytes`: what a line has before its fields must fit.
    pub const LINE_MAX_BYTES_MIN: usize = 512;

    /// What is wrong with single values: the key, and what is allowed.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if let Err(reason) = filter::parse(&self.filter) {
            problems.push(("filter", reason));
        }
        if self.line_max_bytes < Self::LINE_MAX_BYTES_MIN {
            problems.push(("line_max_bytes", format!("at least {} is needed", Self::LINE_MAX_BYTES_MIN)));
        }
        // A line may exceed its limit by what closes it.
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

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `text` on a terminal, else `json`.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people; coloured on a terminal, unless `NO_COLOR` is set (no-color.org).
    Text,
}

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output: a node that serves.
    Stdout,
    /// Standard error: a tool, whose standard output is its result.
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

/// Why telemetry did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter does not parse.
    #[error("telemetry.filter: {0}")]
    Filter(String),
    /// The writer thread did not start.
    #[error("the thread that writes log lines did not start: {0}")]
    Thread(#[source] std::io::Error),
    /// It was started before in this process.
    #[error("telemetry was started twice")]
    Twice,
}

/// The metrics of the process, for `/metrics`. Cloning is cheap.
#[derive(Clone)]
pub struct TelemetryHandle {
    metrics: PrometheusHandle,
    lines: Arc<Queue>,
    /// Until it is taken.
    exporter: Arc<otlp::Waiting>,
}

impl TelemetryHandle {
    /// The one who sends spans, where a collector is set: to be run once by a node that serves, on its runtime.
    pub fn exporter(&self) -> Option<Exporter> {
        self.exporter.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// All metrics in the Prometheus text format, those of the process as of now. It reads a few small
    /// files of `/proc`, some tens of microseconds.
    pub fn render(&self) -> String {
        process::observe();
        ::metrics::counter!("hygeia_log_lines_dropped_total").absolute(self.lines.dropped_lines());
        self.metrics.render()
    }

    /// Folds histograms for ever. To be spawned once by a node that serves.
    pub async fn upkeep(self) {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.metrics.run_upkeep();
        }
    }

    /// How many log lines found no room so far.
    pub fn dropped_log_lines(&self) -> u64 {
        self.lines.dropped_lines()
    }
}

/// Writes the last lines out when it is dropped: the process holds it to its end.
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

/// Starts logs, metrics and the panic hook, once in a process.
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
    // A tool makes no spans: nothing it does is part of a request.
    let endpoint = settings.otlp.as_deref().filter(|_| output == Output::Stdout);
    let exporter = match endpoint.map(|endpoint| SpanLayer::new(settings, endpoint, node)) {
        None => {
            let registry =
                tracing_subscriber::registry().with(filter).with(filter::no_payloads()).with(layer);
            registry.try_init().map_err(|_| Error::Twice)?;
            None
        }
        Some((spans, exporter)) => {
            // Which lines are written does not change which spans are made.
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
