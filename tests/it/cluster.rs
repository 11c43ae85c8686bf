//! `hygeia cluster`: nodes of a file as child processes, and what is told of them.

mod apart;
pub(crate) mod fleet;
mod load;
mod manners;
mod whole;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use hygeia::proto::billing_service_client::BillingServiceClient;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use tonic::Request;
use tonic::transport::Channel;

use crate::harness::{DEMO_PASSWORD, Node, PATIENCE, USER, eventually};
use crate::postgres::{Database, Postgres};
use crate::process;

const SECRET: &str = "a secret of the cluster, 32 bytes or longer";

/// A directory with a file of nodes, and a database.
struct Site {
    directory: tempfile::TempDir,
    database: Database,
    environment: Vec<(String, String)>,
}

impl Site {
    fn new(database: Database, file: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("nodes.toml"), file).unwrap();
        Site { directory, database, environment: Vec::new() }
    }

    /// One more setting, for all nodes.
    fn with(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    /// Three nodes that hold every role, and see to the tables themselves.
    async fn of_three() -> Self {
        let entry = |name: &str, port: u16, roles: &str| {
            format!(
                "[[cluster.nodes]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\nroles = [{roles}]\n\
                 set = {{ data_dir = \"{name}\" }}\n"
            )
        };
        let ports = free_ports::<3>();
        let file = format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[grpc]\nlisten = \"127.0.0.1:0\"\n\
             [store]\nmigrate_on_start = true\n[kafka]\nbrokers = \"127.0.0.1:9\"\n{}{}{}",
            entry("front", ports[0], "\"front\""),
            entry("patient-1", ports[1], "\"patient\""),
            entry("rest", ports[2], "\"billing\", \"bridge\", \"analytics\""),
        );
        Self::new(Postgres::shared_fast().create_database().await, &file)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = process::command(self.path());
        command.args(arguments).stdin(Stdio::null());
        command.env("HYGEIA_CONFIG", "nodes.toml").env("HYGEIA__STORE__URL", self.database.url());
        command.env("HYGEIA__CLUSTER__SECRET", SECRET).env("HYGEIA__AUDIT__SECRET", SECRET);
        command.envs(self.environment.iter().cloned());
        command
    }

    fn run(&self, arguments: &[&str], input: &str) -> String {
        process::run_to_end(self.command(arguments), self.path(), input)
    }

    /// `cluster up`, which is killed when it is dropped.
    fn up(&self, arguments: &[&str]) -> Up {
        let log = File::create(self.path().join("log")).unwrap();
        let mut command = self.command(&["cluster", "up"]);
        command.args(arguments).stdout(log.try_clone().unwrap()).stderr(log);
        Up { child: command.spawn().expect("the binary runs") }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// Waits until `name` has said that it is up.
    async fn says_up(&self, name: &str) {
        let line = format!("{name:9} | {name} is up.");
        eventually(&line, || async { self.log().contains(&line).then_some(()) }).await;
    }
}

