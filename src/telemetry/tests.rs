//! Log lines, the bounded queue of the writer, metrics and panics.

use std::io::{self, Write};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::subscriber::with_default;
use tracing_log::log;
use uuid::Uuid;

use super::*;
use crate::context::{Hop, TraceContext};

const FLUSH_MAX: Duration = Duration::from_secs(10);

/// A shared buffer of the written bytes.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the lines that `log` produces.
fn lines(style: Style, line_max_bytes: usize, log: impl FnOnce()) -> Vec<String> {
    let (written, queue) = (Written::default(), Queue::new(1 << 20));
    let layer = LineLayer::new(style, "node-1", line_max_bytes, queue.clone());
    writer::spawn(queue.clone(), Box::new(written.clone()), layer.dropped_notice()).unwrap();
    with_default(tracing_subscriber::registry().with(layer), log);
    queue.close(FLUSH_MAX);
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    text.lines().map(str::to_owned).collect()
}

fn json_line(log: impl FnOnce()) -> Value {
    let lines = lines(Style::Json, 16_384, log);
    assert_eq!(lines.len(), 1, "{lines:?}");
    serde_json::from_str(&lines[0]).unwrap_or_else(|e| panic!("{e}: {}", lines[0]))
}

#[test]
fn a_json_line_has_the_head_and_the_fields_flat() {
    let before = OffsetDateTime::now_utc();
    let mut line = json_line(|| {
        let error = io::Error::other("no\nluck");
        tracing::warn!(target: "hygeia::test", count = 3u64, below = -4i64, share = 0.5, yes = true, nan = f64::NAN,
            big = u128::MAX, text = "say \"hi\"", shown = %"a b", debug = ?Some(1), error = &error as &dyn std::error::Error,
            "done {}", 7)
    });
    let at = OffsetDateTime::parse(line["ts"].as_str().unwrap(), &Rfc3339).unwrap();
    assert!(at >= before - Duration::from_millis(1) && at <= OffsetDateTime::now_utc(), "{at}");
    line.as_object_mut().unwrap().remove("ts");
    let expected = json!({
        "level": "WARN", "target": "hygeia::test", "node": "node-1", "msg": "done 7", "count": 3, "below": -4,
        "share": 0.5, "yes": true, "nan": "NaN", "big": u128::MAX.to_string(), "text": "say \"hi\"", "shown": "a b",
        "debug": "Some(1)", "error": "no\nluck",
    });
    assert_eq!(line, expected);
}

#[test]
fn an_actor_message_has_the_documented_fields_in_their_order() {
    let trace = TraceContext { trace_id: 0xabc, span_id: 0x12, parent_id: 0x34, sampled: true };
    let lines = lines(Style::Json, 16_384, || {
        let entity = Some(Uuid::from_u128(7));
        let (queued, handled) = (Duration::from_micros(5), Duration::from_millis(2));
        Hop {
            actor: "patient-7",
            message: "Register",
            entity,
            trace: &trace,
            queued,
            handled,
            outcome: "ok",
        }
        .log();
    });
    let (_, rest) = lines[0].split_once("Z\",").unwrap();
    assert_eq!(
        rest,
        "\"level\":\"INFO\",\"target\":\"hygeia::message\",\"node\":\"node-1\",\"msg\":\"Register\",\
         \"actor\":\"patient-7\",\"entity\":\"00000000-0000-0000-0000-000000000007\",\
         \"trace\":\"00000000000000000000000000000abc\",\"span\":\"0000000000000012\",\"parent\":\"0000000000000034\",\
         \"queue_us\":5,\"handle_us\":2000,\"outcome\":\"ok\"}"
    );
}

#[test]
fn a_field_named_as_one_of_the_head_does_not_hide_it() {
    let line = json_line(|| tracing::info!(node = "other", ts = 1, msg = "two", level = "x", "one"));
    assert_eq!((&line["node"], &line["node_"]), (&json!("node-1"), &json!("other")));
    assert_eq!((&line["msg"], &line["msg_"]), (&json!("one"), &json!("two")));
    assert_eq!((&line["level_"], &line["ts_"]), (&json!("x"), &json!(1)));
}

