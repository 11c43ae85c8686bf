//! Our side: the release binary as a process, with the settings that a benchmark needs.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::load::Connection;
use crate::{Result, say};

/// What tokens of the yardstick are signed with, and those of a node under HS256. No base64, so taken as it is.
pub(crate) const JWT_SECRET: &str = "the secret of the benchmark: nobody else uses it";

const EMAIL: &str = "testuser@test.com";
/// That of the demo's user.
const PASSWORD: &str = "password123";
/// That of a user made for a node that is no demo, where common ones are refused.
const OWN_PASSWORD: &str = "a benchmark and nothing else";
const PATIENCE: Duration = Duration::from_secs(60);

/// A data directory with the settings of the node that lives on it.
pub(crate) struct Site {
    directory: TempDir,
    environment: Vec<(String, String)>,
    password: &'static str,
}

impl Site {
    /// The embedded defaults, on ports of its own.
    pub(crate) fn embedded() -> Result<Site> {
        let site = Site { directory: tempfile::tempdir()?, environment: Vec::new(), password: PASSWORD };
        Ok(site
            .with("HYGEIA__HTTP__LISTEN", "127.0.0.1:0")
            .with("HYGEIA__GRPC__LISTEN", "127.0.0.1:0")
            // One user asks for all.
            .with("HYGEIA__HTTP__RATE_LIMIT_PER_S", "0")
            .with("HYGEIA__GRPC__RATE_LIMIT_PER_S", "0")
            .with("HYGEIA__AUTH__JWT_SECRET", JWT_SECRET)
            .with("HYGEIA__AUDIT__SECRET", JWT_SECRET)
            // Longer than any run.
            .with("HYGEIA__AUTH__TOKEN_TTL_SECONDS", "86400")
            .with("HYGEIA__AUTH__SESSION_IDLE_SECONDS", "86400"))
    }

    /// On a database and a broker of their own, with a user.
    pub(crate) fn on(database_url: &str, brokers: &str) -> Result<Site> {
        let site = Site::embedded()?
            .with("HYGEIA__STORE__URL", database_url)
            .with("HYGEIA__KAFKA__BROKERS", brokers);
        site.with_user()
    }

    /// With its schema, and with a user to log in as who is not the demo's.
    pub(crate) fn with_user(self) -> Result<Site> {
        self.run(&["migrate"], "")?;
        self.run(&["user", "add", EMAIL, "--role", "ADMIN"], OWN_PASSWORD)?;
        Ok(Site { password: OWN_PASSWORD, ..self })
    }

    /// One more setting.
    pub(crate) fn with(mut self, key: &str, value: &str) -> Site {
        self.environment.push((key.into(), value.into()));
        self
    }

    fn runtime_file(&self) -> PathBuf {
        self.data_dir().join("runtime.json")
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hygeia"));
        command.current_dir(self.directory.path()).env_clear().env("HYGEIA__DATA_DIR", self.data_dir());
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Runs a subcommand to its end, with `input` on its standard input.
    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> Result<()> {
        let mut child = self.command().args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        child.stdin.take().ok_or("no input")?.write_all(input.as_bytes())?;
        let status = child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("hygeia {arguments:?}: {status}").into()) }
    }

    /// Starts the node without waiting for anything. Its log goes to a file, as it would in service.
    pub(crate) fn spawn(&self) -> Result<Process> {
        let _ = std::fs::remove_file(self.runtime_file());
        let log = File::options().create(true).append(true).open(self.directory.path().join("log"))?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Process { child: command.spawn()? })
    }

    /// Starts the node and waits until it is ready.
    pub(crate) async fn start(&self) -> Result<Node> {
        let began = Instant::now();
        let mut process = self.spawn()?;
        let http = loop {
            if let Some(status) = process.child.try_wait()? {
                return Err(format!("the node ended: {status}\n{}", self.log_end()).into());
            }
            match address(&self.runtime_file()) {
                Some(address) if is_ready(address).await => break address,
                _ if began.elapsed() > PATIENCE => {
                    return Err(format!("the node is not ready\n{}", self.log_end()).into());
                }
                _ => sleep(Duration::from_millis(1)).await,
            }
        };
        Ok(Node { process, http, password: self.password, ready_after: began.elapsed() })
    }

    fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// A token as the node makes them, for a user that need not exist.
pub(crate) fn token_without_node() -> Result<String> {
    let claims = json!({"sub": EMAIL, "role": "ADMIN", "iss": "hygeia", "exp": u32::MAX});
    let key = jsonwebtoken::EncodingKey::from_secret(JWT_SECRET.as_bytes());
    Ok(jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key)?)
}

