//! Renders the status of a cluster as text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use crate::actors::status::{
    ClusterStatus, EndStatus, LeaseStatus, NodeStatus, SessionStatus, TopicLogStatus,
};

/// A certificate that expires within this time is reported.
const SOON: Duration = Duration::from_secs(30 * 86_400);
/// Nodes check the keys every few seconds. A key that is overdue for this long will not be replaced without
/// help.
const KEY_LATE: Duration = Duration::from_secs(3_600);
/// Shown where a value is unknown.
const UNKNOWN: &str = "-";

/// Renders the tables, one after the other. Writing to a string cannot fail.
pub(super) fn render(status: &ClusterStatus) -> String {
    let mut text = String::new();
    let name = status.cluster.as_deref().map_or("a node alone".to_owned(), |name| format!("cluster {name}"));
    let seen = status.seen_from.as_deref().unwrap_or("the database");
    let _ = writeln!(text, "{name}, seen from {seen}\n");
    text.push_str(&columns(&nodes(status)));
    if !status.leases.is_empty() {
        text.push('\n');
        text.push_str(&columns(&shards(&status.leases)));
    }
    if let Some(outbox) = &status.outbox {
        let oldest =
            outbox.oldest_ms.map(|ms| format!(", the oldest for {}", short(Duration::from_millis(ms))));
        let _ = writeln!(
            text,
            "\noutbox: {} events wait for Kafka{}; {} patients wait for an account",
            outbox.unpublished_rows,
            oldest.unwrap_or_default(),
            outbox.unbilled_rows
        );
        if outbox.parked_events > 0 || outbox.parked_registrations > 0 {
            let (events, registrations) = (outbox.parked_events, outbox.parked_registrations);
            let _ = writeln!(text, "parked: {events} events for Kafka, {registrations} registrations");
        }
    }
    if let Some(log) = &status.topic_log {
        text.push_str(&topic_log(log));
    }
    for node in &status.nodes {
        for line in node.ends.iter().filter_map(|end| ending(&node.name, end)) {
            let _ = writeln!(text, "{line}");
        }
    }
    for unknown in &status.unknown {
        let _ = writeln!(text, "not known: {unknown}");
    }
    text
}

/// Returns the line about a certificate that expires soon or has expired, or about an overdue key.
fn ending(node: &str, end: &EndStatus) -> Option<String> {
    let away = Duration::from_millis(end.in_ms.unsigned_abs());
    let certificate = match end.what.as_str() {
        "node" => "certificate",
        "authority" => "authority of certificates",
        "token-key" => {
            let overdue = end.in_ms < 0 && away >= KEY_LATE;
            return overdue.then(|| {
                format!(
                    "ends: the key for tokens, as {node} knows it, should have been replaced {} ago",
                    short(away)
                )
            });
        }
        _ => return None,
    };
    match end.in_ms {
        ..0 => Some(format!("ends: the {certificate} of {node} has ended {} ago", short(away))),
        _ if away < SOON => Some(format!("ends: the {certificate} of {node} ends in {}", short(away))),
        _ => None,
    }
}

fn topic_log(log: &TopicLogStatus) -> String {
    let TopicLogStatus { no, topic, reason, replayed_rows, .. } = log;
    let age = short(Duration::from_millis(log.age_ms));
    let replay = match (log.replaying, replayed_rows) {
        (true, rows) => format!("; {rows} events of earlier logs put back so far, and more to come"),
        (false, 0) => String::new(),
        (false, rows) => format!("; {rows} events of earlier logs put back"),
    };
    format!("topic {topic}: log {no} for {age} ({reason}){replay}\n")
}