#[test]
fn a_text_line_is_readable_and_stays_one_line() {
    let plain = lines(
        Style::Text { colour: false, compact: false },
        16_384,
        || tracing::info!(target: "hygeia::test", id = 7, empty = "", two = "a b", quote = "\"", "hello \"you\"\n\u{1b}[31mred"),
    );
    assert_eq!(plain.len(), 1);
    let (_, rest) = plain[0].split_once("Z ").unwrap();
    assert_eq!(
        rest,
        " INFO hygeia::test: hello \"you\"\\n\\u001b[31mred id=7 empty=\"\" two=\"a b\" quote=\"\\\"\""
    );
    let colour =
        lines(Style::Text { colour: true, compact: false }, 16_384, || tracing::error!(id = 7, "hello"));
    assert!(colour[0].contains("\u{1b}[31mERROR\u{1b}[0m"), "{:?}", colour[0]);
}

#[test]
fn a_line_on_a_terminal_is_short_and_in_columns() {
    let compact = lines(Style::Text { colour: false, compact: true }, 16_384, || {
        tracing::info!(target: "hygeia::actors::kafka_bridge", rows = 7, "published");
        tracing::warn!(target: "hygeia::http", "slow");
        tracing::warn!(target: "hygeia::a_name_longer_than_its_column", "x");
    });
    let (times, rest): (Vec<_>, Vec<_>) =
        compact.iter().map(|line| line.split_at("08:30:00.123".len())).unzip();
    for time in times {
        let form: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(form, "00:00:00.000");
    }
    assert_eq!(
        rest,
        [
            "  INFO kafka_bridge  published rows=7",
            "  WARN http          slow",
            "  WARN a_name_longer_than_its_column x"
        ]
    );
}

#[test]
fn what_comes_through_the_log_crate_keeps_its_target() {
    let line = json_line(|| {
        let record = log::Record::builder()
            .args(format_args!("broker down"))
            .level(log::Level::Warn)
            .target("librdkafka")
            .file(Some("client.rs"))
            .line(Some(74))
            .build();
        log::Log::log(&tracing_log::LogTracer::default(), &record);
    });
    assert_eq!((&line["target"], &line["msg"]), (&json!("librdkafka"), &json!("broker down")));
    assert!(!line.as_object().unwrap().keys().any(|key| key.starts_with("log.")), "{line}");
}

#[test]
fn a_value_that_logs_while_it_is_printed_makes_two_lines() {
    struct Chatty;
    impl std::fmt::Display for Chatty {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            tracing::info!("inner");
            f.write_str("shown")
        }
    }
    // A scoped subscriber does not see the inner event, because `tracing` keeps it from calling itself. A
    // global subscriber sees it. The line must be complete in both cases.
    let lines = lines(Style::Json, 16_384, || tracing::info!(value = %Chatty, "outer"));
    let outer: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(outer["value"], "shown");
}

proptest! {
    #[test]
    fn any_text_makes_one_json_line_that_reads_back(message in any::<String>(), value in any::<String>(), dump in any::<String>()) {
        let line = json_line(|| tracing::info!(value = value.as_str(), dump = ?dump, "{message}"));
        prop_assert_eq!(line["msg"].as_str().unwrap(), message);
        prop_assert_eq!(line["value"].as_str().unwrap(), value);
        prop_assert_eq!(line["dump"].as_str().unwrap(), format!("{dump:?}"));
    }

    #[test]
    fn a_line_is_cut_at_its_limit_and_still_json(sizes in prop::collection::vec(0usize..700, 3), message in ".{0,700}") {
        let texts: Vec<_> = sizes.iter().map(|n| "\"ä\u{1}".chars().cycle().take(*n).collect::<String>()).collect();
        let all = lines(Style::Json, 600, || {
            tracing::info!(a = texts[0], n = 123_456_789u64, b = texts[1], f = 0.25, c = texts[2], "{message}")
        });
        prop_assert_eq!(all.len(), 1);
        prop_assert!(all[0].len() <= 600 + "\",\"cut\":true}".len(), "{} bytes", all[0].len());
        let line: Value = serde_json::from_str(&all[0]).unwrap();
        let whole = ["a", "b", "c"].iter().zip(&texts).all(|(key, text)| line[key] == text.as_str());
        prop_assert_eq!(whole && line["n"] == 123_456_789u64 && line["f"] == 0.25, line.get("cut").is_none());
        prop_assert!(line["n"].is_null() || line["n"] == 123_456_789u64, "a cut number would be another one");
    }
}

