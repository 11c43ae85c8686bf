//! Apache Kafka for tests: one or more nodes of a cluster (KRaft, each of them broker and controller) as processes,
//! on loopback ports of their own, in a temporary directory. `tests/setup.sh kafka` fetches what they run from.
//!
//! No node outlives the test process, however that ends: a small shell process (the reaper) reads from a pipe whose
//! other end this process holds. When the pipe closes, the reaper kills the nodes and removes the directory.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test stops at its first surprise")]

pub mod topic;

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::OnceCell;

use crate::process::{outside_brokers, within};

/// How long a node may take to start. A busy machine needs many times the three seconds of an idle one.
const START_PATIENCE: Duration = Duration::from_secs(180);
/// How long a node may take to end after SIGTERM. It first hands its partitions over.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
/// Lines of a node's log that are shown when it does not start.
const LOG_LINES: usize = 30;

/// The directory of the jars and of the file with Java's arguments: beside what cargo builds.
fn installed() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    built.parent().expect("the target directory").join("kafka")
}

/// Whether a cluster can be started here.
pub fn can_start() -> bool {
    installed().join("installed.xml").exists()
}

/// Where a broker is, for tests that only speak to it: the one that `HYGEIA_TEST_KAFKA` names, or a node that all tests
/// of this process share. Topics and groups there need names of a test's own.
pub async fn any() -> String {
    static SHARED: OnceCell<Cluster> = OnceCell::const_new();
    match outside_brokers() {
        Some(brokers) => brokers,
        None => SHARED.get_or_init(|| Cluster::start(1)).await.bootstrap(),
    }
}

/// A cluster of this process's own. Its nodes are numbered from 0.
pub struct Cluster {
    directory: PathBuf,
    cluster_id: String,
    nodes: Vec<Node>,
    reaper: Child,
}

struct Node {
    /// Its number in Kafka's configuration: from 1.
    id: usize,
    directory: PathBuf,
    port: u16,
    process: Mutex<Option<Child>>,
}

impl Cluster {
    /// Starts `count` nodes, and waits until all of them serve.
    ///
    /// # Panics
    /// Kafka is not installed, or a node does not start.
    pub async fn start(count: usize) -> Self {
        assert!(
            can_start(),
            "Apache Kafka is not at {}: run `tests/setup.sh kafka`, which fetches it with Maven",
            installed().display()
        );
        let directory =
            tempfile::Builder::new().prefix("hygeia-kafka-").tempdir().expect("a directory").keep();
        let reaper = start_reaper(&directory);
        let mut taken = Vec::new();
        let ports: Vec<_> = (0..count).map(|_| (free_port(&mut taken), free_port(&mut taken))).collect();
        let nodes = (0..count).map(|number| Node::prepare(&directory, number, &ports)).collect();
        let cluster = Cluster { directory, cluster_id: new_cluster_id(), nodes, reaper };
        for node in &cluster.nodes {
            node.format(&cluster.cluster_id);
            node.begin();
        }
        for number in 0..count {
            cluster.serves(number).await;
        }
        cluster
    }

    /// Where clients begin: `host:port`, with commas between several.
    pub fn bootstrap(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().map(Node::address).collect();
        addresses.join(",")
    }

    /// Starts a node that was stopped or killed, with what it has on its disk, and waits until it serves.
    pub async fn begin(&self, number: usize) {
        self.nodes[number].begin();
        self.serves(number).await;
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&self, number: usize) {
        self.nodes[number].end(Signal::TERM);
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&self, number: usize) {
        self.nodes[number].end(Signal::KILL);
    }

    /// SIGSTOP: connections stay open, nothing answers.
    pub fn pause(&self, number: usize) {
        self.nodes[number].signal(Signal::STOP);
    }

    /// Undoes `pause`.
    pub fn resume(&self, number: usize) {
        self.nodes[number].signal(Signal::CONT);
    }

    /// Empties the volume of a node that was stopped or killed, under the same cluster id: what a container does that
    /// has lost its volume.
    pub fn wipe(&self, number: usize) {
        let node = &self.nodes[number];
        std::fs::remove_dir_all(node.directory.join("data")).expect("removed");
        node.format(&self.cluster_id);
    }

    /// The number of the node that leads partition 0 of a topic.
    pub async fn leader(&self, topic: &str) -> usize {
        let (bootstrap, topic) = (self.bootstrap(), topic.to_owned());
        let ask = move || -> Option<usize> {
            let metadata = client(&bootstrap).fetch_metadata(Some(&topic), ASK_TIMEOUT).ok()?;
            let partitions = metadata.topics().first()?.partitions();
            usize::try_from(partitions.iter().find(|partition| partition.id() == 0)?.leader())
                .ok()?
                .checked_sub(1)
        };
        let asked = || async { tokio::task::spawn_blocking(ask.clone()).await.expect("asked") };
        within(START_PATIENCE, asked).await.expect("partition 0 has a leader")
    }

    /// Awaits that a node answers as a registered broker.
    async fn serves(&self, number: usize) {
        let node = &self.nodes[number];
        let (address, id) = (node.address(), i32::try_from(node.id).expect("few"));
        let registered = move || {
            let metadata = client(&address).fetch_metadata(None, ASK_TIMEOUT).ok()?;
            metadata.brokers().iter().any(|broker| broker.id() == id).then_some(())
        };
        let serves = within(START_PATIENCE, || async {
            assert!(node.runs(), "a node of Kafka has ended:\n{}", node.log_end());
            tokio::task::spawn_blocking(registered.clone()).await.expect("asked")
        });
        assert!(
            serves.await.is_some(),
            "Kafka does not serve within {START_PATIENCE:?}:\n{}",
            node.log_end()
        );
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The reaper's pipe closes, and it does the rest. Waited for, so that a test leaves nothing behind.
        drop(self.reaper.stdin.take());
        self.reaper.wait().ok();
        for node in &self.nodes {
            if let Some(mut child) = node.process.lock().unwrap().take() {
                child.wait().ok();
            }
        }
    }
}