/// One row for each reachable node, and for each node that only appears as the owner of a lease.
fn nodes(status: &ClusterStatus) -> Vec<Vec<String>> {
    let head = ["NODE", "ROLES", "STATE", "UP", "LEASES", "IN FLIGHT", "SESSIONS"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut held: BTreeMap<&str, usize> = BTreeMap::new();
    for lease in status.leases.iter().filter(|lease| !lease.expired) {
        *held.entry(node_of(&lease.owner)).or_default() += 1;
    }
    let mut row = |node: &NodeStatus, state: &str| {
        let roles: Vec<_> = node.roles.iter().map(|role| role.as_str()).collect();
        let sessions = node.sessions.as_deref().map(sessions);
        rows.push(vec![
            node.name.clone(),
            if roles.is_empty() { UNKNOWN.to_owned() } else { roles.join(",") },
            state.to_owned(),
            node.uptime_ms.map_or(UNKNOWN.to_owned(), |ms| short(Duration::from_millis(ms))),
            held.remove(node.name.as_str()).unwrap_or_default().to_string(),
            node.in_flight.map_or(UNKNOWN.to_owned(), |count| count.to_string()),
            sessions.unwrap_or(UNKNOWN.to_owned()),
        ]);
    };
    for node in &status.nodes {
        let state = match (status.seen_from.is_some(), node.draining, node.answers) {
            (false, ..) => "not asked",
            (_, true, _) => "draining",
            (_, _, true) => "live",
            _ => "silent",
        };
        row(node, state);
    }
    let mut others: Vec<&str> = status.leases.iter().map(|lease| node_of(&lease.owner)).collect();
    others.sort_unstable();
    others.dedup();
    for name in others {
        let holds = status.leases.iter().any(|lease| node_of(&lease.owner) == name && !lease.expired);
        if holds && !status.nodes.iter().any(|node| node.name == name) {
            row(&NodeStatus { name: name.to_owned(), ..NodeStatus::default() }, "not in sight");
        }
    }
    rows
}

fn sessions(sessions: &[SessionStatus]) -> String {
    let shown = sessions.iter().map(|session| match (session.round_trip_us, session.state.as_deref()) {
        (_, Some(state)) if state != "live" => format!("{} ({state})", session.peer),
        (Some(us), _) => format!("{} {}", session.peer, short(Duration::from_micros(us))),
        (None, _) => session.peer.clone(),
    });
    let shown: Vec<_> = shown.collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

/// One row for each kind and owner, with ranges of shards of the same epoch: `0-3@2` is four shards at epoch
/// 2.
fn shards(leases: &[LeaseStatus]) -> Vec<Vec<String>> {
    let mut rows = vec![["KIND", "HELD BY", "SHARDS@EPOCH"].map(str::to_owned).to_vec()];
    let mut holders: BTreeMap<(&str, &str), Vec<(u16, i64)>> = BTreeMap::new();
    for lease in leases {
        let holder = if lease.expired { "(nobody)" } else { lease.owner.as_str() };
        holders.entry((&lease.kind, holder)).or_default().push((lease.shard, lease.epoch));
    }
    for ((kind, holder), shards) in holders {
        rows.push(vec![kind.to_owned(), holder.to_owned(), ranges(shards)]);
    }
    rows
}

fn ranges(mut shards: Vec<(u16, i64)>) -> String {
    shards.sort_unstable();
    let mut runs: Vec<(u16, u16, i64)> = Vec::new();
    for (shard, epoch) in shards {
        match runs.last_mut() {
            Some((_, last, of)) if *of == epoch && last.checked_add(1) == Some(shard) => *last = shard,
            _ => runs.push((shard, shard, epoch)),
        }
    }
    let shown = runs.into_iter().map(|(first, last, epoch)| match first == last {
        true => format!("{first}@{epoch}"),
        false => format!("{first}-{last}@{epoch}"),
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// Returns `node-name` of `node-name#boot-id`.
fn node_of(owner: &str) -> &str {
    owner.split_once('#').map_or(owner, |(name, _)| name)
}

/// Formats a duration in one or two units.
fn short(time: Duration) -> String {
    let (seconds, ms) = (time.as_secs(), time.as_millis());
    match seconds {
        0 if ms == 0 => format!("{} µs", time.as_micros()),
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Aligns `rows` in columns that are separated by two blanks.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::status::OutboxStatus;
    use crate::domain::cluster::NodeRole;

    fn lease(kind: &str, shard: u16, owner: &str, epoch: i64) -> LeaseStatus {
        LeaseStatus { kind: kind.into(), shard, owner: owner.into(), epoch, expired: false }
    }

    #[test]
    fn what_ends_soon_or_is_overdue_has_a_line() {
        let line = |what: &str, in_ms| ending("front", &EndStatus { what: what.into(), in_ms });
        let day = 86_400_000;
        assert_eq!(line("node", 31 * day), None);
        assert_eq!(
            line("node", 12 * day).as_deref(),
            Some("ends: the certificate of front ends in 12 d 0 h")
        );
        assert_eq!(
            line("node", -day).as_deref(),
            Some("ends: the certificate of front has ended 1 d 0 h ago")
        );
        let authority = "ends: the authority of certificates of front ends in 1 d 0 h";
        assert_eq!(line("authority", day).as_deref(), Some(authority));
        assert_eq!(line("token-key", day), None, "nodes replace it by themselves");
        assert_eq!(line("token-key", -60_000), None);
        let overdue = line("token-key", -2 * 3_600_000).expect("a line");
        assert!(overdue.contains("should have been replaced 2 h 0 min ago"), "{overdue}");
        let node = NodeStatus {
            name: "front".into(),
            ends: vec![EndStatus { what: "node".into(), in_ms: day }],
            ..NodeStatus::default()
        };
        let status = ClusterStatus { nodes: vec![node], ..ClusterStatus::default() };
        assert!(render(&status).contains("\nends: the certificate of front ends in 1 d 0 h\n"));
    }

    #[test]
    fn the_tables_say_who_does_what() {
        let node = |name: &str, role| NodeStatus {
            name: name.into(),
            owner: format!("{name}#1"),
            roles: vec![role],
            answers: true,
            uptime_ms: Some(61_000),
            in_flight: Some(3),
            sessions: Some(vec![SessionStatus {
                peer: "patient-1".into(),
                round_trip_us: Some(210),
                state: Some("live".into()),
                in_flight: None,
            }]),
            ..NodeStatus::default()
        };
        let silent = NodeStatus {
            answers: false,
            sessions: None,
            in_flight: None,
            uptime_ms: None,
            ..node("patient-1", NodeRole::Patient)
        };
        let mut leases: Vec<_> = (0..4).map(|shard| lease("patient", shard, "patient-1#1", 2)).collect();
        leases.push(lease("patient", 4, "patient-1#1", 3));
        leases.push(lease("billing", 0, "gone#1", 9));
        leases.push(LeaseStatus { expired: true, ..lease("outbox", 0, "bridge#1", 5) });
        let status = ClusterStatus {
            cluster: Some("hygeia".into()),
            seen_from: Some("front".into()),
            nodes: vec![node("front", NodeRole::Front), silent],
            leases,
            outbox: Some(OutboxStatus {
                unpublished_rows: 7,
                oldest_ms: Some(1_500),
                unbilled_rows: 0,
                parked_events: 2,
                parked_registrations: 1,
            }),
            topic_log: Some(TopicLogStatus {
                no: 2,
                topic: "patient".into(),
                age_ms: 61_000,
                reason: "partition 0 is gone".into(),
                replaying: true,
                replayed_rows: 300,
            }),
            unknown: vec!["patient-1: the node does not answer".into()],
        };
        let wanted = "\
cluster hygeia, seen from front

NODE       ROLES    STATE         UP         LEASES  IN FLIGHT  SESSIONS
front      front    live          1 min 1 s  0       3          patient-1 210 µs
patient-1  patient  silent        -          5       -          -
gone       -        not in sight  -          1       -          -

KIND     HELD BY      SHARDS@EPOCH
billing  gone#1       0@9
outbox   (nobody)     0@5
patient  patient-1#1  0-3@2 4@3

outbox: 7 events wait for Kafka, the oldest for 1 s; 0 patients wait for an account
parked: 2 events for Kafka, 1 registrations
topic patient: log 2 for 1 min 1 s (partition 0 is gone); 300 events of earlier logs put back so far, and more to come
not known: patient-1: the node does not answer
";
        assert_eq!(render(&status), wanted);
        assert!(render(&ClusterStatus::default()).starts_with("a node alone, seen from the database\n"));
    }
}