/// An output whose writes block until the gate is open.
struct Stuck {
    entered: Sender<()>,
    gate: Arc<(Mutex<bool>, Condvar)>,
    written: Written,
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.entered.send(());
        let open = self.gate.1.wait_while(self.gate.0.lock().unwrap(), |open| !*open).unwrap();
        drop(open);
        self.written.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_beyond_the_bound_are_dropped_counted_and_told_without_waiting() {
    let (entered, has_entered) = channel();
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let (written, queue) = (Written::default(), Queue::new(100));
    let layer = LineLayer::new(Style::Json, "node-1", 4096, queue.clone());
    let out = Stuck { entered, gate: gate.clone(), written: written.clone() };
    writer::spawn(queue.clone(), Box::new(out), layer.dropped_notice()).unwrap();
    let line = |letter: u8| [vec![letter; 49], b"\n".to_vec()].concat();

    queue.push(&line(b'a'));
    has_entered.recv_timeout(FLUSH_MAX).unwrap();
    // The writer is blocked with the first line: two more lines fit, three do not.
    let started = Instant::now();
    (b'b'..=b'f').for_each(|letter| queue.push(&line(letter)));
    assert!(started.elapsed() < Duration::from_secs(1), "a push waited");
    assert_eq!(queue.dropped_lines(), 3);
    assert!(shown_metrics(&queue).contains("\nhygeia_log_lines_dropped_total 3\n"));

    // The end of the process waits at most for the given time.
    queue.close(Duration::from_millis(20));
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    queue.close(FLUSH_MAX);
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    let starts: Vec<_> = text.lines().map(|line| &line[..1]).collect();
    assert_eq!(starts, ["a", "{", "b", "c"], "{text}");
    let notice: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    assert_eq!(
        (&notice["level"], &notice["lines"], &notice["node"]),
        (&json!("WARN"), &json!(3), &json!("node-1"))
    );
}

/// Returns what `/metrics` shows for a process with this queue.
fn shown_metrics(queue: &Arc<Queue>) -> String {
    let recorder = metrics::recorder().unwrap();
    let handle =
        TelemetryHandle { metrics: recorder.handle(), lines: queue.clone(), exporter: Arc::default() };
    ::metrics::with_local_recorder(&recorder, || {
        ::metrics::histogram!("test_wait_seconds").record(0.003);
        ::metrics::histogram!("test_batch_rows").record(3.0);
        handle.render()
    })
}

#[test]
fn metrics_have_the_process_and_buckets_by_unit() {
    process::started();
    let text = shown_metrics(&Queue::new(1_000));
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes") > 1_000_000.0);
    assert!(value("process_open_fds") >= 1.0);
    assert!(value("hygeia_uptime_seconds") > 0.0);
    assert_eq!(value("test_wait_seconds_bucket{le=\"0.0025\"}"), 0.0);
    assert_eq!(value("test_wait_seconds_bucket{le=\"0.005\"}"), 1.0);
    assert_eq!(value("test_batch_rows_bucket{le=\"4\"}"), 1.0);
    assert!(!text.contains("quantile"), "{text}");
}

#[test]
fn a_panic_is_a_line_without_the_values_in_its_message() {
    const THREAD: &str = "panics-on-purpose";
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| match std::thread::current().name() {
        Some(THREAD) => panics::report(info),
        _ => previous(info),
    }));
    let told = |reason: Option<&'static str>| {
        let log = move || match reason {
            Some(reason) => std::panic::panic_any(reason),
            None => panic!("patient {} is unwell", std::hint::black_box("Canary")),
        };
        let run = move || json_line(|| assert!(std::panic::catch_unwind(log).is_err()));
        std::thread::Builder::new().name(THREAD.to_owned()).spawn(run).unwrap().join().unwrap()
    };
    let line = told(Some("fixed"));
    assert_eq!(
        (&line["level"], &line["msg"], &line["reason"]),
        (&json!("ERROR"), &json!("panicked"), &json!("fixed"))
    );
    assert_eq!((&line["target"], &line["thread"]), (&json!("hygeia::panic"), &json!(THREAD)));
    assert!(line["location"].as_str().unwrap().contains("tests.rs:"), "{line}");
    let line = told(None);
    assert!(!line.to_string().contains("Canary") && line["reason"] == "(not shown)", "{line}");
}

