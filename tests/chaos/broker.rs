//! The broker of a run: librdkafka's mock cluster in a process of its own, so that it can be stopped; or the one
//! that `HYGEIA_TEST_KAFKA` names. The mock tells its clients its own address, so no link can be put before it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hygeia::proto::patient::events::PatientEvent;
use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, Message};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::outside_brokers;

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
        let (bootstrap, topic) = (self.bootstrap.clone(), self.topic.clone());
        let reading = tokio::task::spawn_blocking(move || read_all(&bootstrap, &topic));
        reading.await.map_err(|error| error.to_string())?
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

/// How long the topic is read at most.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

fn read_all(bootstrap: &str, topic: &str) -> Result<Vec<PatientEvent>, String> {
    let said = |error: rdkafka::error::KafkaError| error.to_string();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", "hygeia-chaos-reader");
    config.set("fetch.wait.max.ms", "20");
    let consumer: BaseConsumer = config.create().map_err(said)?;
    let metadata = consumer.fetch_metadata(Some(topic), ASK_TIMEOUT).map_err(said)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut list = TopicPartitionList::new();
    let mut missing = BTreeMap::new();
    for partition in 0..i32::try_from(partitions).map_err(|error| error.to_string())? {
        let (low, high) = consumer.fetch_watermarks(topic, partition, ASK_TIMEOUT).map_err(said)?;
        if low > 0 {
            return Err(format!("the broker has dropped the first {low} events of partition {partition}"));
        }
        if high > 0 {
            missing.insert(partition, high);
            list.add_partition_offset(topic, partition, Offset::Beginning).map_err(said)?;
        }
    }
    consumer.assign(&list).map_err(said)?;
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut events = Vec::new();
    while !missing.is_empty() {
        if Instant::now() > deadline {
            return Err(format!("not read to the end in {READ_TIMEOUT:?}: {missing:?}"));
        }
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.map_err(said)?;
        let value = message.payload().ok_or("a message without a value")?;
        events.push(PatientEvent::decode(value).map_err(|error| error.to_string())?);
        if missing.get(&message.partition()).is_some_and(|high| message.offset() + 1 >= *high) {
            missing.remove(&message.partition());
        }
    }
    Ok(events)
}
