//! Nodes of one cluster, each started and ended as a process of its own, with a database and a broker.

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use serde_json::Value;

use super::SECRET;
use crate::harness::{Node, PASSWORD, USER};
use crate::postgres::{Database, Postgres};
use crate::process::{self, Process};

/// What all nodes have in common. A busy machine is no fault: what is judged by the clock has time.
const COMMON: &str = r#"
[cluster]
heartbeat_timeout_ms = 2000
misses_max = 5
dial_pause_max_ms = 200
[http]
listen = "127.0.0.1:0"
request_deadline_ms = 20000
[grpc]
listen = "127.0.0.1:0"
[actors]
lease_ttl_ms = 15000
"#;

/// One cluster.
pub(crate) struct Fleet {
    directory: tempfile::TempDir,
    _database: Database,
    _broker: MockCluster<'static, DefaultProducerContext>,
    /// Where the first node listens for others.
    first: SocketAddr,
    environment: Vec<(&'static str, &'static str)>,
}

impl Fleet {
    /// A database, a broker, and a file with these nodes: names, and roles after commas. None runs yet.
    pub(crate) async fn of(nodes: &[(&str, &str)]) -> Self {
        Self::with(nodes, false).await
    }

    /// The same, with certificates that `hygeia certs` makes.
    pub(crate) async fn with_certificates(nodes: &[(&str, &str)]) -> Self {
        Self::with(nodes, true).await
    }

    /// One more setting, for all nodes started from now on.
    pub(crate) fn set(mut self, key: &'static str, value: &'static str) -> Self {
        self.environment.push((key, value));
        self
    }

    async fn with(nodes: &[(&str, &str)], certified: bool) -> Self {
        let database = Postgres::shared_fast().create_database().await;
        let broker = MockCluster::new(1).expect("a broker");
        let directory = tempfile::tempdir().expect("a directory");
        let mut taken = Vec::new();
        let first = free_address(&mut taken);
        let mut file = COMMON.to_owned();
        let brokers = broker.bootstrap_servers();
        write!(file, "[store]\nurl = \"{}\"\n[kafka]\nbrokers = \"{brokers}\"\n", database.url()).unwrap();
        file.push_str("fetch_wait_ms = 40\n");
        if certified {
            file.push_str("[cluster.tls]\nca_file = \"certs/ca.pem\"\n");
        }
        for (number, (name, roles)) in nodes.iter().enumerate() {
            let address = if number == 0 { first } else { free_address(&mut taken) };
            let roles: Vec<&str> = roles.split(',').collect();
            let own = if certified {
                let file = |kind: &str| format!("\"certs/{name}.{kind}\"");
                format!(", cluster.tls.cert_file = {}, cluster.tls.key_file = {}", file("pem"), file("key"))
            } else {
                String::new()
            };
            write!(
                file,
                "[[cluster.nodes]]\nname = \"{name}\"\naddress = \"{address}\"\nroles = {roles:?}\n\
                 set = {{ data_dir = \"{name}\", http.listen = \"{}\"{own} }}\n",
                free_address(&mut taken),
            )
            .unwrap();
        }
        std::fs::write(directory.path().join("cluster.toml"), file).unwrap();
        let environment = Vec::new();
        let fleet = Fleet { directory, _database: database, _broker: broker, first, environment };
        if certified {
            let names: Vec<&str> = nodes.iter().map(|(name, _)| *name).collect();
            fleet.run(&["certs", "--out", "certs", "--nodes", &names.join(",")], "");
        }
        fleet.run(&["migrate"], "");
        fleet.run(&["user", "add", USER, "--role", "ADMIN"], PASSWORD);
        fleet
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self) -> Command {
        let mut command = process::command(self.path());
        command.env("HYGEIA_CONFIG", "cluster.toml");
        command.env("HYGEIA__CLUSTER__SECRET", SECRET).env("HYGEIA__AUDIT__SECRET", SECRET);
        command.envs(self.environment.iter().copied());
        command
    }

    fn run(&self, arguments: &[&str], input: &str) -> String {
        let mut command = self.command();
        command.args(arguments);
        process::run_to_end(command, self.path(), input)
    }

    fn process(&self, data: &str, arguments: &[&str]) -> Process {
        let mut command = self.command();
        command.arg("serve").args(arguments);
        Process::start(command, &self.path().join(data), &self.path().join(format!("{data}.log")))
    }

    /// Starts a node of the file.
    pub(crate) fn spawn(&self, name: &str) -> Process {
        self.process(name, &["--node", name])
    }

    /// Starts a node of the file and waits until it is ready.
    pub(crate) async fn start(&self, name: &str) -> Node {
        Node::ready(self.spawn(name)).await
    }

    /// Starts all of these and waits until each is ready, in this order.
    pub(crate) async fn start_all<const N: usize>(&self, names: [&str; N]) -> [Node; N] {
        let started = names.map(|name| self.spawn(name));
        let mut ready = Vec::new();
        for process in started {
            ready.push(Node::ready(process).await);
        }
        ready.try_into().unwrap_or_else(|_| unreachable!("as many as were started"))
    }

    /// Starts a node that is not in the file and joins.
    pub(crate) async fn join(&self, name: &str, roles: &str) -> Node {
        let (first, data) = (self.first.to_string(), format!("data_dir={name}"));
        let arguments = ["--join", &first, "--name", name, "--roles", roles, "--set", &data];
        Node::ready(self.process(name, &arguments)).await
    }

    /// Starts a second node of this name at another address, without waiting for anything.
    pub(crate) fn spawn_second(&self, name: &str) -> Process {
        let elsewhere = ["--set", "cluster.listen=127.0.0.1:0", "--set", "http.listen=127.0.0.1:0"];
        let arguments = [&["--node", name, "--set", "data_dir=second"], &elsewhere[..]].concat();
        self.process("second", &arguments)
    }
}

/// Who holds how many shards of patients, as a front sees it: names, and numbers of shards.
pub(crate) async fn holders(front: &Node, token: &str) -> std::collections::BTreeMap<String, usize> {
    let status = front.get_json(token, "/cluster").await;
    let mut held = std::collections::BTreeMap::new();
    let is_held = |lease: &&Value| lease["kind"] == "patient" && lease["expired"] == false;
    for lease in status["leases"].as_array().expect("a list").iter().filter(is_held) {
        let name = lease["owner"].as_str().and_then(|owner| owner.split('#').next()).expect("an owner");
        *held.entry(name.to_owned()).or_default() += 1;
    }
    held
}

/// An address that nothing listens on, outside of the range from which the kernel takes the near ends of
/// connections: a node that is away must find its own again.
fn free_address(taken: &mut Vec<u16>) -> SocketAddr {
    for _ in 0..1_000 {
        let port = fastrand::u16(10_000..32_000);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if !taken.contains(&port) && TcpListener::bind(address).is_ok() {
            taken.push(port);
            return address;
        }
    }
    panic!("no free port")
}
