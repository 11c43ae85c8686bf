//! Nodes as processes: started from the built binary, signalled, and awaited.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test stops at its first surprise")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;

/// How long a condition is awaited before the test fails. Generous: machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Awaits that `condition` gives a value, asking again and again for at most `PATIENCE`.
///
/// # Panics
/// It did not, within that time.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, condition: impl FnMut() -> F) -> T {
    match within(PATIENCE, condition).await {
        Some(value) => value,
        None => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// Awaits that `condition` gives a value, asking again and again for at most `patience`.
pub async fn within<T, F: Future<Output = Option<T>>>(
    patience: Duration,
    mut condition: impl FnMut() -> F,
) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition().await {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The brokers that `HYGEIA_TEST_KAFKA` names, for tests that do not need one of their own.
pub fn outside_brokers() -> Option<String> {
    std::env::var("HYGEIA_TEST_KAFKA").ok().filter(|brokers| !brokers.is_empty())
}

/// The variable that names another binary to start than the one built with the tests.
pub const BINARY_VARIABLE: &str = "HYGEIA_TEST_BINARY";

/// Tests ask as one user, as fast as they can, and most of them at a server that does not wait for its disk; those
/// about limits and durability set them.
const FOR_TESTS: [(&str, &str); 3] = [
    ("HYGEIA__HTTP__RATE_LIMIT_PER_S", "0"),
    ("HYGEIA__GRPC__RATE_LIMIT_PER_S", "0"),
    ("HYGEIA__STORE__FSYNC_OFF_ALLOWED", "true"),
];

/// The binary, in `directory`, with nothing of the environment but the path.
pub fn command(directory: &Path) -> Command {
    let other = std::env::var_os(BINARY_VARIABLE).filter(|path| !path.is_empty());
    let mut command = Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_hygeia").into()));
    command.current_dir(directory).env_clear().envs(FOR_TESTS);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// Runs `command` to its end, with `input` on its standard input, and gives what it wrote.
///
/// # Panics
/// It failed.
pub fn run_to_end(mut command: Command, directory: &Path, input: &str) -> String {
    let input_file = directory.join("input");
    std::fs::write(&input_file, input).expect("written");
    command.stdin(File::open(&input_file).expect("readable"));
    let output = command.output().expect("the binary runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?} failed: {out}{err}", command.get_args());
    out.into_owned()
}

/// A started process, perhaps not serving yet. Killed when it is dropped.
pub struct Process {
    child: Child,
    runtime: PathBuf,
    log_path: PathBuf,
}

impl Process {
    /// Starts `command`, which logs to the end of `log_path` and keeps its files in `data_dir`.
    pub fn start(mut command: Command, data_dir: &Path, log_path: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log_path).expect("a log file");
        let runtime = data_dir.join("runtime.json");
        let _ = std::fs::remove_file(&runtime);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("cloned")).stderr(log);
        Process { child: command.spawn().expect("the binary runs"), runtime, log_path: log_path.to_owned() }
    }

    /// Sends it a signal. When this returns after `STOP`, no thread of the process runs any more.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the process can be signalled");
        if signal == Signal::STOP {
            let stopped = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT);
            stopped.expect("the process stops");
        }
    }

    /// The addresses it has written down, if it has.
    pub fn addresses(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(&self.runtime).ok()?).ok()
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log_path).unwrap_or_default()).into_owned()
    }

    /// How much memory it holds (VmRSS), in bytes; nothing once it has ended.
    pub fn memory_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }

    /// How much of the processor it has used, in hundredths of a second (proc_pid_stat(5), fields 14 and 15).
    pub fn cpu_hundredths(&self) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the process can be waited for")
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.try_wait() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process did not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
