//! One real node, and peers that send invalid data. The test plays the peers and runs their handshake itself,
//! because ractor's process groups are shared by the whole process, which therefore holds only one real node.

use std::time::Instant;

use ractor::Actor;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::greeting::{self, Guest, Refusal};
use super::*;
use crate::actors::restart::RestartPolicy;
use crate::actors::supervisor::{Supervisor, SupervisorArgs, SupervisorMessage};
use crate::clock::SystemClock;
use crate::proto::cluster::Outcome;

const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "a secret of the tests, at least 32 bytes long";

struct Node {
    peers: Peers,
    supervisor: ractor::ActorRef<SupervisorMessage>,
    ended: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(own: serde_json::Value) -> Self {
        let mut settings = json!({"secret": SECRET, "listen": "127.0.0.1:0"});
        settings.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let peers = Peers::bind(Args {
            name: "m".into(),
            owner: "m#5".into(),
            roles: BTreeSet::new(),
            nodes: Vec::new(),
            join: Vec::new(),
            settings: serde_json::from_value(settings).unwrap(),
            clock: Arc::new(SystemClock),
            frame_sink: Arc::new(|_, _, _| panic!("nobody can send")),
        });
        let peers = peers.await.unwrap();
        let args = SupervisorArgs {
            children: vec![peers.child()],
            restart: RestartPolicy::default(),
            clock: Arc::new(SystemClock),
        };
        let (supervisor, ended) = Actor::spawn(None, Supervisor, args).await.unwrap();
        Node { peers, supervisor, ended }
    }

    async fn greet(&self, name: &str, boot: u32) -> Result<(TcpStream, Guest), Refusal> {
        let mut stream = TcpStream::connect(self.peers.local_addr()).await?;
        let owner = format!("{name}#{boot}").into();
        let secret = Secret::from(SECRET.to_owned());
        let me = Identity::new(name.into(), owner, "hygeia", "127.0.0.1:1".to_owned(), &secret);
        let (guest, ()) = greeting::dial(&mut stream, &me, |_| true, async |_| Ok(())).await?;
        Ok((stream, guest))
    }

