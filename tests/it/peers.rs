//! Nodes that find, watch and lose each other, as processes.

mod peer;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use self::peer::{Cluster, Peer};
use crate::harness::eventually;

/// So long that a test that passes has not waited for it.
const NEVER_MS: u64 = 50_000;

async fn all_see_each_other(peers: &[&Peer]) {
    let mut names: Vec<&str> = peers.iter().map(|peer| &*peer.name).collect();
    names.sort_unstable();
    for peer in peers {
        peer.sees(&names).await;
    }
}

/// How often `peer` was without `name` since it first saw it.
fn times_lost(peer: &Peer, name: &str) -> usize {
    let has = |view: &serde_json::Value| {
        view["members"].as_array().is_some_and(|members| members.iter().any(|member| member["name"] == name))
    };
    let views: Vec<bool> = peer.of_kind("view").iter().map(has).collect();
    views.windows(2).filter(|pair| pair[0] && !pair[1]).count()
}

/// Waits until `peer` has lost `name` once.
async fn loses(peer: &Peer, name: &str) {
    let what = format!("{} loses {name}", peer.name);
    eventually(&what, || async { (times_lost(peer, name) == 1).then_some(()) }).await;
}

#[tokio::test]
async fn nodes_see_each_other_and_frames_go_both_ways() {
    let cluster = Cluster::of(&["a", "b", "c"]);
    let (mut a, mut b, c) = (cluster.start("a"), cluster.start("b"), cluster.start("c"));
    all_see_each_other(&[&a, &b, &c]).await;
    let (owner_a, owner_b) = (a.owner_of("a").unwrap(), a.owner_of("b").unwrap());
    a.tell("send b ?from a");
    b.tells("frame", |frame| frame["from"] == *owner_a && frame["body"] == "?from a").await;
    a.tells("frame", |frame| frame["from"] == *owner_b && frame["body"] == "!from a").await;
    b.tell("send a ?from b");
    b.tells("frame", |frame| frame["from"] == *owner_a && frame["body"] == "!from b").await;
    a.tell("sessions");
    a.tells("sessions told", |_| true).await;
    let sessions = a.of_kind("session");
    assert_eq!(sessions.len(), 2, "one for each other node: {sessions:?}");
    assert!(sessions.iter().all(|s| s["state"] == "live" && s["round_trip_us"].is_number()), "{sessions:?}");
    let view = a.of_kind("view").pop().unwrap();
    assert_eq!(view["members"][1]["roles"], json!(["patient"]));
    let log = [a.log(), b.log(), c.log()].concat();
    assert!(!log.contains("from a") && !log.contains("SEND"), "payloads are logged");
}

#[tokio::test]
async fn a_killed_node_is_out_of_sight_at_once_and_back_when_it_starts_again() {
    let cluster = Cluster::of(&["a", "b"]).with("heartbeat_timeout_ms", NEVER_MS);
    let (a, b) = (cluster.start("a"), cluster.start("b"));
    all_see_each_other(&[&a, &b]).await;
    let first = a.owner_of("b").unwrap();
    b.signal(Signal::KILL);
    a.sees(&["a"]).await;
    drop(b);
    let again = cluster.start("b");
    all_see_each_other(&[&a, &again]).await;
    assert_ne!(a.owner_of("b").unwrap(), first);
}

#[tokio::test]
async fn a_frozen_node_is_given_up_and_comes_back_when_it_thaws() {
    let cluster = Cluster::of(&["a", "b", "c"]);
    let (a, b, c) = (cluster.start("a"), cluster.start("b"), cluster.start("c"));
    all_see_each_other(&[&a, &b, &c]).await;
    b.signal(Signal::STOP);
    a.sees(&["a", "c"]).await;
    c.sees(&["a", "c"]).await;
    a.logs("pings in a row were not answered").await;
    b.signal(Signal::CONT);
    all_see_each_other(&[&a, &b, &c]).await;
    assert_eq!((times_lost(&a, "c"), times_lost(&c, "a")), (0, 0), "the others are not disturbed");
}

#[tokio::test]
async fn a_second_node_of_a_live_name_must_leave() {
    let cluster = Cluster::of(&["a", "b", "c"]);
    let (a, b, c) = (cluster.start("a"), cluster.start("b"), cluster.start("c"));
    all_see_each_other(&[&a, &b, &c]).await;
    let second = cluster.join("b", "a");
    second.tells("failed", |event| event["why"].as_str().unwrap().contains("same name")).await;
    second.logs("this one must leave").await;
    a.logs("name_taken").await;
    assert_eq!(a.log_lines("name_taken"), 1, "{}", a.log());
    assert_eq!(a.log_lines("\"claimed\":\"b\""), 1, "{}", a.log());
    for (peer, other) in [(&a, "b"), (&a, "c"), (&b, "a"), (&b, "c"), (&c, "a"), (&c, "b")] {
        assert_eq!(times_lost(peer, other), 0, "{} lost {other}", peer.name);
    }
}

