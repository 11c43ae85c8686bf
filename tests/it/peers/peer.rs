//! A process that is nothing but one node's links to others: this test binary, started again as `program`.

use std::fs::File;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hygeia::actors::members::{FrameSink, View};
use hygeia::actors::peers::{Args, NodeAddress, Peers, Settings};
use hygeia::actors::restart::RestartPolicy;
use hygeia::actors::supervisor::{Supervisor, SupervisorArgs};
use hygeia::clock::SystemClock;
use hygeia::domain::cluster::NodeRole;
use hygeia::domain::time::{Clock, MonoTime, Timestamp};
use hygeia::telemetry;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::eventually;

/// Where the process finds what it is to be.
const SETUP: &str = "HYGEIA_TEST_PEER";

/// A cluster for one test: what its nodes have in common.
pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    settings: Value,
    nodes: Vec<(String, String)>,
}

impl Cluster {
    /// Nodes of these names are in the configuration, on free ports.
    pub(crate) fn of(names: &[&str]) -> Self {
        let listeners: Vec<_> =
            names.iter().map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().expect("bound").to_string());
        let nodes = names.iter().map(|&name| name.to_owned()).zip(addresses).collect();
        let settings = json!({
            "secret": "a secret of the tests, at least 32 bytes long",
            "heartbeat_interval_ms": 100, "heartbeat_timeout_ms": 300, "misses_max": 3,
            "dial_pause_max_ms": 200, "frame_max_bytes": 65_536,
        });
        Cluster { directory: tempfile::tempdir().expect("a directory"), settings, nodes }
    }

    /// With another setting for all nodes started from now on.
    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.settings[key] = value.into();
        self
    }

    /// A place for files of the test.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    pub(crate) fn address(&self, name: &str) -> &str {
        &self.nodes.iter().find(|(node, _)| node == name).expect("listed").1
    }

    /// Starts a node of the configuration.
    pub(crate) fn start(&self, name: &str) -> Peer {
        self.start_with(name, json!({}))
    }

    /// Starts a node of the configuration with settings of its own.
    pub(crate) fn start_with(&self, name: &str, own: Value) -> Peer {
        self.run(name, self.address(name), &own, &self.nodes, &[])
    }

    /// Starts a node that has the configuration and is not in it, and joins by `seed`.
    pub(crate) fn join_with(&self, name: &str, own: Value, seed: &str) -> Peer {
        self.run(name, "127.0.0.1:0", &own, &self.nodes, &[self.address(seed)])
    }

    /// Starts a node that knows nothing but the address of `seed`.
    pub(crate) fn join(&self, name: &str, seed: &str) -> Peer {
        self.run(name, "127.0.0.1:0", &json!({}), &[], &[self.address(seed)])
    }

    fn run(&self, name: &str, listen: &str, own: &Value, nodes: &[(String, String)], join: &[&str]) -> Peer {
        let mut settings = self.settings.clone();
        settings["listen"] = listen.into();
        for (key, value) in own.as_object().expect("settings") {
            settings[key] = value.clone();
        }
        let setup = json!({"name": name, "settings": settings, "nodes": nodes, "join": join});
        Peer::spawn(&self.path().join(uuid::Uuid::now_v7().to_string()), name, &setup)
    }
}

/// A running process.
pub(crate) struct Peer {
    child: Child,
    input: ChildStdin,
    out: PathBuf,
    log: PathBuf,
    pub(crate) name: String,
}

impl Peer {
    fn spawn(base: &std::path::Path, name: &str, setup: &Value) -> Self {
        let (out, log) = (base.with_extension("out"), base.with_extension("log"));
        let file = |path: &PathBuf| File::create(path).expect("a file");
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "peers::peer::program", "--nocapture", "--test-threads=1"])
            .env(SETUP, setup.to_string())
            .stdin(Stdio::piped())
            .stdout(file(&out))
            .stderr(file(&log))
            .spawn()
            .expect("it runs");
        let input = child.stdin.take().expect("piped");
        Peer { child, input, out, log, name: name.to_owned() }
    }

    /// What it has told so far.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        let event = |line: &str| serde_json::from_str(line.get(line.find('{')?..)?).ok();
        text.lines().filter_map(event).collect()
    }

    pub(crate) fn of_kind(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == kind).collect()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The lines of its log with `text`.
    pub(crate) fn log_lines(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.input, "{command}").expect("it reads");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it can be signalled");
    }

    /// The newest view: `name` or `name (draining)` of each.
    pub(crate) fn view(&self) -> Vec<String> {
        let views = self.of_kind("view");
        let members = views.last().and_then(|view| view["members"].as_array().cloned()).unwrap_or_default();
        let shown = |member: &Value| {
            let draining = if member["draining"] == true { " (draining)" } else { "" };
            format!("{}{draining}", member["name"].as_str().expect("a name"))
        };
        members.iter().map(shown).collect()
    }

    /// The incarnation of a node in the newest view.
    pub(crate) fn owner_of(&self, name: &str) -> Option<String> {
        let view = self.of_kind("view").pop()?;
        let members = view["members"].as_array()?.clone();
        let member = members.into_iter().find(|member| member["name"] == name)?;
        Some(member["owner"].as_str()?.to_owned())
    }

    /// Waits until exactly these are in its view.
    pub(crate) async fn sees(&self, names: &[&str]) {
        let what = format!("{} sees {names:?}", self.name);
        eventually(&what, || async { (self.view() == names).then_some(()) }).await;
    }

    /// Waits for an event of this kind that `fits`.
    pub(crate) async fn tells(&self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let what = format!("{} tells {kind}", self.name);
        eventually(&what, || async { self.of_kind(kind).into_iter().find(|event| fits(event)) }).await
    }

    /// Waits for a line of its log with `text`.
    pub(crate) async fn logs(&self, text: &str) {
        let what = format!("{} logs {text:?}", self.name);
        eventually(&what, || async { (self.log_lines(text) > 0).then_some(()) }).await;
    }

    /// The address it listens on.
    pub(crate) async fn address(&self) -> SocketAddr {
        let told = self.tells("listening", |_| true).await;
        told["address"].as_str().expect("an address").parse().expect("an address")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!(
                "--- {}\n{}\n{}",
                self.name,
                self.log(),
                std::fs::read_to_string(&self.out).unwrap_or_default()
            );
        }
    }
}

