//! Traces drawn from logs as nodes and log collectors write them.

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn found(log: &str) -> Found {
    let mut found = Found::default();
    found.read(TRACE.parse().expect("an id"), log.as_bytes()).expect("readable");
    found
}

fn drawn(log: &str) -> String {
    let (found, mut out) = (found(log), Vec::new());
    tree::draw(TRACE.parse().expect("an id"), &found.hops, found.left_out, &mut out).expect("room");
    String::from_utf8(out).expect("text")
}

fn message(second: u32, node: &str, actor: &str, span: u64, parent: u64) -> String {
    format!(
        r#"{{"ts":"2026-11-22T12:00:{second:02}.000050Z","level":"INFO","target":"hygeia::message","node":"{node}","msg":"Register","actor":"{actor}","entity":"123e4567-e89b-12d3-a456-426614174000","trace":"{TRACE}","span":"{span:016x}","parent":"{parent:016x}","queue_us":3,"handle_us":50,"outcome":"ok"}}"#
    )
}

#[test]
fn a_request_is_drawn_over_its_nodes_whatever_stands_before_the_lines() {
    let http = format!(
        r#"{{"ts":"2026-11-22T12:00:09.000000Z","level":"INFO","target":"hygeia::http","node":"front","method":"POST","route":"/api/patients","status":201,"trace":"{TRACE}","span":"0000000000000001","parent":"0000000000000000","duration_us":8999990}}"#
    );
    let other = message(1, "front", "x", 99, 0).replace(TRACE, "11111111111111111111111111111111");
    let log = [
        format!("front-1      | {http}"),
        format!("patient-1-1  | {}", message(3, "patient-1", "patient-shard-7", 3, 2)),
        format!("patient-1-1  | {}", message(4, "patient-1", "journal", 4, 3)),
        message(2, "front", "patient-directory", 2, 1),
        format!("bridge-1     | {}", message(8, "bridge", "kafka-bridge", 6, 5)),
        message(5, "front", "a", 7, 1),
        other,
        "no line of ours { \"trace\": 1 }".to_owned(),
    ]
    .join("\n");
    let expected = "\
trace 0af7651916cd43dd8448eb211c80319c: 6 hops on 3 nodes
                                node               at     queued    handled  outcome
POST /api/patients              front           +0 us             8999.9 ms  201
├─ patient-directory Register   front      +1999.9 ms       3 us      50 us  ok
│  └─ patient-shard-7 Register  patient-1  +2999.9 ms       3 us      50 us  ok
│     └─ journal Register       patient-1  +3999.9 ms       3 us      50 us  ok
└─ a Register                   front      +4999.9 ms       3 us      50 us  ok
* kafka-bridge Register         bridge     +7999.9 ms       3 us      50 us  ok
* caused by a hop that is not in these logs
";
    assert_eq!(drawn(&log), expected, "\n{}", drawn(&log));
}

#[test]
fn what_a_client_causes_is_complete_and_an_actor_without_its_cause_is_not() {
    let http = format!(
        r#"{{"ts":"2026-11-22T12:00:01.000000Z","level":"INFO","target":"hygeia::http","node":"front","method":"GET","route":"/x","status":200,"trace":"{TRACE}","span":"0000000000000001","parent":"00000000000000aa","duration_us":5}}"#
    );
    let text = drawn(&http);
    assert!(text.contains("\nGET /x ") && !text.contains('*'), "{text}");
    let text = drawn(&[http, message(2, "n", "a", 2, 170)].join("\n"));
    assert!(text.contains("\nGET /x ") && text.contains("\n* a Register"), "{text}");
}

#[test]
fn causes_in_a_circle_and_a_hop_that_causes_itself_are_drawn_once() {
    let log = [message(1, "n", "a", 1, 2), message(2, "n", "b", 2, 1), message(3, "n", "c", 3, 3)].join("\n");
    let text = drawn(&log);
    for actor in ["a Register", "b Register", "c Register"] {
        assert_eq!(text.matches(actor).count(), 1, "{text}");
    }
}

#[test]
fn a_chain_as_long_as_all_hops_is_drawn_and_more_are_counted() {
    let hops = HOPS_MAX + 5;
    let log: Vec<_> = (1..=hops as u64).map(|n| message(1, "n", "a", n, n - 1)).collect();
    let text = drawn(&log.join("\n"));
    assert!(text.ends_with("5 hops more are not drawn\n"), "{}", &text[text.len() - 80..]);
    assert!(text.lines().all(|line| line.chars().count() < 400));
}

#[test]
fn a_line_without_end_is_skipped() {
    let long = "x".repeat(3 << 20);
    let log = format!("{long}\n{}\n", message(1, "n", "a", 1, 0));
    let found = found(&log);
    assert_eq!((found.hops.len(), found.lines), (1, 2));
}

#[test]
fn a_trace_is_named_by_its_id_or_by_a_traceparent() {
    let id: TraceId = TRACE.parse().expect("an id");
    assert_eq!(format!("00-{TRACE}-b7ad6b7169203331-01").parse(), Ok(id));
    assert_eq!(TRACE.to_uppercase().parse(), Ok(id));
    for bad in ["", "0af7", "00000000000000000000000000000000", "+af7651916cd43dd8448eb211c80319c"] {
        assert!(bad.parse::<TraceId>().is_err(), "{bad}");
    }
}