#[tokio::test]
async fn a_new_incarnation_gets_in_as_soon_as_the_old_one_is_given_up() {
    let cluster = Cluster::of(&["a", "b"]);
    let (a, b) = (cluster.start("a"), cluster.start("b"));
    all_see_each_other(&[&a, &b]).await;
    let first = a.owner_of("b").unwrap();
    b.signal(Signal::STOP);
    let second = cluster.join("b", "a");
    eventually("a sees the new one", || async { a.owner_of("b").filter(|owner| *owner != first) }).await;
    all_see_each_other(&[&a, &second]).await;
    b.signal(Signal::CONT);
    b.tells("failed", |_| true).await;
    assert_eq!(times_lost(&second, "a"), 0);
}

#[tokio::test]
async fn a_wrong_secret_and_another_cluster_are_refused() {
    let cluster = Cluster::of(&["a", "b", "c", "d"]);
    let (a, b) = (cluster.start("a"), cluster.start("b"));
    all_see_each_other(&[&a, &b]).await;
    let c = cluster.start_with("c", json!({"secret": "another secret, which is 32 bytes long"}));
    let d = cluster.start_with("d", json!({"name": "elsewhere"}));
    for peer in [&a, &b] {
        peer.logs("the cluster's secret is not the same").await;
        peer.logs("it belongs to another cluster").await;
    }
    c.logs("the cluster's secret is not the same").await;
    d.logs("it belongs to another cluster").await;
    assert_eq!(a.log_lines("the cluster's secret is not the same"), 1, "told once: {}", a.log());
    assert!(c.view() == ["c"] && d.view() == ["d"]);
    all_see_each_other(&[&a, &b]).await;
    assert_eq!((times_lost(&a, "b"), times_lost(&b, "a")), (0, 0));
}

#[tokio::test]
async fn strangers_are_cut_off_and_nobody_is_disturbed() {
    let cluster =
        Cluster::of(&["a", "b"]).with("handshake_timeout_ms", 500).with("connections_pending_max", 2);
    let (a, b) = (cluster.start("a"), cluster.start("b"));
    all_see_each_other(&[&a, &b]).await;
    let address = a.address().await;
    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    };
    let mut garbled = connect();
    garbled.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // A reset is an end as well.
    assert_eq!(garbled.read(&mut [0; 1]).unwrap_or(0), 0);
    a.logs("is not the greeting of a node").await;
    let begun = Instant::now();
    let (mut silent, mut dripping, mut third) = (connect(), connect(), connect());
    dripping.write_all(b"HY").unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap_or(0), 0, "the oldest makes room, at once");
    assert!(begun.elapsed() < Duration::from_millis(450), "{:?}", begun.elapsed());
    for stream in [&mut dripping, &mut third] {
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    }
    assert!(begun.elapsed() >= Duration::from_millis(400), "the limit was waited for");
    a.logs("it took too long").await;
    a.logs("have not said who they are").await;
    assert_eq!(a.log_lines("is not the greeting of a node"), 1);
    assert_eq!((times_lost(&a, "b"), times_lost(&b, "a")), (0, 0));
}

#[tokio::test]
async fn an_oversized_frame_ends_the_session_of_its_sender_alone() {
    let cluster = Cluster::of(&["a", "b", "c"]);
    let (a, mut b, c) = (cluster.start("a"), cluster.start("b"), cluster.start("c"));
    all_see_each_other(&[&a, &b, &c]).await;
    b.tell("flood a 60000");
    a.tells("frame", |frame| frame["bytes"] == 60_000).await;
    b.tell("flood a 65536");
    a.logs("and 65536 are the most (frame_max_bytes)").await;
    loses(&a, "b").await;
    all_see_each_other(&[&a, &b, &c]).await;
    assert_eq!((times_lost(&a, "c"), times_lost(&c, "a"), times_lost(&c, "b")), (0, 0, 0));
}

#[tokio::test]
async fn a_node_whose_links_fail_starts_them_again() {
    let cluster = Cluster::of(&["a", "b", "c"]);
    let (mut a, mut b, mut c) = (cluster.start("a"), cluster.start("b"), cluster.start("c"));
    all_see_each_other(&[&a, &b, &c]).await;
    b.tell("fail");
    b.logs("an actor ended unasked; it restarts").await;
    // The node itself may see both as one change.
    loses(&a, "b").await;
    loses(&c, "b").await;
    all_see_each_other(&[&a, &b, &c]).await;
    assert_eq!((times_lost(&a, "c"), times_lost(&c, "a")), (0, 0));
    c.tell("send b ?still");
    c.tells("frame", |frame| frame["body"] == "!still").await;
    a.tell("send b ?still");
    a.tells("frame", |frame| frame["body"] == "!still").await;
}