fn address(runtime: &Path) -> Option<SocketAddr> {
    let written: Value = serde_json::from_slice(&std::fs::read(runtime).ok()?).ok()?;
    let text = written["http"].as_str()?;
    text.trim_start_matches("http://").trim_end_matches('/').parse().ok()
}

async fn is_ready(address: SocketAddr) -> bool {
    let asked = async {
        let mut connection = Connection::open(address).await?;
        connection.exchange(format!("GET /health/ready HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).await
    };
    matches!(asked.await, Ok(200))
}

/// A node as a process. It ends with us.
pub(crate) struct Process {
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node that serves.
pub(crate) struct Node {
    process: Process,
    pub(crate) http: SocketAddr,
    password: &'static str,
    /// From its start to its first word that it is ready.
    pub(crate) ready_after: Duration,
}

impl Node {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// A token.
    pub(crate) async fn token(&self) -> Result<String> {
        self.token_for(&json!({"email": EMAIL, "password": self.password}).to_string()).await
    }

    /// The token of whom the body `login` logs in.
    pub(crate) async fn token_for(&self, login: &str) -> Result<String> {
        let login: Value = serde_json::from_str(login)?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.post(self.url("/auth/login")).json(&login).send().await?.error_for_status()?;
        let answer: Value = answer.json().await?;
        Ok(answer["token"].as_str().ok_or("no token")?.to_owned())
    }

    /// Makes somebody else who may log in with `role`, as whose sessions end those of the holder of `token` do not. Answers with
    /// the body of their login.
    pub(crate) async fn another_user(&self, token: &str, role: &str) -> Result<String> {
        let login = json!({"email": "other@bench.example", "password": OWN_PASSWORD});
        let mut user = login.clone();
        user["role"] = role.into();
        let client = reqwest::Client::builder().no_proxy().build()?;
        client
            .post(self.url("/api/users"))
            .bearer_auth(token)
            .json(&user)
            .send()
            .await?
            .error_for_status()?;
        Ok(login.to_string())
    }

    /// The path of the page after the one at `path`, if there is one.
    pub(crate) async fn next_page_of(&self, path: &str, token: &str) -> Result<Option<String>> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.get(self.url(path)).bearer_auth(token).send().await?.error_for_status()?;
        Ok(answer.headers().get("link").and_then(|link| next_page(link.to_str().ok()?)))
    }

    /// Up to `count` patients, by the pages of the list.
    pub(crate) async fn patients<T: serde::de::DeserializeOwned>(
        &self,
        token: &str,
        count: usize,
    ) -> Result<Vec<T>> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let mut patients = Vec::new();
        let mut next = Some("/api/patients?limit=1000".to_owned());
        while let Some(path) = next.take().filter(|_| patients.len() < count) {
            let answer = client.get(self.url(&path)).bearer_auth(token).send().await?.error_for_status()?;
            next = answer.headers().get("link").and_then(|link| next_page(link.to_str().ok()?));
            patients.extend(answer.json::<Vec<T>>().await?);
        }
        patients.truncate(count);
        Ok(patients)
    }

    /// The memory it has in RAM, in KiB.
    pub(crate) fn rss_kib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim_end_matches("kB").trim().parse()?)
    }

    /// Waits until it has next to nothing to do: less than 3 % of one processor over a second.
    pub(crate) async fn quiet(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let before = self.cpu_ticks()?;
            sleep(Duration::from_secs(1)).await;
            // A tick is a hundredth of a second on every Linux we know.
            if self.cpu_ticks()? - before < 3 {
                return Ok(());
            }
            if began.elapsed() > 2 * PATIENCE {
                say("the node did not come to rest; going on");
                return Ok(());
            }
        }
    }

    fn cpu_ticks(&self) -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.child.id()))?;
        // The name in the second field may hold anything; fields count from behind it (proc(5)).
        let (_, fields) = stat.rsplit_once(')').ok_or("no name")?;
        let times = fields.split_whitespace().skip(11).take(2);
        Ok(times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum())
    }

    /// Stops it.
    pub(crate) async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}

impl Process {
    /// Stops it as an orchestrator would.
    pub(crate) async fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > PATIENCE {
                return Err("the node did not stop".into());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

/// The path of `rel="next"` in a `Link` header (RFC 8288).
fn next_page(link: &str) -> Option<String> {
    let (target, _) = link.split(',').find(|part| part.contains("rel=\"next\""))?.split_once('>')?;
    let target = target.trim().strip_prefix('<')?;
    let path_at = target.find("://").map_or(Some(0), |at| target[at + 3..].find('/').map(|p| at + 3 + p))?;
    Some(target[path_at..].to_owned())
}