    /// Waits until there are `sessions` sessions.
    async fn has(&self, sessions: usize) {
        let waiting = async {
            while self.peers.sessions().await.len() != sessions {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("in time");
    }

    async fn end(self) {
        self.supervisor.stop(None);
        self.ended.await.unwrap();
    }
}

/// Waits for the end of the stream; fails if it does not end in time.
async fn is_closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let rest = stream.read_to_end(&mut rest);
    // A reset counts as an end.
    let _ = tokio::time::timeout(PATIENCE, rest).await.expect("it is closed in time");
}

#[tokio::test]
async fn whoever_is_greeted_and_then_says_nonsense_is_cut_off() {
    let node = Node::start(json!({"handshake_timeout_ms": 50_000, "peers_max": 2})).await;
    let garbled_frame = [&9u64.to_be_bytes()[..], &[0xff; 9]].concat();
    let endless_frame = u64::MAX.to_be_bytes().to_vec();
    for nonsense in [garbled_frame, endless_frame] {
        let (mut stream, guest) = node.greet("a", 1).await.unwrap();
        assert_eq!((&*guest.name, &*guest.owner), ("m", "m#5"));
        stream.write_all(&nonsense).await.unwrap();
        is_closed(stream).await;
        node.has(0).await;
    }
    let (first, _) = node.greet("a", 1).await.unwrap();
    let (_second, _) = node.greet("b", 1).await.unwrap();
    node.has(2).await;
    let told = node.greet("c", 1).await.err().unwrap();
    assert!(matches!(told, Refusal::Theirs(Outcome::TooMany)), "{told}");
    let told = node.greet("a", 2).await.err().unwrap();
    assert!(matches!(told, Refusal::Theirs(Outcome::TryLater)), "the other one is not gone: {told}");
    let (_again, _) = node.greet("a", 1).await.unwrap();
    is_closed(first).await;
    node.has(2).await;
    assert_eq!(node.peers.members().borrow().members().len(), 1, "none of them is in sight");
    node.peers.stop().await;
    node.has(0).await;
    let told = node.greet("a", 1).await.err().unwrap();
    assert!(matches!(told, Refusal::Theirs(Outcome::TryLater)), "it has stopped: {told}");
    node.end().await;
    silence_ends().await;
    names_are_kept().await;
    silent_connections_keep_nobody_out().await;
}

async fn silent_connections_keep_nobody_out() {
    // The timeout is longer than the test, so that silent connections do not end by themselves.
    let node = Node::start(json!({"handshake_timeout_ms": 60_000, "connections_pending_max": 4})).await;
    let connect = || TcpStream::connect(node.peers.local_addr());
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(connect().await.unwrap());
    }
    let begun = Instant::now();
    let (_joined, _) = node.greet("a", 1).await.expect("there is room for who shows the secret");
    let (_second, _) = node.greet("b", 1).await.expect("and for the next");
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    node.has(2).await;
    // Only the oldest one was closed.
    is_closed(silent.remove(0)).await;
    let mut byte = [0];
    assert!(silent[2].try_read(&mut byte).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    node.end().await;
}

async fn silence_ends() {
    let node = Node::start(json!({"handshake_timeout_ms": 200})).await;
    let begun = Instant::now();
    let (stream, _) = node.greet("a", 1).await.unwrap();
    is_closed(stream).await;
    assert!(begun.elapsed() >= Duration::from_millis(150), "the limit was waited for");
    node.has(0).await;
    node.end().await;
}

async fn names_are_kept() {
    let node = Node::start(json!({})).await;
    let told = node.greet("m", 6).await.err().unwrap();
    assert!(matches!(told, Refusal::Theirs(Outcome::NameTaken)), "{told}");
    let told = node.greet("m", 5).await.err().unwrap();
    assert!(matches!(told, Refusal::Theirs(Outcome::Self_)), "{told}");
    assert!(node.peers.fatal.borrow().is_none());
    let told = node.greet("m", 4).await.err().unwrap();
    assert!(matches!(told, Refusal::Theirs(Outcome::TryLater)), "the first one is left alone: {told}");
    assert_eq!(node.peers.failed().await, Fatal::NameTaken);
    node.end().await;
}

#[tokio::test]
async fn what_is_missing_or_taken_is_told_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap();
    for (settings, told) in [
        (Settings::default(), "cluster.secret: not set"),
        (Settings { misses_max: 0, ..Settings::default() }, "cluster.misses_max: allowed: 1 to 100"),
        (
            Settings { listen, secret: Some(SECRET.to_owned().into()), ..Settings::default() },
            "cluster.listen 127.",
        ),
    ] {
        let args = Args {
            name: "m".into(),
            owner: "m#5".into(),
            roles: BTreeSet::new(),
            nodes: Vec::new(),
            join: Vec::new(),
            settings,
            clock: Arc::new(SystemClock),
            frame_sink: Arc::new(|_, _, _| {}),
        };
        let error = Peers::bind(args).await.err().unwrap().to_string();
        assert!(error.starts_with(told), "{error}");
    }
}

#[test]
fn others_are_told_an_address_that_they_can_use() {
    let nodes = [NodeAddress { name: "m".into(), address: "host:1".to_owned() }];
    let (settings, [own, every]) =
        (Settings::default(), ["127.0.0.1:7", "0.0.0.0:7"].map(|a| a.parse().unwrap()));
    assert_eq!(advertised(&settings, &nodes, "m", every).unwrap(), "host:1");
    assert_eq!(advertised(&settings, &nodes, "j", own).unwrap(), "127.0.0.1:7");
    assert!(advertised(&settings, &nodes, "j", every).is_err());
    let settings = Settings { advertise: Some("told:2".to_owned()), ..settings };
    assert_eq!(advertised(&settings, &nodes, "m", every).unwrap(), "told:2");
}
