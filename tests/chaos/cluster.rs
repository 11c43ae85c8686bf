//! The cluster of a run: its database, its broker, its nodes, and the links between all of them.

mod node;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::node::Node;
use crate::api::{Api, Front};
use crate::broker::Broker;
use crate::machinery::proxy::{Link, Rules};
use crate::machinery::schedule::Shape;
use crate::outages::Outages;
use crate::postgres::{Database, Durability, Postgres};
use crate::process::{PATIENCE, within};

/// The callers of a run, with their roles. They exist in the databases of runs alone.
const WORKER: (&str, &str) = ("clinician@example.com", "CLINICIAN");
const ADMIN: (&str, &str) = ("admin@example.com", "ADMIN");
const PASSWORD: &str = "chaos and nothing else";
/// How long a user's standing is remembered: long, so that nothing but the lease stands between a question and
/// the memory of a shard.
const USER_CACHE_MS: u32 = 60_000;

/// Which nodes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One node with all roles.
    Alone,
    /// Two nodes with all roles that know nothing of each other: leases alone say who serves.
    Pair,
    /// Nodes by role that know each other.
    Cluster,
}

const ALL_ROLES: &[&str] = &["front", "patient", "billing", "bridge", "analytics"];

impl Layout {
    /// Its name in arguments and reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Layout::Alone => "alone",
            Layout::Pair => "pair",
            Layout::Cluster => "cluster",
        }
    }

    /// The one of that name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        [Layout::Alone, Layout::Pair, Layout::Cluster].into_iter().find(|layout| layout.name() == name)
    }

    /// Names and roles. In a cluster one node is both a front and holds patients: who is asked there asks the
    /// memory of a shard without any link between.
    fn nodes(self) -> &'static [(&'static str, &'static [&'static str])] {
        match self {
            Layout::Alone => &[("node-1", ALL_ROLES)],
            Layout::Pair => &[("node-1", ALL_ROLES), ("node-2", ALL_ROLES)],
            Layout::Cluster => &[
                ("front-1", &["front"]),
                ("front-2", &["front"]),
                ("patient-1", &["front", "patient"]),
                ("patient-2", &["patient"]),
                ("billing-1", &["billing", "bridge", "analytics"]),
                ("billing-2", &["billing", "bridge", "analytics"]),
            ],
        }
    }

    fn is_linked(self) -> bool {
        self == Layout::Cluster
    }
}

/// Everything.
pub(crate) struct Cluster {
    pub(crate) layout: Layout,
    pub(crate) nodes: Vec<Node>,
    pub(crate) broker: Broker,
    pub(crate) postgres: Postgres,
    pub(crate) database: Database,
    pub(crate) outages: Arc<Outages>,
    _heartbeat: AbortOnDropHandle<()>,
    /// From who dials to who listens, by number.
    links: BTreeMap<(usize, usize), Link>,
    /// None once it is to be kept.
    directory: std::sync::Mutex<Option<tempfile::TempDir>>,
    client: Client,
}

/// A node that was restarted.
pub(crate) struct Restarted {
    pub(crate) name: &'static str,
    /// From the signal to the end of the process.
    pub(crate) ended: Duration,
    /// From the signal to readiness.
    pub(crate) back: Duration,
}

/// What the configuration of one node says, but for what all have in common.
struct Place<'a> {
    layout: Layout,
    number: usize,
    http: &'a [SocketAddr],
    grpc: &'a [SocketAddr],
    /// Where nodes listen for each other.
    listen: &'a [SocketAddr],
    /// Where this node dials each other one.
    dial: Vec<SocketAddr>,
    database_url: String,
    broker: &'a Broker,
}

impl Place<'_> {
    /// The file of the node.
    fn config(&self) -> String {
        let (name, roles) = self.layout.nodes()[self.number];
        let topic = self.broker.topic();
        let (http, grpc) = (self.http[self.number], self.grpc[self.number]);
        let mut text = format!(
            "data_dir = \"data\"\n\
             [http]\nlisten = \"{http}\"\n\
             [grpc]\nlisten = \"{grpc}\"\n\
             [store]\nurl = \"{}\"\n\
             [kafka]\nbrokers = \"{}\"\ntopic = \"{topic}\"\ndead_letter_topic = \"{topic}.dlq\"\n\
             group = \"{topic}-analytics\"\nfetch_wait_ms = 40\n\
             [auth]\ntoken_ttl_seconds = 86400\nsession_idle_seconds = 86400\n\
             user_cache_ms = {USER_CACHE_MS}\n\
             [telemetry]\nformat = \"json\"\n",
            self.database_url,
            self.broker.bootstrap(),
        );
        text.push_str("[audit]\nsecret = \"what seals the audit of a cluster of the tests\"\n");
        if !self.layout.is_linked() {
            text.push_str(&format!("[node]\nname = \"{name}\"\nroles = {roles:?}\n"));
            return text;
        }
        text.push_str("[cluster]\nname = \"chaos\"\nsecret = \"the secret of a cluster of the tests\"\n");
        text.push_str(&format!("listen = \"{}\"\n", self.listen[self.number]));
        for (number, (name, roles)) in self.layout.nodes().iter().enumerate() {
            let address = if number == self.number { self.listen[number] } else { self.dial[number] };
            let entry =
                format!("[[cluster.nodes]]\nname = \"{name}\"\naddress = \"{address}\"\nroles = {roles:?}\n");
            text.push_str(&entry);
        }
        text
    }
}

