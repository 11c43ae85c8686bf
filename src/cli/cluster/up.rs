//! `hygeia cluster up`: runs every node of a file as a child process.
//!
//! Invariants:
//! - No child outlives this process: it stops its children, and if it is killed, the kernel signals them
//!   (`PR_SET_PDEATHSIG`, see `serve`).
//! - A line of a child is printed whole, after the child's name. If the reader of the output is slow, the
//!   children's own log queues fill up, and drop and count lines.
//! - If a child ends by itself, that is reported, and the other children continue.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::cli::failure::{Exit, Failure};
use crate::cli::settings::SettingArgs;
use crate::config::{self, Config, Loaded, Role};
use crate::telemetry::Format;

/// How long the children may take to stop before they are killed. A node stops within ten seconds.
const STOP_LIMIT: Duration = Duration::from_secs(12);

/// Maximum length of a line in bytes. A longer line is printed in pieces.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// The colours of the names, used in turn (ECMA-48, select graphic rendition).
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

#[derive(Debug, Args)]
pub(in crate::cli) struct UpArgs {
    /// The file with [[cluster.nodes]] [env: HYGEIA_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Start only these nodes
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,
    /// Set any key, on every node; may be given several times
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

pub(super) fn run(args: UpArgs, mut environment: Vec<(OsString, OsString)>) -> Result<(), Failure> {
    environment.retain(|(name, _)| name != config::NODE_VARIABLE);
    let settings = SettingArgs::of_file(args.config.clone(), args.set.clone());
    let (_, nodes) = settings.load_each(environment)?;
    let nodes = chosen(nodes, &args.only)?;
    config::check_all(&nodes)?;
    check_apart(&nodes)?;
    crate::cli::with_runtime(async {
        let children = nodes.iter().map(|node| start(&args, &node.config)).collect::<Result<Vec<_>, _>>()?;
        watch(children).await
    })
}

/// Selects the nodes to start.
fn chosen(nodes: Vec<Loaded>, only: &[String]) -> Result<Vec<Loaded>, Failure> {
    let names: Vec<String> = nodes.iter().map(|node| node.config.node.name.clone()).collect();
    if names.is_empty() {
        let reason = "no nodes are named: a file with [[cluster.nodes]] does that, see cluster.toml";
        return Err(Failure::new(Exit::Config, format!("cluster.nodes: {reason}")));
    }
    if let Some(stranger) = only.iter().find(|name| !names.contains(name)) {
        let reason = format!("--only: there is no node {stranger:?}; allowed: {}", names.join(", "));
        return Err(Failure::new(Exit::Usage, reason));
    }
    let wanted = |node: &Loaded| only.is_empty() || only.contains(&node.config.node.name);
    Ok(nodes.into_iter().filter(wanted).collect())
}

/// Checks that no two nodes share an address or a directory, because they run on one machine.
fn check_apart(nodes: &[Loaded]) -> Result<(), Failure> {
    let mut taken: Vec<(String, &'static str, &str)> = Vec::new();
    let mut told = Vec::new();
    for node in nodes {
        let Config { data_dir, node, http, grpc, .. } = &node.config;
        let mut uses = vec![(data_dir.display().to_string(), "data_dir")];
        let listens = [
            ("http.listen", http.listen, true),
            ("grpc.listen", grpc.listen, node.roles.contains(&Role::Billing)),
        ];
        uses.extend(
            listens
                .into_iter()
                .filter(|(_, listen, used)| *used && listen.port() != 0)
                .map(|(key, listen, _)| (listen.to_string(), key)),
        );
        for (value, key) in uses {
            if let Some((_, other_key, other)) = taken.iter().find(|(used, ..)| *used == value) {
                told.push(format!(
                    "{key} = {value:?} of {}: it is {other_key} of {other}; on one machine each node has its own, \
                     by its entry's set = {{ … }}",
                    node.name
                ));
            } else {
                taken.push((value, key, &node.name));
            }
        }
    }
    if told.is_empty() { Ok(()) } else { Err(Failure::new(Exit::Config, told.join("\n"))) }
}

/// A started child.
struct Started {
    name: String,
    child: Child,
}

/// Starts a node. Must run on the main thread, because the kernel signals a child when the *thread* that
/// started it ends.
fn start(args: &UpArgs, config: &Config) -> Result<(Started, Prefix), Failure> {
    let name = config.node.name.clone();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve").args(["--node", &name]);
    command.args(["--stop-with-parent", &std::process::id().to_string()]);
    if let Some(file) = &args.config {
        command.arg("--config").arg(file);
    }
    for set in &args.set {
        command.args(["--set", set]);
    }
    // The child's output is a pipe, for which it would choose JSON. On a terminal, people read it, so ask for
    // text.
    let terminal = std::io::stdout().is_terminal();
    if terminal && config.telemetry.format == Format::Auto {
        command.env("HYGEIA__TELEMETRY__FORMAT", "text");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The child gets its own process group. Ctrl-C reaches only this process, which stops its children in
    // order.
    command.process_group(0).kill_on_drop(true);
    let child = command
        .spawn()
        .map_err(|error| Failure::new(Exit::Failed, format!("{name} could not be started: {error}")))?;
    Ok((Started { name: name.clone(), child }, Prefix { name, coloured: terminal && is_coloured() }))
}

/// Whether names are coloured: see no-color.org.
fn is_coloured() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The text before each line of a child.
struct Prefix {
    name: String,
    coloured: bool,
}

impl Prefix {
    fn text(&self, number: usize, width: usize) -> String {
        let name = &self.name;
        match COLOURS.get(number % COLOURS.len()) {
            Some(colour) if self.coloured => format!("\u{1b}[{colour}m{name:width$} |\u{1b}[0m "),
            _ => format!("{name:width$} | "),
        }
    }
}

/// Forwards lines until the children have ended. A signal makes it stop the children.
async fn watch(children: Vec<(Started, Prefix)>) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let width = children.iter().map(|(started, _)| started.name.len()).max().unwrap_or_default();
    let mut passing = Vec::new();
    let mut pids = Vec::new();
    let mut running = FuturesUnordered::new();
    for (number, (Started { name, mut child }, prefix)) in children.into_iter().enumerate() {
        let prefix = prefix.text(number, width);
        let out = child.stdout.take().map(|out| out.into_owned_fd()).transpose()?;
        let err = child.stderr.take().map(|err| err.into_owned_fd()).transpose()?;
        for stream in [out, err].into_iter().flatten() {
            passing.push(pass_on(stream, prefix.clone())?);
        }
        pids.push(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        // A child is waited for only here. Until then, the kernel does not reuse its process id.
        running.push(async move { (number, name, child.wait().await) });
    }
    let mut failed = Vec::new();
    let mut deadline: Option<Instant> = None;
    while !running.is_empty() {
        let limit = deadline;
        tokio::select! {
            Some((number, name, status)) = running.next() => {
                if let Some(pid) = pids.get_mut(number) {
                    *pid = None;
                }
                let status = status?;
                if deadline.is_none() || !status.success() {
                    tell(&format!("{name} has ended: {}", ending(status)));
                    failed.push(name);
                }
            }
            () = until(limit) => {
                tell("not all nodes have stopped in time; they are killed");
                deadline = None;
                send(&pids, Signal::KILL);
            }
            told = next(&mut interrupt, &mut terminate, &mut hangup) => {
                let again = deadline.is_some();
                tell(&format!("{told}: {} nodes", if again { "killing" } else { "stopping" }));
                send(&pids, if again { Signal::KILL } else { Signal::TERM });
                deadline = Some(Instant::now() + STOP_LIMIT);
            }
        }
    }
    for thread in passing {
        // The panic of a thread has been printed already.
        let _ = thread.join();
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, format!("ended other than by being told to: {}", failed.join(", "))))
}

/// Waits for a signal and returns its name.
async fn next(
    interrupt: &mut tokio::signal::unix::Signal,
    terminate: &mut tokio::signal::unix::Signal,
    hangup: &mut tokio::signal::unix::Signal,
) -> &'static str {
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Sends a signal to the children that still run.
fn send(pids: &[Option<Pid>], signal: Signal) {
    for pid in pids.iter().flatten() {
        // A child that has just ended needs no signal.
        let _ = kill_process(*pid, signal);
    }
}

fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "for no reason known".to_owned(),
    }
}