#[test]
fn settings_that_cannot_work_are_refused() {
    assert_eq!(Settings::default().problems(), []);
    let keys = |settings: Settings| settings.problems().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(Settings { filter: "hygeia=loud".into(), ..Settings::default() }), ["filter"]);
    assert_eq!(keys(Settings { line_max_bytes: 511, ..Settings::default() }), ["line_max_bytes"]);
    assert_eq!(
        keys(Settings { buffer_max_bytes: 32 * 1024 - 1, ..Settings::default() }),
        ["buffer_max_bytes"]
    );
    for endpoint in
        ["collector:4317", "https://collector:4317", "http://", "http://collector:4317/v1/traces", ""]
    {
        assert_eq!(
            keys(Settings { otlp: Some(endpoint.into()), ..Settings::default() }),
            ["otlp"],
            "{endpoint}"
        );
    }
    assert!(keys(Settings { otlp: Some("http://collector:4317".into()), ..Settings::default() }).is_empty());
    assert_eq!(keys(Settings { otlp_spans_max: 0, ..Settings::default() }), ["otlp_spans_max"]);
    assert_eq!(
        keys(Settings { otlp_batch_spans_max: 8_193, ..Settings::default() }),
        ["otlp_batch_spans_max"]
    );
    assert_eq!(keys(Settings { otlp_timeout_ms: 0, ..Settings::default() }), ["otlp_timeout_ms"]);
    assert_eq!(keys(Settings { otlp_gather_ms: 60_001, ..Settings::default() }), ["otlp_gather_ms"]);
}

#[test]
fn an_output_that_is_gone_costs_lines_and_nothing_else() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let queue = Queue::new(1_000);
    writer::spawn(queue.clone(), Box::new(Gone), Box::new(|_| b"told\n".to_vec())).unwrap();
    queue.push(b"one\ntwo\n");
    queue.close(FLUSH_MAX);
    assert_eq!(queue.dropped_lines(), 2);
    queue.push(b"after the end\n");
    assert_eq!(queue.dropped_lines(), 3);
}

#[test]
fn a_full_disk_is_told_as_what_it_is_once_there_is_room() {
    /// Full for the first write, and for the notice about it.
    struct Disk(usize, Written);
    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += 1;
            if self.0 <= 2 { Err(io::ErrorKind::StorageFull.into()) } else { self.1.write(bytes) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (written, queue) = (Written::default(), Queue::new(1_000));
    let layer = LineLayer::new(Style::Json, "node-1", 4096, queue.clone());
    queue.push(b"one\ntwo\n");
    writer::spawn(queue.clone(), Box::new(Disk(0, written.clone())), layer.dropped_notice()).unwrap();
    let until = Instant::now() + FLUSH_MAX;
    while queue.dropped_lines() < 2 {
        assert!(Instant::now() < until, "never written");
        std::thread::yield_now();
    }
    queue.push(b"{}\n");
    queue.close(FLUSH_MAX);
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    let notice: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    assert_eq!(notice["msg"], "log lines lost: they could not be written: no storage space");
    assert_eq!((&notice["lines"], text.lines().count()), (&2.into(), 2), "{text}");
}

#[test]
fn many_threads_lose_nothing_and_mix_nothing_below_the_bound() {
    let all = {
        let (written, queue) = (Written::default(), Queue::new(1 << 20));
        let layer = LineLayer::new(Style::Json, "node-1", 4096, queue.clone());
        writer::spawn(queue.clone(), Box::new(written.clone()), layer.dropped_notice()).unwrap();
        let dispatch = tracing::Dispatch::new(tracing_subscriber::registry().with(layer));
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let dispatch = dispatch.clone();
                scope.spawn(move || {
                    tracing::dispatcher::with_default(&dispatch, || {
                        for n in 0..500u64 {
                            tracing::info!(thread, n, "line");
                        }
                    });
                });
            }
        });
        queue.close(FLUSH_MAX);
        assert_eq!(queue.dropped_lines(), 0);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    };
    let mut next = [0u64; 4];
    for line in all.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let thread = usize::try_from(line["thread"].as_u64().unwrap()).unwrap();
        assert_eq!(line["n"], next[thread], "the order within a thread");
        next[thread] += 1;
    }
    assert_eq!(next, [500; 4]);
}