impl Cluster {
    /// Database, broker, and the files of all nodes; no node runs yet.
    pub(crate) async fn prepare(layout: Layout) -> Self {
        let postgres = Postgres::private_or_outside(Durability::Full);
        let database = postgres.create_database().await;
        let broker = Broker::start();
        let directory = tempfile::Builder::new().prefix("hygeia-chaos-").tempdir().expect("a directory");
        let count = layout.nodes().len();
        let mut taken = Vec::new();
        let mut ports = || (0..count).map(|_| free_address(&mut taken)).collect::<Vec<_>>();
        let (http, grpc, listen) = (ports(), ports(), ports());
        let outages = Arc::new(Outages::default());
        let mut links = BTreeMap::new();
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from && layout.is_linked()) {
                links.insert((from, to), Link::open(listen[to]).await.expect("a link"));
            }
        }
        let mut nodes = Vec::new();
        for (number, (name, roles)) in layout.nodes().iter().enumerate() {
            let way = Link::open(address_of(database.url())).await.expect("a link");
            let dial =
                (0..count).map(|to| links.get(&(number, to)).map_or(listen[to], Link::address)).collect();
            let database_url = with_address(database.url(), way.address());
            let place = Place {
                layout,
                number,
                http: &http,
                grpc: &grpc,
                listen: &listen,
                dial,
                database_url,
                broker: &broker,
            };
            let own = directory.path().join(name);
            std::fs::create_dir(&own).expect("made");
            let config = own.join("config.toml");
            std::fs::write(&config, place.config()).expect("written");
            let process = Mutex::new(None);
            let (http, grpc, outages) = (http[number], grpc[number], Arc::clone(&outages));
            let node = Node {
                name,
                roles,
                http,
                grpc,
                number,
                outages,
                directory: own,
                config,
                database: way,
                process,
            };
            nodes.push(node);
        }
        let client = Client::builder().timeout(Duration::from_secs(2)).no_proxy().build().expect("a client");
        let _heartbeat = outages.watch();
        let cluster = Cluster {
            layout,
            nodes,
            broker,
            postgres,
            database,
            outages,
            _heartbeat,
            links,
            directory: std::sync::Mutex::new(Some(directory)),
            client,
        };
        cluster.nodes[0].run(&["migrate"], "").await;
        for (user, role) in [WORKER, ADMIN] {
            cluster.nodes[0].run(&["user", "add", user, "--role", role], PASSWORD).await;
        }
        cluster
    }

    /// All nodes, ready.
    pub(crate) async fn start(layout: Layout) -> Self {
        let cluster = Self::prepare(layout).await;
        for node in &cluster.nodes {
            node.start().await;
            if layout == Layout::Pair {
                // The first one has all leases before the other one asks.
                within(PATIENCE, || async { cluster.is_ready(&cluster.nodes[0]).await.then_some(()) }).await;
            }
        }
        if let Err(problem) = cluster.all_serve().await {
            panic!("{problem}; logs are in {:?}", cluster.keep_logs());
        }
        cluster
    }

    /// What there is to be broken.
    pub(crate) fn shape(&self) -> Shape {
        Shape {
            nodes: self.nodes.len(),
            linked: self.layout.is_linked(),
            database: self.postgres.is_private(),
            broker: self.broker.can_pause(),
            broker_keeps: self.broker.keeps_its_log(),
            holders: self.holders(),
        }
    }

    /// The nodes with an edge.
    pub(crate) fn fronts(&self) -> Vec<&Node> {
        self.nodes.iter().filter(|node| node.roles.contains(&"front")).collect()
    }

    /// A way to all fronts.
    pub(crate) async fn api(&self) -> Result<Api, String> {
        let fronts = self.fronts();
        let fronts =
            fronts.iter().map(|node| Front { node: node.number, url: format!("http://{}", node.http) });
        let accounts = self.nodes.iter().filter(|node| node.roles.contains(&"billing"));
        let accounts = accounts.map(|node| (node.number, format!("http://{}", node.grpc)));
        Api::login(fronts.collect(), accounts.collect(), (WORKER.0, PASSWORD), (ADMIN.0, PASSWORD)).await
    }

    /// The numbers of the nodes that hold patients.
    pub(crate) fn holders(&self) -> Vec<usize> {
        let holds = |number: &usize| self.nodes[*number].roles.contains(&"patient");
        (0..self.nodes.len()).filter(holds).collect()
    }

    /// Awaits that every node serves.
    pub(crate) async fn all_serve(&self) -> Result<(), String> {
        for node in &self.nodes {
            if !self.serves(node).await {
                return Err(format!("{} does not serve within {PATIENCE:?}", node.name));
            }
        }
        // Faults between nodes are worth nothing if nodes found a way around the links.
        let linked = within(PATIENCE, || async { self.unlinked().is_none().then_some(()) }).await;
        let (a, b) = match linked.is_none().then(|| self.unlinked()).flatten() {
            Some((a, b)) => (self.nodes[a].name, self.nodes[b].name),
            None => return Ok(()),
        };
        Err(format!("{a} and {b} do not speak over the link between them"))
    }

    /// Two nodes between which nothing was ever carried.
    fn unlinked(&self) -> Option<(usize, usize)> {
        let carried = |from, to| self.links.get(&(from, to)).map_or(0, Link::accepted);
        self.links.keys().copied().find(|(a, b)| carried(*a, *b) + carried(*b, *a) == 0)
    }

    async fn is_ready(&self, node: &Node) -> bool {
        let answer = self.client.get(format!("http://{}/health/ready", node.http)).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    /// Awaits that one node is ready; of a pair, that it answers at all: they share the leases as it comes.
    pub(crate) async fn serves(&self, node: &Node) -> bool {
        let url = format!("http://{}/health/live", node.http);
        let up = || async {
            let up = match self.layout {
                Layout::Pair => self.client.get(&url).send().await.is_ok(),
                Layout::Alone | Layout::Cluster => self.is_ready(node).await,
            };
            up.then_some(())
        };
        within(PATIENCE, up).await.is_some()
    }

    /// Sets the rules of the way between two nodes, whoever dials.
    pub(crate) fn between(&self, a: usize, b: usize, rules: Rules) {
        for way in [(a, b), (b, a)] {
            if let Some(link) = self.links.get(&way) {
                link.set(rules);
            }
        }
    }

    /// Sets the rules of the ways between one node and all others.
    pub(crate) fn apart(&self, node: usize, rules: Rules) {
        (0..self.nodes.len())
            .filter(|other| *other != node)
            .for_each(|other| self.between(node, other, rules));
    }

    /// Heals every link, and wakes whatever is stopped.
    pub(crate) async fn heal(&self) {
        for link in self.links.values().chain(self.nodes.iter().map(|node| &node.database)) {
            link.set(Rules::PASS);
        }
        if self.postgres.is_private() {
            self.postgres.resume();
        }
        self.broker.resume();
        for node in &self.nodes {
            node.signal(Signal::CONT).await;
            node.start().await;
        }
    }

    /// Tells one node after the other to end, and starts it again; each must end well and be ready before the next.
    pub(crate) async fn roll(&self) -> Result<Vec<Restarted>, String> {
        let mut restarted = Vec::new();
        for node in &self.nodes {
            let begun = Instant::now();
            let status = node.end(Signal::TERM).await;
            let ended = begun.elapsed();
            node.start().await;
            if let Some(status) = status.filter(|status| !status.success()) {
                return Err(format!("{} ended with {status} when it was told to end", node.name));
            }
            if !self.serves(node).await {
                return Err(format!("{} does not serve after a restart", node.name));
            }
            restarted.push(Restarted { name: node.name, ended, back: begun.elapsed() });
        }
        Ok(restarted)
    }

    /// Starts nodes that have ended without being told to, as whoever runs a cluster would; in words, which and how.
    pub(crate) async fn restart_ended(&self) -> Vec<String> {
        let mut ended = Vec::new();
        for node in &self.nodes {
            if let Some(status) = node.restart_if_ended().await {
                ended.push(format!("{} ended without being told to: {status}", node.name));
            }
        }
        ended
    }

    /// Verifies the access audit, as an operator would: what the command says.
    pub(crate) async fn verify_audit(&self) -> Result<String, String> {
        let output = self.nodes[0].command().args(["audit", "verify"]).output();
        let output = output.map_err(|error| format!("`hygeia audit verify` cannot be run: {error}"))?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(said(&output.stdout)),
            false => Err(format!("`hygeia audit verify`: {} {}", said(&output.stdout), said(&output.stderr))),
        }
    }

    /// Keeps the logs, and says where they are.
    pub(crate) fn keep_logs(&self) -> Option<PathBuf> {
        self.directory.lock().expect("sane").take().map(tempfile::TempDir::keep)
    }
}

/// An address that nothing listens on, outside of the range from which the kernel takes the near ends of
/// connections: a node that is down must find its own again.
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

/// Where the server of a database URL listens.
fn address_of(url: &str) -> SocketAddr {
    use std::net::ToSocketAddrs;
    let host = host_of(url);
    let full = if host.contains(':') { host.to_owned() } else { format!("{host}:5432") };
    full.to_socket_addrs().expect("a host").next().expect("an address")
}

fn with_address(url: &str, address: SocketAddr) -> String {
    url.replacen(host_of(url), &address.to_string(), 1)
}

fn host_of(url: &str) -> &str {
    let (_, rest) = url.split_once("://").expect("a URL");
    let authority = rest.split(['/', '?']).next().expect("a host");
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}
