//! The broker of a run: the one that `HYGEIA_TEST_KAFKA` names; or else a node of Apache Kafka, if `HYGEIA_CHAOS_BROKER`
//! is `apache`; or else librdkafka's mock cluster in a process of its own, so that it can be stopped. Each tells its
//! clients its own address, so no link can be put before it.

#[path = "../kafka/cluster.rs"]
mod kafka;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use hygeia::proto::patient::events::PatientEvent;
use rdkafka::mocking::MockCluster;
use rustix::process::{Pid, Signal, kill_process};

use crate::process::outside_brokers;
use crate::topic;

/// The subcommand that is the broker.
pub(crate) const SUBCOMMAND: &str = "broker";

/// The variable that asks for another broker than the mock.
const BROKER_VARIABLE: &str = "HYGEIA_CHAOS_BROKER";

/// A broker and the names that a run uses there.
pub(crate) struct Broker {
    bootstrap: String,
    topic: String,
    kind: Kind,
}

enum Kind {
    Outside,
    Apache(kafka::Cluster),
    /// The helper process.
    Mock(Child),
}

/// Serves until standard input ends: with whoever started it.
pub(crate) fn serve() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    println!("{}", cluster.bootstrap_servers());
    std::io::stdout().flush().expect("whoever started this reads");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

impl Broker {
    /// Starts one, or takes the one outside.
    pub(crate) fn start() -> Self {
        if let Some(bootstrap) = outside_brokers() {
            let topic = format!("hygeia-chaos-{}", uuid::Uuid::now_v7());
            return Broker { bootstrap, topic, kind: Kind::Outside };
        }
        match std::env::var(BROKER_VARIABLE).as_deref() {
            Ok("apache") => return Self::start_apache(),
            Ok("mock" | "") | Err(_) => {}
            Ok(other) => panic!("{BROKER_VARIABLE}={other}: allowed are apache and mock"),
        }
        let program = std::env::current_exe().expect("this program");
        let mut helper = Command::new(program)
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a helper process");
        let mut line = String::new();
        let output = helper.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("the helper says where it is");
        Broker { bootstrap: line.trim().to_owned(), topic: "patient".into(), kind: Kind::Mock(helper) }
    }

    fn start_apache() -> Self {
        let starting = || tokio::runtime::Handle::current().block_on(kafka::Cluster::start(1));
        let cluster = tokio::task::block_in_place(starting);
        println!("  the broker is Apache Kafka");
        Broker { bootstrap: cluster.bootstrap(), topic: "patient".into(), kind: Kind::Apache(cluster) }
    }

    /// `host:port`
    pub(crate) fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The topic of events; other names are made from it.
    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// Whether it is ours to be stopped.
    pub(crate) fn can_pause(&self) -> bool {
        !matches!(self.kind, Kind::Outside)
    }

    /// Whether it keeps its log, so that it can be killed and started again. The mock keeps nothing.
    pub(crate) fn keeps_its_log(&self) -> bool {
        matches!(self.kind, Kind::Apache(_))
    }

    /// SIGKILL. For a broker that keeps its log.
    pub(crate) fn kill(&self) {
        if let Kind::Apache(cluster) = &self.kind {
            tokio::task::block_in_place(|| cluster.kill(0));
        }
    }

    /// Starts it again after `kill`, with its log, and waits until it serves.
    pub(crate) async fn start_again(&self) {
        if let Kind::Apache(cluster) = &self.kind {
            cluster.begin(0).await;
        }
    }

    /// Connections stay open, nothing answers.
    pub(crate) fn pause(&self) {
        match &self.kind {
            Kind::Outside => {}
            Kind::Apache(cluster) => cluster.pause(0),
            Kind::Mock(helper) => signal(helper, Signal::STOP),
        }
    }

    /// Undoes `pause`.
    pub(crate) fn resume(&self) {
        match &self.kind {
            Kind::Outside => {}
            Kind::Apache(cluster) => cluster.resume(0),
            Kind::Mock(helper) => signal(helper, Signal::CONT),
        }
    }

    /// Every event of the topic, in the order of each partition. Takes what was there when it was asked.
    pub(crate) async fn events(&self) -> Result<Vec<PatientEvent>, String> {
        topic::events(&self.bootstrap, &self.topic).await
    }
}

fn signal(helper: &Child, signal: Signal) {
    kill_process(Pid::from_child(helper), signal).expect("the helper can be signalled");
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Kind::Mock(helper) = &mut self.kind {
            let _ = helper.kill();
            let _ = helper.wait();
        }
    }
}