fn tell(what: &str) {
    // If even this cannot be printed, nothing is left to do.
    let _ = writeln!(std::io::stderr(), "hygeia: {what}");
}

/// Writes the lines of `stream` to standard output, each after `prefix`, until it ends.
fn pass_on(stream: OwnedFd, prefix: String) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("lines".to_owned()).spawn(move || {
        let mut lines = BufReader::new(File::from(stream));
        let mut buffer = Vec::new();
        while let Ok(true) = next_line(&mut lines, &prefix, &mut buffer) {
            // If the output is closed, keep reading, so that the child is not blocked.
            let _ = std::io::stdout().lock().write_all(&buffer);
        }
    })
}

/// Reads the next line into `buffer`, after the prefix. Returns false at the end.
fn next_line(lines: &mut impl BufRead, prefix: &str, buffer: &mut Vec<u8>) -> std::io::Result<bool> {
    use std::io::Read;
    buffer.clear();
    buffer.extend_from_slice(prefix.as_bytes());
    if lines.take(LINE_BYTES_MAX).read_until(b'\n', buffer)? == 0 {
        return Ok(false);
    }
    if buffer.last() != Some(&b'\n') {
        buffer.push(b'\n');
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_after_the_name() {
        let long = "x".repeat(usize::try_from(LINE_BYTES_MAX).unwrap());
        let text = format!("one\n\ntwo {long}\nlast");
        let (mut lines, mut buffer, mut out) = (text.as_bytes(), Vec::new(), Vec::new());
        while next_line(&mut lines, "a | ", &mut buffer).unwrap() {
            out.push(String::from_utf8(buffer.clone()).unwrap());
        }
        assert_eq!(out.len(), 5);
        assert_eq!(
            (out[0].as_str(), out[1].as_str(), out[4].as_str()),
            ("a | one\n", "a | \n", "a | last\n")
        );
        assert!(out[2].starts_with("a | two x") && out[3] == "a | xxxx\n", "{}", out[3]);
    }

    #[test]
    fn names_stand_in_a_column_and_have_colours_on_a_terminal() {
        let prefix = |coloured| Prefix { name: "front".to_owned(), coloured };
        assert_eq!(prefix(false).text(0, 9), "front     | ");
        assert_eq!(prefix(true).text(6, 5), "\u{1b}[36mfront |\u{1b}[0m ");
    }
}
