//! One node of a run: its process, its configuration, and its way to the database.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::Signal;
use tokio::sync::Mutex;

use crate::machinery::prompt::Why;
use crate::machinery::proxy::{Link, Rules};
use crate::outages::Outages;
use crate::process::{self, PATIENCE, Process, within};

/// A node: its place stays the same, its process comes and goes.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) roles: &'static [&'static str],
    /// Where its edge listens.
    pub(crate) http: SocketAddr,
    /// Where its gRPC port is, if its roles have one.
    pub(super) grpc: SocketAddr,
    pub(super) number: usize,
    pub(super) outages: Arc<Outages>,
    pub(super) directory: PathBuf,
    pub(super) config: PathBuf,
    /// Its way to the database.
    pub(super) database: Link,
    pub(super) process: Mutex<Option<Process>>,
}

impl Node {
    pub(super) fn command(&self) -> std::process::Command {
        let mut command = process::command(&self.directory);
        command.env("HYGEIA_CONFIG", &self.config);
        if let Some(filter) = std::env::var_os("HYGEIA_LOG") {
            command.env("HYGEIA_LOG", filter);
        }
        command
    }

    /// Runs the program to its end, again and again: on a busy machine the database may be slow to answer.
    pub(super) async fn run(&self, arguments: &[&str], input: &str) {
        let input_file = self.directory.join("input");
        std::fs::write(&input_file, input).expect("written");
        let said = std::cell::RefCell::new(String::new());
        let ran = within(PATIENCE, || async {
            let mut command = self.command();
            command.args(arguments).stdin(std::fs::File::open(&input_file).expect("readable"));
            let output = command.output().expect("the binary runs");
            *said.borrow_mut() = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success().then_some(())
        });
        assert!(ran.await.is_some(), "{arguments:?} failed: {}", said.borrow());
    }

    /// Starts it, if it does not run.
    pub(crate) async fn start(&self) {
        let mut process = self.process.lock().await;
        if process.is_none() {
            let mut command = self.command();
            command.arg("serve");
            let text = std::fs::read_to_string(&self.config).unwrap_or_default();
            if text.contains("[cluster]") {
                command.args(["--node", self.name]);
            }
            self.outages.end(Why::Ended(self.number));
            *process =
                Some(Process::start(command, &self.directory.join("data"), &self.directory.join("log")));
        }
    }

    pub(super) async fn restart_if_ended(&self) -> Option<std::process::ExitStatus> {
        let status = {
            let mut process = self.process.lock().await;
            let status = process.as_mut().and_then(Process::try_wait)?;
            *process = None;
            status
        };
        self.outages.begin(Why::Ended(self.number));
        self.start().await;
        Some(status)
    }

    /// Sends it a signal, if it runs.
    pub(crate) async fn signal(&self, signal: Signal) {
        let mut process = self.process.lock().await;
        if let Some(process) = process.as_mut()
            && process.try_wait().is_none()
        {
            if signal == Signal::STOP {
                self.outages.begin(Why::Stopped(self.number));
            }
            process.signal(signal);
            if signal == Signal::CONT {
                self.outages.end(Why::Stopped(self.number));
            }
        }
    }

    /// Sends it a signal that ends it, and waits for that.
    pub(crate) async fn end(&self, signal: Signal) -> Option<std::process::ExitStatus> {
        let mut guard = self.process.lock().await;
        let mut process = guard.take()?;
        if let Some(status) = process.try_wait() {
            return Some(status);
        }
        self.outages.begin(Why::Ended(self.number));
        process.signal(signal);
        // What is stopped hears nothing but SIGKILL.
        process.signal(Signal::CONT);
        self.outages.end(Why::Stopped(self.number));
        Some(process.ended().await)
    }

    /// How much memory its process holds, in bytes, if it runs.
    pub(crate) async fn memory_bytes(&self) -> Option<u64> {
        self.process.lock().await.as_ref().and_then(Process::memory_bytes)
    }

    /// Sets the rules of its way to the database.
    pub(crate) fn to_database(&self, rules: Rules) {
        self.database.set(rules);
    }
}
