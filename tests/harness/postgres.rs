//! PostgreSQL servers for tests: private ones made from the installed binaries, in a temporary
//! directory, on a loopback port, gone with the test process; or the one that the variable
//! `HYGEIA_TEST_POSTGRES` names (a URL whose user may create databases).
//!
//! A private server does not outlive the process, however that ends: a small shell process (the
//! reaper) reads from a pipe whose other end this process holds, and when the pipe closes it stops the
//! server and removes the directory.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test stops at its first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// The variable that names a server to use instead of a private one.
pub const SERVER_VARIABLE: &str = "HYGEIA_TEST_POSTGRES";

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// Whether a server waits for its disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// As in production: whatever measures or crashes needs this.
    Full,
    /// For tests of behaviour, several times faster.
    None,
}

/// How a server is stopped.
#[derive(Clone, Copy)]
pub enum Stop {
    /// Connections are cut, the state is written: SIGINT.
    Fast,
    /// As if the machine had failed: SIGKILL to the postmaster; its children end themselves.
    Kill,
}

/// A server.
pub struct Postgres {
    kind: ServerKind,
}

enum ServerKind {
    External { url: String },
    Private(Box<Private>),
}

struct Private {
    bin: PathBuf,
    directory: PathBuf,
    port: u16,
    durability: Durability,
    server: Mutex<Option<Child>>,
    /// Holds the pipe open, see the module's text.
    reaper: Child,
}

/// A database of its own for one test.
pub struct Database {
    url: String,
    name: String,
    drop_at: Option<String>,
}

impl Postgres {
    /// The durable server that the tests of this process share.
    pub fn shared() -> &'static Postgres {
        static SERVER: OnceLock<Postgres> = OnceLock::new();
        SERVER.get_or_init(|| Self::external().unwrap_or_else(|| Self::start_private(Durability::Full)))
    }

    /// The fast server that the tests of this process share.
    pub fn shared_fast() -> &'static Postgres {
        static SERVER: OnceLock<Postgres> = OnceLock::new();
        SERVER.get_or_init(|| Self::external().unwrap_or_else(|| Self::start_private(Durability::None)))
    }

    /// A private server, or the one that the variable names.
    pub fn private_or_outside(durability: Durability) -> Postgres {
        Self::external().unwrap_or_else(|| Self::start_private(durability))
    }

    /// Whether it is a private one: only those can be stopped and paused.
    pub fn is_private(&self) -> bool {
        matches!(self.kind, ServerKind::Private(_))
    }

    fn external() -> Option<Postgres> {
        let url = std::env::var(SERVER_VARIABLE).ok().filter(|url| !url.is_empty())?;
        Some(Postgres { kind: ServerKind::External { url } })
    }

    /// A private server for one test, which it may stop, start and pause.
    pub fn start_private(durability: Durability) -> Postgres {
        let bin = binaries();
        let directory = make_directory();
        let reaper = start_reaper(&directory);
        init_cluster(&bin, &directory);
        let private =
            Private { bin, port: free_port(), directory, durability, server: Mutex::new(None), reaper };
        private.start();
        Postgres { kind: ServerKind::Private(Box::new(private)) }
    }

    /// The URL of `database` on this server. It stays the same when the server is started again.
    pub fn url(&self, database: &str) -> String {
        match &self.kind {
            ServerKind::External { url } => with_database(url, database),
            ServerKind::Private(p) => format!("postgres://postgres@127.0.0.1:{}/{database}", p.port),
        }
    }

    /// Makes an empty database with a name of its own.
    pub async fn create_database(&self) -> Database {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("hygeia_test_{}_{nanos}_{number}", std::process::id());
        let (admin, drop_at) = match &self.kind {
            ServerKind::External { url } => (url.clone(), Some(url.clone())),
            ServerKind::Private(_) => (self.url("postgres"), None),
        };
        let mut connection = PgConnection::connect(&admin).await.expect("a connection to the test server");
        connection
            .execute(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0")))
            .await
            .expect("a test database");
        connection.close().await.ok();
        Database { url: self.url(&name), name, drop_at }
    }

    /// Stops a private server and waits until it has ended.
    pub fn stop(&self, how: Stop) {
        let private = self.private();
        let mut server = private.server.lock().unwrap();
        let Some(mut child) = server.take() else { return };
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Kill => Signal::KILL,
        };
        kill_process(pid_of(&child), signal).expect("the server's process");
        let deadline = Instant::now() + STOP_DEADLINE;
        while child.try_wait().expect("the server's process").is_none() {
            assert!(Instant::now() < deadline, "the server did not stop");
            std::thread::sleep(POLL);
        }
    }

    /// Starts a private server that was stopped, on the same port, with the same data.
    pub fn start(&self) {
        self.private().start();
    }

    /// Freezes a private server with all its sessions: connections stay open, nothing answers.
    pub fn pause(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Undoes `pause`.
    pub fn resume(&self) {
        self.signal_all(Signal::CONT);
    }

    fn signal_all(&self, signal: Signal) {
        let server = self.private().server.lock().unwrap();
        let postmaster = pid_of(server.as_ref().expect("a running server"));
        // The postmaster first: one that is stopped starts no further child.
        kill_process(postmaster, signal).expect("the server's process");
        let number = postmaster.as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap();
        for child in children.split_whitespace().filter_map(|p| Pid::from_raw(p.parse().unwrap())) {
            kill_process(child, signal).ok();
        }
    }

    fn private(&self) -> &Private {
        match &self.kind {
            ServerKind::Private(private) => private,
            ServerKind::External { .. } => panic!("only a private server can be stopped or paused"),
        }
    }
}

