//! Reads while others hold connections and send their heads a byte a second: many more of them than the node takes.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::load::{self, Outcome, Task, Work};
use crate::node::Site;
use crate::report::{Reach, Report, Row};
use crate::stats::{Spread, by_turns, median};
use crate::yardstick::PatientView;
use crate::{Effort, Result, say};

/// Connections that send slowly.
const SLOW: usize = 2_000;
/// Connections that ask and are answered.
const READERS: usize = 8;
const PATIENTS: usize = 100;

/// The 99th percentile of reads with the slow ones and without, by turns, at one node.
pub(crate) async fn run(effort: Effort, report: &mut Report) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let node = Site::embedded()?.start().await?;
    let token = node.token().await?;
    let task = |work, measured: Option<Duration>| Task {
        address: node.http,
        token: token.clone(),
        connections: READERS,
        measured_ms: measured.and_then(|time| u64::try_from(time.as_millis()).ok()),
        work,
    };
    load::run(task(Work::Post { tag: "hostile".into(), count: PATIENTS }, None)).await?;
    let patients: Vec<PatientView> = node.patients(&token, PATIENTS).await?;
    let paths: Vec<String> = patients.iter().map(|p| format!("/api/patients/{}", p.id)).collect();
    let reads = |measured| load::run(task(Work::Get { paths: paths.clone() }, Some(measured)));
    node.quiet().await?;
    reads(Duration::from_secs(1)).await?;
    let besieged = async |_| {
        let slow = besiege(node.http);
        // Until all have come, and the node is full.
        sleep(Duration::from_secs(3)).await;
        let outcome = reads(effort.measured).await?;
        drop(slow);
        node.quiet().await?;
        say(&format!("beside {SLOW} slow ones: p99 {:.0} us", outcome.p99_us));
        Result::Ok(outcome)
    };
    let alone = async |_| {
        let outcome = reads(effort.measured).await?;
        say(&format!("alone: p99 {:.0} us", outcome.p99_us));
        Result::Ok(outcome)
    };
    let (beset, quiet) = by_turns(effort.rounds, besieged, alone).await?;
    let p99s = |outcomes: &[Outcome]| outcomes.iter().map(|o| o.p99_us).collect::<Vec<_>>();
    let p99 = |outcomes: &[Outcome]| median(&p99s(outcomes));
    let rate = |outcomes: &[Outcome]| median(&outcomes.iter().map(Outcome::rate).collect::<Vec<_>>());
    let first = |outcomes: &[Outcome]| {
        let us = median(&outcomes.iter().map(|o| o.first_answer_us).collect::<Vec<_>>());
        format!("a new connection's first answer after {:.0} ms", us / 1e3)
    };
    report.add(Row {
        what: format!(
            "p99 of GET by id beside {SLOW} connections that send a byte a second ({READERS} readers)"
        ),
        beside: "the same node without them".into(),
        ours: format!("{:.0}/s, p99 {:.0} us; {}", rate(&beset), p99(&beset), first(&beset)),
        yardstick: format!("{:.0}/s, p99 {:.0} us; {}", rate(&quiet), p99(&quiet), first(&quiet)),
        ratio: Spread::of_ratios(&p99s(&beset), &p99s(&quiet)),
        reach: Some(Reach::AtMost(2.0)),
    });
    node.stop().await
}

/// Slow connections to `address`, until this is dropped. One that is ended comes again.
fn besiege(address: SocketAddr) -> JoinSet<()> {
    (0..SLOW).map(|_| async move { while send_slowly(address).await.is_err() {} }).collect()
}

/// Ends when the connection does.
async fn send_slowly(address: SocketAddr) -> std::io::Result<()> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(b"GET /health/live HTTP/1.1\r\nx-slow: ").await?;
    loop {
        let second = sleep(Duration::from_secs(1));
        tokio::select! {
            // Nothing is ever sent to us but an end.
            _ = connection.read_u8() => return Err(std::io::ErrorKind::ConnectionAborted.into()),
            () = second => connection.write_all(b"x").await?,
        }
    }
}
