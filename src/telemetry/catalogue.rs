//! Every metric that the program exports, with its meaning: the `# HELP` text. A test compares this list with
//! the source, so that every exported metric is described and every described metric exists.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A counter without labels. It exists from the start, at zero.
    Counter,
    /// A counter with labels. Each combination of label values exists from its first event, or from the start
    /// of its part.
    LabelledCounter,
    /// A value that rises and falls.
    Gauge,
    /// A histogram whose buckets depend on the unit at the end of its name: see `metrics::recorder`.
    Histogram,
}

/// Name, form and meaning.
pub(super) type Metric = (&'static str, Form, &'static str);

use Form::{Counter, Gauge, Histogram, LabelledCounter};

/// All metrics, by part and name.
pub(super) const METRICS: &[Metric] = &[
    // The process.
    (
        "hygeia_log_lines_dropped_total",
        Counter,
        "Log lines that found no room in the buffer, or could not be written",
    ),
    ("hygeia_otlp_spans_exported_total", Counter, "Spans that the collector took"),
    ("hygeia_otlp_spans_dropped_total", Counter, "Spans that found no room, or were refused"),
    ("hygeia_panics_total", Counter, "Panics, caught or not"),
    ("hygeia_uptime_seconds", Gauge, "Since the process started its telemetry"),
    ("process_resident_memory_bytes", Gauge, "Resident memory"),
    ("process_open_fds", Gauge, "Open file descriptors"),
    ("process_cpu_seconds_total", Counter, "User and system time, whole seconds"),
    // Health.
    ("hygeia_node_ready", Gauge, "1 while no part keeps the node from serving, as /health/ready says"),
    ("hygeia_part_ready", Gauge, "1 while this part works; 0 also where it stands by"),
    ("hygeia_actor_restarts_total", LabelledCounter, "Actors that failed and were started again"),
    (
        "hygeia_certificate_end_timestamp_seconds",
        Gauge,
        "When the certificate between nodes, or the first of its authorities, ends: seconds since 1970; infinite without",
    ),
    ("hygeia_clock_skew_seconds", Gauge, "The node's wall clock less the database's, as far as it is known"),
    // HTTP.
    ("hygeia_http_connections", Gauge, "Open HTTP connections"),
    (
        "hygeia_http_connections_ended_total",
        Counter,
        "Connections ended to make room: they had waited the longest for a request",
    ),
    ("hygeia_http_in_flight", Gauge, "HTTP requests being worked on, of those that admission counts"),
    ("hygeia_http_requests_total", LabelledCounter, "HTTP requests answered, by route and class of status"),
    ("hygeia_http_request_duration_seconds", Histogram, "From the head of an HTTP request to its answer"),
    ("hygeia_http_failures_total", LabelledCounter, "HTTP requests that failed, by the code of the problem"),
    // gRPC.
    ("hygeia_grpc_connections", Gauge, "Open gRPC connections"),
    (
        "hygeia_grpc_connections_flooded_total",
        Counter,
        "gRPC connections ended because of a flood of PING or SETTINGS frames",
    ),
    ("hygeia_grpc_connections_refused_total", Counter, "gRPC connections beyond the limit"),
    ("hygeia_grpc_calls_total", LabelledCounter, "gRPC calls answered, by code"),
    ("hygeia_grpc_call_seconds", Histogram, "From a gRPC call to its answer"),
    // Users.
    (
        "hygeia_logins_blocked_total",
        Counter,
        "Logins refused unseen, as too many of the account or address failed",
    ),
    (
        "hygeia_refresh_tokens_reused_total",
        Counter,
        "Refresh tokens shown a second time: each ended a session",
    ),
    (
        "hygeia_sessions_revoked",
        Gauge,
        "Revoked sessions whose tokens are not dead yet, as this node knows them",
    ),
    ("hygeia_sessions_revoked_total", Counter, "Sessions revoked by this node"),
    (
        "hygeia_token_key_due_timestamp_seconds",
        Gauge,
        "When the key for tokens is due to be replaced, if nodes do that: seconds since 1970",
    ),
    ("hygeia_token_keys_made_total", Counter, "Keys for tokens that this node made"),
    // The access audit.
    ("hygeia_audit_batch_entries", Histogram, "Accesses of a batch that were written together"),
    ("hygeia_audit_batch_seconds", Histogram, "How long a batch of accesses took to be durable"),
    ("hygeia_audit_failures_total", Counter, "Batches of accesses that could not be written"),
    (
        "hygeia_audit_months_ahead",
        Gauge,
        "Whole months after this one that the audit has tables for; from PostgreSQL alone",
    ),
    (
        "hygeia_audit_unsealed_total",
        Counter,
        "Rows of the audit that a search met and did not show, because their seals do not fit",
    ),
    (
        "hygeia_audit_rejected_total",
        Counter,
        "Accesses that found no room to wait in: their requests got 503",
    ),
    (
        "hygeia_logins_total",
        LabelledCounter,
        "Logins by outcome: ok, or the code of the refusal; a refused old password counts as a refused login",
    ),
    // Requests to actors.
    ("hygeia_asks_unanswered", Gauge, "Questions to shards and regions that are not answered yet"),
    ("hygeia_ask_retries_total", LabelledCounter, "Questions asked again, as their shard moved or was away"),
    // Shards and leases.
    ("hygeia_shards", Gauge, "Shards that the cluster has of this kind"),
    ("hygeia_shards_served", Gauge, "Shards that this node serves under a lease that holds"),
    ("hygeia_shards_given_up_total", LabelledCounter, "Shards that stopped here to be handed over"),
    ("hygeia_leases_taken_total", LabelledCounter, "Leases taken, new epochs of shards held included"),
    ("hygeia_leases_renewed_total", LabelledCounter, "Leases renewed"),
    ("hygeia_lease_renewal_failures_total", LabelledCounter, "Renewals that the database did not answer"),
    ("hygeia_leases_lost_total", LabelledCounter, "Leases that another owner took, or may have"),
    // The journal.
    ("hygeia_journal_waiting_rows", Gauge, "Changes that wait for a transaction"),
    ("hygeia_journal_transactions", Gauge, "Transactions in flight"),
    ("hygeia_journal_batch_rows", Histogram, "Changes in one transaction"),
    ("hygeia_journal_commit_seconds", Histogram, "From the begin of a transaction to the end of its commit"),
    ("hygeia_journal_rejected_total", LabelledCounter, "Changes refused, as the queue was full"),
    // The outbox.
    ("hygeia_outbox_slice_held", Gauge, "1 while this node works on the outbox in this role"),
    ("hygeia_outbox_unpublished_rows", Gauge, "Events that wait for Kafka"),
    ("hygeia_outbox_unbilled_rows", Gauge, "Patients that wait for an account"),
    ("hygeia_outbox_age_seconds", Gauge, "Age of the oldest event that waits for Kafka"),
    (
        "hygeia_outbox_unreadable_total",
        LabelledCounter,
        "Events that cannot be read; each holds its patient back",
    ),
    (
        "hygeia_outbox_parked_rows",
        Gauge,
        "Rows that cannot be read or fail again and again, by queue; each holds its patient back",
    ),
    ("hygeia_kafka_logs_begun_total", Counter, "Times that the topic was found to have another log"),
    ("hygeia_bridge_replayed_total", Counter, "Events published again that an earlier log had"),
    ("hygeia_bridge_window_rows", Gauge, "Events in hand: waiting, at the producer, or not yet marked"),
    ("hygeia_bridge_published_total", Counter, "Events that the broker took"),
    ("hygeia_bridge_failed_total", Counter, "Events that the broker did not take; they are tried again"),
    ("hygeia_bridge_batch_rows", Histogram, "Events handed to the producer at once"),
    ("hygeia_bridge_publish_seconds", Histogram, "From handing a batch to the producer to its last answer"),
    (
        "hygeia_kafka_producers_replaced_total",
        Counter,
        "Producers that failed for good, or delivered nothing, and were replaced",
    ),
    ("hygeia_billing_relay_billed_total", Counter, "Patients whose account was opened"),
    ("hygeia_billing_relay_failed_total", LabelledCounter, "Accounts that could not be opened yet, by code"),
    ("hygeia_billing_relay_waiting_rows", Gauge, "Patients in the relay's window that wait for an account"),
    // Analytics.
    (
        "hygeia_analytics_lag_events",
        Gauge,
        "Events decided and not counted yet; NaN while that cannot be known",
    ),
    (
        "hygeia_analytics_age_seconds",
        Gauge,
        "How long the oldest event of the topic that is not counted has waited; grows while that cannot be known",
    ),
    ("hygeia_analytics_counted_total", Counter, "Events counted"),
    ("hygeia_analytics_repeated_total", Counter, "Events seen again, without effect"),
    (
        "hygeia_analytics_offsets_beyond_total",
        Counter,
        "Stored offsets found behind the end of the topic, at which reading does not begin",
    ),
    (
        "hygeia_analytics_missed_total",
        Counter,
        "Messages that are not counted: the broker has dropped them, or they came too late",
    ),
    (
        "hygeia_analytics_dead_letters_total",
        Counter,
        "Messages that are no events of ours, put aside with the reason",
    ),
    (
        "hygeia_analytics_skipped_total",
        Counter,
        "Messages that are no events of ours, skipped as the settings say",
    ),
    // Other nodes.
    ("hygeia_peer_sessions", Gauge, "Other nodes in sight"),
    ("hygeia_peer_ping_seconds", Histogram, "A heartbeat there and back"),
    ("hygeia_peer_pings_missed_total", Counter, "Heartbeats that were not answered in time"),
    ("hygeia_peer_dial_failures_total", LabelledCounter, "Nodes that could not be reached, by reason"),
    ("hygeia_peer_refused_total", LabelledCounter, "Connections of nodes that were turned away, by reason"),
    ("hygeia_link_unanswered", Gauge, "Requests sent to other nodes and not answered yet"),
    ("hygeia_link_frames_total", Counter, "Frames sent to other nodes"),
    ("hygeia_link_items_total", Counter, "Requests, replies and hints in these frames"),
    ("hygeia_link_refused_total", Counter, "Requests not sent, as too much was unanswered"),
    ("hygeia_link_dropped_total", Counter, "Requests whose answer was lost with the session"),
    ("hygeia_link_frames_late_total", Counter, "Frames of sessions that had ended; they were dropped"),
    ("hygeia_link_frames_unreadable_total", Counter, "Frames of other nodes that could not be read"),
    ("hygeia_link_requests_unsupported_total", Counter, "Requests of other nodes of a version unknown here"),
    ("hygeia_link_passed_on_total", Counter, "Requests passed on to the node that serves the shard"),
];

