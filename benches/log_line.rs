//! What one log line of an actor message costs whoever logs it, beside the JSON formatter of
//! tracing-subscriber with a non-blocking writer. Lines go to standard output, which is to be sent
//! away; the result goes to standard error: `cargo bench --bench log_line > /dev/null`.
#![allow(clippy::print_stderr, reason = "the result")]

use std::time::{Duration, Instant};

use hygeia::context::{Hop, TraceContext};
use hygeia::telemetry::{self, Format, Output, Settings};
use tracing_subscriber::layer::SubscriberExt;
use uuid::Uuid;

const ROUNDS: usize = 7;
const LINES: u32 = 100_000;

fn log_lines() {
    let trace = TraceContext::root();
    for n in 0..LINES {
        let entity = Some(Uuid::from_u128(u128::from(n)));
        let (queued, handled) = (Duration::from_micros(3), Duration::from_micros(u64::from(n % 100)));
        Hop {
            actor: "patient-17",
            message: "Register",
            entity,
            trace: &trace,
            queued,
            handled,
            outcome: "ok",
        }
        .log();
    }
}

/// The median of the rounds, in nanoseconds a line, with a pause between them to let the writer catch up.
fn median_ns(log: impl Fn()) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            log();
            let ns = started.elapsed().as_secs_f64() * 1e9 / f64::from(LINES);
            std::thread::sleep(Duration::from_millis(200));
            ns
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let off = median_ns(log_lines);
    let theirs = {
        let (writer, _guard) = tracing_appender::non_blocking(std::io::stdout());
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || median_ns(log_lines))
    };
    let settings = Settings { format: Format::Json, buffer_max_bytes: 256 << 20, ..Settings::default() };
    let (handle, guard) = telemetry::init(&settings, "node-1", Output::Stdout)?;
    let ours = median_ns(log_lines);
    let shared = median_ns(|| {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(log_lines);
            }
        });
    }) / 2.0;
    let dropped = handle.dropped_log_lines();
    drop(guard);
    eprintln!("a line of an actor message, ns (median of {ROUNDS} rounds of {LINES}):");
    eprintln!("  filtered out                       {off:8.0}");
    eprintln!("  tracing-subscriber, non-blocking   {theirs:8.0}");
    eprintln!("  ours, one thread                   {ours:8.0}");
    eprintln!("  ours, two threads at once          {shared:8.0}   ({dropped} lines dropped in all)");
    Ok(())
}
