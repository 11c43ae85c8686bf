//! The broker of a run: librdkafka's mock cluster in a process of its own, so that it can be stopped; or the one
//! that `HYGEIA_TEST_KAFKA` names. The mock tells its clients its own address, so no link can be put before it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use hygeia::proto::patient::events::PatientEvent;
use rdkafka::mocking::MockCluster;
use rustix::process::{Pid, Signal, kill_process};

use crate::process::outside_brokers;
use crate::topic;

/// The subcommand that is the broker.
pub(crate) const SUBCOMMAND: &str = "broker";

/// A broker and the names that a run uses there.
pub(crate) struct Broker {
    bootstrap: String,
    topic: String,
    helper: Option<Child>,
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
            return Broker { bootstrap, topic, helper: None };
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
        Broker { bootstrap: line.trim().to_owned(), topic: "patient".into(), helper: Some(helper) }
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
        self.helper.is_some()
    }

    /// Whether it keeps its log, so that it can be killed and started again. The mock keeps nothing.
    pub(crate) fn keeps_its_log(&self) -> bool {
        false
    }

    /// Ends it without a word.
    pub(crate) async fn kill(&self) {}

    /// Starts it again after `kill`, with its log.
    pub(crate) async fn start_again(&self) {}

    /// Connections stay open, nothing answers.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Undoes `pause`.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(helper) = &self.helper {
            kill_process(Pid::from_child(helper), signal).expect("the helper can be signalled");
        }
    }

    /// Every event of the topic, in the order of each partition. Takes what was there when it was asked.
    pub(crate) async fn events(&self) -> Result<Vec<PatientEvent>, String> {
        topic::events(&self.bootstrap, &self.topic).await
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(helper) = &mut self.helper {
            let _ = helper.kill();
            let _ = helper.wait();
        }
    }
}