impl Database {
    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// On a server that is not ours, the database does not stay behind.
impl Drop for Database {
    fn drop(&mut self) {
        let Some(admin) = self.drop_at.take() else { return };
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if let Ok(mut connection) = PgConnection::connect(&admin).await {
                    connection.execute(AssertSqlSafe(statement)).await.ok();
                }
            });
        })
        .join()
        .ok();
    }
}

impl Private {
    fn start(&self) {
        let data = self.directory.join("data");
        let log =
            std::fs::File::options().append(true).create(true).open(self.directory.join("log")).unwrap();
        let mut command = as_server_user(&self.bin.join("postgres"));
        command.arg("-D").arg(&data).args(["-p", &self.port.to_string(), "-h", "127.0.0.1"]);
        command.args(["-c", "unix_socket_directories=", "-c", "max_connections=200"]);
        command.args(["-c", "shared_buffers=128MB", "-c", "max_wal_size=4GB"]);
        if self.durability == Durability::None {
            command.args(["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the postgres binary");
        let mut server = self.server.lock().unwrap();
        assert!(server.is_none(), "the server runs already");
        wait_ready(&data, &self.directory.join("log"), child.id());
        *server = Some(child);
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // The reaper's pipe closes as it is dropped; it does the rest. Waited for, so that a test that
        // ends leaves nothing behind.
        drop(self.reaper.stdin.take());
        self.reaper.wait().ok();
        if let Some(mut child) = self.server.get_mut().unwrap().take() {
            child.wait().ok();
        }
    }
}

/// PostgreSQL writes how far it is into the eighth line of its pid file.
fn wait_ready(data: &Path, log: &Path, pid: u32) {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        let status = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        let mut lines = status.lines();
        if lines.next() == Some(&pid.to_string()) && lines.nth(6).map(str::trim) == Some("ready") {
            return;
        }
        if Instant::now() > deadline {
            panic!("the test server did not start: {}", std::fs::read_to_string(log).unwrap_or_default());
        }
        std::thread::sleep(POLL);
    }
}

fn binaries() -> PathBuf {
    let on_path = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).find(|d| d.join("initdb").exists() && d.join("postgres").exists())
    });
    let installed = || {
        let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
            .filter(|(_, bin)| bin.join("initdb").exists())
            .collect();
        found.sort();
        found.pop().map(|(_, bin)| bin)
    };
    let bin = on_path.or_else(installed);
    bin.unwrap_or_else(|| panic!("no initdb found: install PostgreSQL or set {SERVER_VARIABLE}"))
}

fn make_directory() -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let directory = std::env::temp_dir().join(format!("hygeia-pg-{}-{nanos}-{number}", std::process::id()));
    std::fs::create_dir(&directory).expect("a temporary directory");
    if rustix::process::geteuid().is_root() {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry = passwd.lines().find(|line| line.starts_with("postgres:")).expect("a user postgres");
        let ids: Vec<u32> = entry.split(':').skip(2).take(2).map(|id| id.parse().unwrap()).collect();
        std::os::unix::fs::chown(&directory, Some(ids[0]), Some(ids[1])).unwrap();
    }
    directory
}

fn init_cluster(bin: &Path, directory: &Path) {
    let output = as_server_user(&bin.join("initdb"))
        .arg("-D")
        .arg(directory.join("data"))
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"])
        .output()
        .expect("initdb");
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
}

/// PostgreSQL refuses to run as root.
fn as_server_user(program: &Path) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    // Its own group: an interrupt from the terminal is for the tests.
    command.process_group(0).current_dir("/").env("LC_ALL", "C");
    command
}

fn start_reaper(directory: &Path) -> Child {
    use std::os::unix::process::CommandExt;
    // A stopped child cannot notice that its postmaster is gone, hence SIGCONT for all.
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        cat >/dev/null
        pid=$(head -n 1 "$0/data/postmaster.pid" 2>/dev/null)
        if [ -n "$pid" ]; then
            children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
            kill -QUIT "$pid" 2>/dev/null
            kill -CONT "$pid" $children 2>/dev/null
            n=0
            while [ -e "/proc/$pid/exe" ] && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done
            kill -KILL "$pid" 2>/dev/null
        fi
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

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// `url` with its path replaced.
fn with_database(url: &str, database: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let authority = base.find("://").map_or(0, |at| at + 3);
    let end = base[authority..].find('/').map_or(base.len(), |at| authority + at);
    match query {
        Some(query) => format!("{}/{database}?{query}", &base[..end]),
        None => format!("{}/{database}", &base[..end]),
    }
}