/// Registers all descriptions and sets the counters without labels to zero. So a counter without events is
/// exported as zero, and a rate sees the first event.
pub(super) fn describe() {
    for (name, form, help) in METRICS {
        let (name, unit) = (*name, unit(name));
        match (form, unit) {
            (Counter | LabelledCounter, Some(unit)) => describe_counter!(name, unit, *help),
            (Counter | LabelledCounter, None) => describe_counter!(name, *help),
            (Gauge, Some(unit)) => describe_gauge!(name, unit, *help),
            (Gauge, None) => describe_gauge!(name, *help),
            (Histogram, Some(unit)) => describe_histogram!(name, unit, *help),
            (Histogram, None) => describe_histogram!(name, *help),
        }
        if *form == Counter {
            metrics::counter!(name).absolute(0);
        }
    }
}

/// Returns the unit at the end of a metric's name.
fn unit(name: &str) -> Option<Unit> {
    let stem = name.strip_suffix("_total").unwrap_or(name);
    match stem.rsplit('_').next()? {
        "seconds" => Some(Unit::Seconds),
        "bytes" => Some(Unit::Bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    /// Collects the metric names in the source, each with its macro.
    fn in_source(dir: &Path, found: &mut BTreeMap<String, &'static str>) {
        for entry in std::fs::read_dir(dir).expect("the source") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                in_source(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("catalogue.rs") {
                let text = std::fs::read_to_string(&path).expect("source");
                for form in ["counter!(", "gauge!(", "histogram!("] {
                    for (at, _) in text.match_indices(form) {
                        let rest = text[at + form.len()..].trim_start();
                        let name = rest.strip_prefix('"').and_then(|rest| rest.split('"').next());
                        let name = name.filter(|name| !name.starts_with("test_"));
                        found.extend(name.map(|name| (name.to_owned(), form)));
                    }
                }
            }
        }
    }

    #[test]
    fn every_metric_of_the_source_is_described_and_no_other() {
        let mut found = BTreeMap::new();
        in_source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let macro_of = |form: &Form| match form {
            Counter | LabelledCounter => "counter!(",
            Gauge => "gauge!(",
            Histogram => "histogram!(",
        };
        let described: BTreeMap<String, &str> =
            METRICS.iter().map(|(name, form, _)| ((*name).to_owned(), macro_of(form))).collect();
        assert_eq!(described.len(), METRICS.len(), "a name stands here twice");
        assert_eq!(found, described);
    }

    #[test]
    fn names_say_what_they_are() {
        for (name, form, help) in METRICS {
            let total = name.ends_with("_total");
            assert_eq!(total, matches!(form, Counter | LabelledCounter), "{name}");
            assert!(!help.is_empty() && !help.ends_with('.'), "{name}: {help}");
        }
    }
}