impl Node {
    /// Its directory with its configuration.
    fn prepare(cluster: &Path, number: usize, ports: &[(u16, u16)]) -> Self {
        let (id, directory) = (number + 1, cluster.join(number.to_string()));
        std::fs::create_dir(&directory).expect("made");
        let voters: Vec<_> = ports
            .iter()
            .zip(1..)
            .map(|((_, controller), id)| format!("{id}@127.0.0.1:{controller}"))
            .collect();
        let (port, controller) = ports[number];
        let (replicas, replicas_min) = if ports.len() >= 3 { (3, 2) } else { (1, 1) };
        let text = format!(
            "process.roles=broker,controller\n\
             node.id={id}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             controller.quorum.voters={voters}\n\
             log.dirs={data}\n\
             auto.create.topics.enable=false\n\
             default.replication.factor={replicas}\n\
             min.insync.replicas={replicas_min}\n\
             offsets.topic.num.partitions=1\n\
             offsets.topic.replication.factor={replicas}\n\
             transaction.state.log.num.partitions=1\n\
             transaction.state.log.replication.factor={replicas}\n\
             transaction.state.log.min.isr={replicas_min}\n\
             group.initial.rebalance.delay.ms=0\n\
             initial.broker.registration.timeout.ms={registers}\n\
             num.network.threads=2\n\
             num.io.threads=2\n\
             log.cleaner.dedupe.buffer.size=4194304\n",
            voters = voters.join(","),
            data = directory.join("data").display(),
            registers = START_PATIENCE.as_millis(),
        );
        std::fs::write(directory.join("server.properties"), text).expect("written");
        Node { id, directory, port, process: Mutex::new(None) }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn command(&self, class: &str) -> Command {
        let mut command = Command::new("java");
        command.arg(format!("@{}", installed().join("java.args").display())).arg(class);
        // Its own group: an interrupt from the terminal is for the tests.
        command.current_dir(&self.directory).process_group(0).stdin(Stdio::null());
        command
    }

    fn format(&self, cluster_id: &str) {
        let mut command = self.command("kafka.tools.StorageTool");
        command.args(["format", "-t", cluster_id, "-c", "server.properties"]);
        let output = command.output().expect("java runs");
        assert!(output.status.success(), "format: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn begin(&self) {
        let mut process = self.process.lock().unwrap();
        assert!(process.is_none(), "the node runs already");
        let log =
            std::fs::File::options().append(true).create(true).open(self.log_path()).expect("a log file");
        let mut command = self.command("kafka.Kafka");
        command.arg("server.properties").stdout(log.try_clone().expect("cloned")).stderr(log);
        let child = command.spawn().expect("java runs");
        std::fs::write(self.pid_path(), child.id().to_string()).expect("written");
        *process = Some(child);
    }

    fn end(&self, signal: Signal) {
        let mut child = self.process.lock().unwrap().take().expect("a node that runs");
        kill_process(Pid::from_child(&child), signal).expect("the node can be signalled");
        let deadline = Instant::now() + STOP_PATIENCE;
        while child.try_wait().expect("the node can be waited for").is_none() {
            assert!(Instant::now() < deadline, "the node did not end:\n{}", self.log_end());
            std::thread::sleep(POLL);
        }
        // The reaper must not kill whatever gets this number next.
        std::fs::remove_file(self.pid_path()).expect("removed");
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.lock().unwrap();
        let child = process.as_ref().expect("a node that runs");
        kill_process(Pid::from_child(child), signal).expect("the node can be signalled");
    }

    fn runs(&self) -> bool {
        let mut process = self.process.lock().unwrap();
        process.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|ended| ended.is_none()))
    }

    fn pid_path(&self) -> PathBuf {
        self.directory.join("pid")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn log_end(&self) -> String {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

fn client(bootstrap: &str) -> BaseConsumer {
    ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("a client")
}

/// Sixteen random bytes in URL-safe base64, as Kafka writes its identifiers.
fn new_cluster_id() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // The first is no hyphen, which a command line would take for an option; the last digit has two bits only.
    let inner: String = (0..20).map(|_| char::from(DIGITS[fastrand::usize(..64)])).collect();
    format!("H{inner}A")
}

/// A port that nothing listens on, outside of the range from which the kernel takes the near ends of connections: a
/// node that is down must find its own again.
fn free_port(taken: &mut Vec<u16>) -> u16 {
    for _ in 0..1_000 {
        let port = fastrand::u16(10_000..32_000);
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.push(port);
            return port;
        }
    }
    panic!("no free port")
}

fn start_reaper(directory: &Path) -> Child {
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        cat >/dev/null
        for pid in $(cat "$0"/*/pid 2>/dev/null); do
            kill -KILL "$pid" 2>/dev/null
            while [ -e "/proc/$pid/exe" ]; do sleep 0.02; done
        done
        rm -rf "$0"
    "#;
    Command::new("sh")
        .args(["-c", SCRIPT])
        .arg(directory)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell")
}