#[tokio::test]
async fn a_frame_that_breaks_its_reader_ends_that_session_alone() {
    let cluster = Cluster::of(&["a", "b", "c"]);
    let (mut a, b, c) = (cluster.start("a"), cluster.start("b"), cluster.start("c"));
    all_see_each_other(&[&a, &b, &c]).await;
    a.tell("send b fail");
    loses(&a, "b").await;
    all_see_each_other(&[&a, &b, &c]).await;
    a.tell("send b ?still");
    a.tells("frame", |frame| frame["body"] == "!still").await;
    assert_eq!((times_lost(&b, "c"), times_lost(&c, "b")), (0, 0));
    assert_eq!(b.log_lines("an actor ended unasked"), 0);
}

#[tokio::test]
async fn a_node_that_is_about_to_leave_says_so() {
    let cluster = Cluster::of(&["a", "b"]).with("heartbeat_interval_ms", NEVER_MS);
    let (mut a, b) = (cluster.start("a"), cluster.start("b"));
    all_see_each_other(&[&a, &b]).await;
    a.tell("drain");
    b.sees(&["a (draining)", "b"]).await;
    a.sees(&["a (draining)", "b"]).await;
    a.tell("stop");
    b.sees(&["b"]).await;
    a.sees(&["a (draining)"]).await;
}

#[tokio::test]
async fn who_is_not_in_the_list_joins_by_one_node_and_meets_all() {
    let cluster = Cluster::of(&["a", "b", "c"]);
    let (a, b, c) = (cluster.start("a"), cluster.start("b"), cluster.start("c"));
    all_see_each_other(&[&a, &b, &c]).await;
    let by_a = cluster.join("j", "a");
    let by_b = cluster.join("k", "b");
    all_see_each_other(&[&a, &b, &c, &by_a, &by_b]).await;
    // Whoever they see first, each two have one session, and it stays.
    let mut peers = [a, b, c, by_a, by_b];
    for peer in &mut peers {
        peer.tell("sessions");
        peer.tells("sessions told", |_| true).await;
        let live = peer.of_kind("session").iter().filter(|session| session["state"] == "live").count();
        assert_eq!(live, 4, "{}", peer.name);
        assert!(peer.log_lines("out of sight") == 0, "{}", peer.log());
    }
}

#[tokio::test]
async fn with_certificates_only_their_owners_get_in() {
    let cluster = Cluster::of(&["a", "b", "c"]);
    let made = |directory: &str, nodes: &str| {
        let out = cluster.path().join(directory);
        let program = std::process::Command::new(env!("CARGO_BIN_EXE_hygeia"))
            .args(["certs", "--nodes", nodes, "--out"])
            .arg(&out)
            .output();
        assert!(program.unwrap().status.success());
        out
    };
    let (ours, others) = (made("ours", "a,b,c,j.nodes.test"), made("others", "c"));
    let tls = |authority: &std::path::Path, of: &std::path::Path, name: &str| {
        let file = |directory: &std::path::Path, name: String| directory.join(name).display().to_string();
        json!({"tls": {
            "ca_file": file(authority, "ca.pem".into()),
            "cert_file": file(of, format!("{name}.pem")),
            "key_file": file(of, format!("{name}.key")),
            "allowed_suffix": ".nodes.test",
        }})
    };
    let a = cluster.start_with("a", tls(&ours, &ours, "a"));
    let b = cluster.start_with("b", tls(&ours, &ours, "b"));
    all_see_each_other(&[&a, &b]).await;
    let of_others = cluster.start_with("c", tls(&others, &others, "c"));
    of_others.logs("a node cannot be reached").await;
    a.logs("a node cannot be reached").await;
    drop(of_others);
    // It shows the certificate of another node.
    let disguised = cluster.start_with("c", tls(&ours, &ours, "b"));
    a.logs("not that of its certificate").await;
    b.logs("not that of its certificate").await;
    drop(disguised);
    // Without TLS nothing is understood.
    let plain = cluster.start("c");
    plain.logs("a node cannot be reached").await;
    drop(plain);
    let c = cluster.start_with("c", tls(&ours, &ours, "c"));
    let j = cluster.join_with("j", tls(&ours, &ours, "j.nodes.test"), "a");
    all_see_each_other(&[&a, &b, &c, &j]).await;
    assert_eq!((times_lost(&a, "b"), times_lost(&b, "a")), (0, 0));
}

#[tokio::test]
async fn without_tls_only_loopback_is_listened_on() {
    let cluster = Cluster::of(&["a"]);
    let a = cluster.start_with("a", json!({"listen": "0.0.0.0:0"}));
    a.tells("refused", |event| event["why"].as_str().unwrap().contains("cluster.tls")).await;
}
