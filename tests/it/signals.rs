//! What a node makes of signals, and what it logs of those who only look at it.

use reqwest::StatusCode;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Node, Site, eventually, patient};

#[tokio::test]
async fn sighup_drains_as_sigterm_does_and_the_signals_of_users_are_ignored() {
    let site = Site::fresh();
    let mut node = site.start().await;
    let token = node.login().await;
    for (signal, name) in [(Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2")] {
        node.signal(signal);
        eventually("it says so", || async { node.log().contains(name).then_some(()) }).await;
    }
    assert_eq!(node.get(&token, "/api/patients").await.status(), StatusCode::OK);

    // A registration whose body is on its way when the signal comes.
    let mut connection = TcpStream::connect(node.http_url().trim_start_matches("http://")).await.unwrap();
    let body = patient("hup").to_string();
    let head = format!(
        "POST /api/patients HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nexpect: 100-continue\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut went_on = [0; 25];
    connection.read_exact(&mut went_on).await.unwrap();
    assert!(went_on.starts_with(b"HTTP/1.1 100 Continue"), "{}", String::from_utf8_lossy(&went_on));
    node.signal(Signal::HUP);
    eventually("it stops", || async { node.log().contains("SIGHUP").then_some(()) }).await;
    connection.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let status = node.ended().await;
    assert!(status.success(), "{status:?}:\n{}", node.log());
}

#[tokio::test]
async fn probes_leave_a_line_only_if_they_fail() {
    let line = |log: &str, route: &str| {
        log.lines().find(|line| line.contains(&format!(r#""route":"{route}""#))).map(str::to_owned)
    };
    let (_site, node) = Node::demo().await;
    let token = node.login().await;
    for probe in ["/health/live", "/health/ready", "/metrics"] {
        assert_eq!(node.get(&token, probe).await.status(), StatusCode::OK);
    }
    node.get(&token, "/api/patients").await;
    eventually("a request is logged", || async { line(&node.log(), "/api/patients") }).await;
    for probe in ["/health/live", "/health/ready", "/metrics"] {
        // Those of its start were not answered with 200.
        let told = line(&node.log(), probe).filter(|line| line.contains(r#""status":200"#));
        assert_eq!(told, None);
    }

    let site = Site::bare().set_up().with("HYGEIA__STORE__URL", "postgres://x@127.0.0.1:9/x");
    let node = Node::listening(site.spawn()).await;
    assert_eq!(node.readiness().await, Some(StatusCode::SERVICE_UNAVAILABLE));
    let told = eventually("a failed probe is logged", || async { line(&node.log(), "/health/ready") }).await;
    assert!(told.contains("WARN") && told.contains("503"), "{told}");
}