fn free_ports<const N: usize>() -> [u16; N] {
    // Held together, so that they differ.
    let held = [(); N].map(|()| std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

async fn billing_client(url: &str) -> BillingServiceClient<Channel> {
    BillingServiceClient::connect(url.to_owned()).await.expect("it listens")
}

/// A call with a token, within the trace of `traceparent` if that is not empty.
fn as_caller<T>(message: T, token: &str, traceparent: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ASCII"));
    if !traceparent.is_empty() {
        request.metadata_mut().insert("traceparent", traceparent.parse().expect("ASCII"));
    }
    request
}

struct Up {
    child: Child,
}

impl Up {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The processes it has started, by the node that each is.
    fn children(&self) -> Vec<(String, Pid)> {
        let number = self.pid().as_raw_nonzero();
        let children =
            std::fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap_or_default();
        let node = |pid: &str| {
            let arguments = std::fs::read(Path::new("/proc").join(pid).join("cmdline")).ok()?;
            let mut words = arguments.split(|byte| *byte == 0).map(String::from_utf8_lossy);
            words.find(|word| word == "--node")?;
            Some((words.next()?.into_owned(), Pid::from_raw(pid.parse().ok()?)?))
        };
        children.split_whitespace().filter_map(node).collect()
    }

    async fn ended(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it did not end");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until none of `pids` runs.
async fn gone(pids: &[(String, Pid)]) {
    eventually("no child is left", || async {
        let runs = |(_, pid): &&(String, Pid)| {
            // One that was not waited for yet has ended nevertheless.
            let stat =
                std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
            test_kill_process(*pid).is_ok() && !stat.contains(") Z ")
        };
        pids.iter().find(runs).is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn up_starts_every_node_tells_of_a_death_and_stops_all() {
    let three = Site::of_three().await;
    let mut up = three.up(&[]);
    for name in ["front", "patient-1", "rest"] {
        three.says_up(name).await;
    }
    let children = up.children();
    let mut names: Vec<&str> = children.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["front", "patient-1", "rest"]);
    let log = three.log();
    assert!(log.lines().all(|line| line.contains(" | ") || line.starts_with("hygeia: ")), "{log}");
    assert!(log.contains("patient-1 | {"), "a node's line in JSON, whole:\n{log}");

    let (_, patient) = children.iter().find(|(name, _)| name == "patient-1").unwrap();
    kill_process(*patient, Signal::KILL).unwrap();
    let told = "hygeia: patient-1 has ended: signal 9\n";
    eventually("the death is told", || async { three.log().contains(told).then_some(()) }).await;
    assert_eq!(up.children().len(), 2, "the others go on");

    kill_process(up.pid(), Signal::TERM).unwrap();
    let status = up.ended().await;
    assert_eq!(status.code(), Some(1), "{}", three.log());
    let log = three.log();
    assert!(log.contains("hygeia: SIGTERM: stopping nodes\n"), "{log}");
    assert!(log.ends_with("hygeia: ended other than by being told to: patient-1\n"), "{log}");
    gone(&children).await;
}

#[tokio::test]
async fn up_that_is_told_to_stop_ends_well_and_one_that_is_killed_leaves_nobody() {
    let three = Site::of_three().await;
    let mut up = three.up(&["--only", "patient-1"]);
    three.says_up("patient-1").await;
    let children = up.children();
    assert_eq!(children.len(), 1, "{children:?}");
    kill_process(up.pid(), Signal::INT).unwrap();
    assert!(up.ended().await.success(), "{}", three.log());
    gone(&children).await;

    let mut up = three.up(&["--only", "patient-1,rest"]);
    three.says_up("patient-1").await;
    three.says_up("rest").await;
    let children = up.children();
    assert_eq!(children.len(), 2, "{children:?}");
    kill_process(up.pid(), Signal::KILL).unwrap();
    up.ended().await;
    gone(&children).await;
}

#[tokio::test]
async fn up_refuses_what_cannot_be_started() {
    let three = Site::of_three().await;
    let refused = |arguments: &[&str]| {
        let output = three.command(&["cluster", "up"]).args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told) = refused(&["--only", "front,nurse"]);
    assert!(
        code == 64 && told.contains("--only: there is no node \"nurse\"; allowed: front, patient-1, rest"),
        "{told}"
    );
    let (code, told) = refused(&["--set", "http.listen=127.0.0.1:8080"]);
    assert_eq!(code, 78, "{told}");
    assert!(
        told.contains("http.listen = \"127.0.0.1:8080\" of patient-1: it is http.listen of front"),
        "{told}"
    );
    let (code, told) = refused(&["--set", "store.url=sqlite:hygeia.db"]);
    assert!(code == 78 && told.matches("SQLite is for one process alone").count() == 1, "{told}");
    std::fs::write(three.path().join("none.toml"), "").unwrap();
    let (code, told) = refused(&["--config", "none.toml"]);
    assert!(code == 78 && told.contains("cluster.nodes: no nodes are named"), "{told}");
}

#[tokio::test]
async fn status_asks_a_front_or_the_database() {
    let (site, node) = Node::demo().await;
    let token = node.login().await;
    let site = &site;
    let status = |arguments: &[&str], input: &str| {
        let mut all = vec!["cluster", "status"];
        all.extend(arguments);
        site.run(&all, input)
    };
    let table = status(&[], "");
    assert!(table.starts_with("a node alone, seen from the database\n"), "{table}");
    assert!(
        table.contains("node-1") && table.contains("not known: nodes: not asked; HYGEIA_TOKEN"),
        "{table}"
    );
    assert!(table.contains("0-63@"), "{table}");

    let asked: Value =
        serde_json::from_str(&status(&["--json", "--user", USER], DEMO_PASSWORD)).expect("JSON");
    assert_eq!(asked["seenFrom"], json!("node-1"));
    assert_eq!(asked["nodes"][0]["roles"].as_array().unwrap().len(), 5);
    assert!(asked["nodes"][0]["uptimeMs"].as_u64().is_some() && asked["unknown"] == json!([]), "{asked}");
    assert_eq!(asked["leases"].as_array().unwrap().iter().filter(|l| l["kind"] == "patient").count(), 64);

    let output = site
        .command()
        .args(["cluster", "status", "--url", node.http_url()])
        .env("HYGEIA_TOKEN", &token)
        .output();
    let table = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(table.starts_with("a node alone, seen from node-1\n"), "{table}");
    assert!(table.contains("front,patient,billing,bridge,analytics  live"), "{table}");

    for (url, token, code, told) in [
        (node.http_url(), "a.b.c", 1, "answers 401 Unauthorized"),
        ("http://127.0.0.1:1", "a.b.c", 69, "http://127.0.0.1:1 does not answer: "),
        ("127.0.0.1:1", "a.b.c", 64, "the form is http://HOST:PORT"),
        (node.http_url(), "canary canary", 64, "HYGEIA_TOKEN: no token"),
    ] {
        let output =
            site.command().args(["cluster", "status", "--url", url]).env("HYGEIA_TOKEN", token).output();
        let output = output.unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{err}");
        assert!(err.contains(told) && !err.contains("canary"), "{err}");
    }
}