fn tell(event: Value) {
    println!("{event}");
}

/// Not a test: the process that the tests start.
#[test]
fn program() {
    let Ok(setup) = std::env::var(SETUP) else { return };
    let setup: Value = serde_json::from_str(&setup).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(setup));
    // What was told must not wait for the rest of the harness.
    std::process::exit(0);
}

async fn run(setup: Value) {
    let name: Arc<str> = setup["name"].as_str().unwrap().into();
    let telemetry_settings =
        telemetry::Settings { filter: "debug,ractor_cluster=trace".into(), ..telemetry::Settings::default() };
    let _telemetry = telemetry::init(&telemetry_settings, &name, telemetry::Output::Stderr).unwrap();
    let settings: Settings = serde_json::from_value(setup["settings"].clone()).unwrap();
    let nodes: Vec<(String, String)> = serde_json::from_value(setup["nodes"].clone()).unwrap();
    let args = Args {
        owner: format!("{name}#{}", uuid::Uuid::now_v7()).into(),
        name,
        roles: [NodeRole::Patient].into(),
        nodes: nodes.into_iter().map(|(name, address)| NodeAddress { name: name.into(), address }).collect(),
        join: serde_json::from_value(setup["join"].clone()).unwrap(),
        settings,
        clock: Arc::new(FailingClock),
        frame_sink: sink(),
    };
    let peers = match Peers::bind(args).await {
        Ok(peers) => peers,
        Err(error) => return tell(json!({"event": "refused", "why": error.to_string()})),
    };
    tell(json!({"event": "listening", "address": peers.local_addr().to_string()}));
    let args = SupervisorArgs {
        children: vec![peers.child()],
        restart: RestartPolicy::default(),
        clock: Arc::new(SystemClock),
    };
    let (_supervisor, mut ended) = ractor::Actor::spawn(None, Supervisor, args).await.unwrap();
    let (sender, mut commands) = tokio::sync::mpsc::channel::<String>(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = sender.blocking_send(line);
        }
    });
    let mut members = peers.members();
    tell_view(&members.borrow_and_update());
    loop {
        tokio::select! {
            changed = members.changed() => {
                changed.unwrap();
                tell_view(&members.borrow_and_update());
            }
            fatal = peers.failed() => return tell(json!({"event": "failed", "why": fatal.to_string()})),
            command = commands.recv() => match command {
                Some(command) => obey(&command, &peers).await,
                None => return,
            },
            _ = &mut ended => panic!("the supervisor gave up"),
        }
    }
}

/// Whether the next look at the clock fails.
static CLOCK_FAILS: AtomicBool = AtomicBool::new(false);

/// A clock that fails once when it is asked to, and with it the actor that looks.
struct FailingClock;

impl Clock for FailingClock {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn mono(&self) -> MonoTime {
        assert!(!CLOCK_FAILS.swap(false, Ordering::SeqCst), "as asked");
        SystemClock.mono()
    }
}

/// Tells of each frame; one that begins with `?` is answered with the same behind a `!`.
fn sink() -> FrameSink {
    Arc::new(|owner, wire, body| {
        assert!(body != b"fail", "as asked");
        let shown = String::from_utf8_lossy(body.get(..body.len().min(100)).unwrap());
        tell(json!({"event": "frame", "from": &**owner, "bytes": body.len(), "body": shown}));
        if let Some(question) = body.strip_prefix(b"?") {
            assert!(wire.send([b"!", question].concat()), "the way back is there");
        }
    })
}

fn tell_view(view: &View) {
    let shown = |m: &hygeia::actors::members::Member| {
        let roles: Vec<_> = m.roles.iter().map(|role| role.as_str()).collect();
        json!({"name": &*m.name, "owner": &*m.owner, "roles": roles, "draining": m.draining, "wire": m.wire.is_some()})
    };
    tell(json!({"event": "view", "members": view.members().iter().map(shown).collect::<Vec<_>>()}));
}

async fn obey(command: &str, peers: &Peers) {
    let words: Vec<_> = command.splitn(3, ' ').collect();
    match *words {
        ["send", to, text] => {
            let view = Arc::clone(&peers.members().borrow());
            let wire = view.get(to).and_then(|member| member.wire.clone()).expect("in sight");
            assert!(wire.send(text.as_bytes().to_vec()));
        }
        ["flood", to, bytes] => {
            let view = Arc::clone(&peers.members().borrow());
            let wire = view.get(to).and_then(|member| member.wire.clone()).expect("in sight");
            wire.send(vec![b'x'; bytes.parse().unwrap()]);
        }
        ["fail"] => CLOCK_FAILS.store(true, Ordering::SeqCst),
        ["drain"] => peers.set_draining(true),
        ["stop"] => peers.stop().await,
        ["sessions"] => {
            for info in peers.sessions().await {
                let round_trip = info.round_trip_us;
                tell(
                    json!({"event": "session", "name": info.name.as_deref(), "owner": info.owner.as_deref(),
                    "state": info.state.as_str(), "round_trip_us": round_trip, "misses": info.misses}),
                );
            }
            tell(json!({"event": "sessions told"}));
        }
        _ => panic!("{command}"),
    }
}
