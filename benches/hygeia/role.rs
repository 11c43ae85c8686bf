//! This binary again, as another process: what it is to do comes as JSON on its standard input, one
//! line; what it has to say goes as JSON to its standard output, one line each.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Result, broker, load, relay, remote, yardstick};

/// The argument before the name of a role.
pub(crate) const FLAG: &str = "--role";

/// Runs the role named first in `arguments`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    match arguments.first().map(String::as_str) {
        Some("load") => load::role(),
        Some("yardstick") => yardstick::role(),
        Some("broker") => broker::role(),
        Some("producer") => relay::producer_role(),
        Some(role) if remote::is_role(role) => remote::role(role),
        other => Err(format!("no role {other:?}").into()),
    }
}

/// What this process is to do.
pub(crate) fn task<T: DeserializeOwned>() -> Result<T> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// What this process is to do next; `None` when it is dismissed.
pub(crate) fn next_task<T: DeserializeOwned>() -> Result<Option<T>> {
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line)?;
    if read == 0 { Ok(None) } else { Ok(Some(serde_json::from_str(&line)?)) }
}

/// Tells the process that started this one.
pub(crate) fn tell(message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    std::io::stdout().write_all(line.as_bytes())?;
    Ok(std::io::stdout().flush()?)
}

/// Waits until the process that started this one closes the input: it does so, or ends.
pub(crate) fn until_dismissed() -> Result<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A process in a role. It is dismissed when this is dropped.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts a process as `role` with `task`.
    pub(crate) fn start(role: &str, task: &impl Serialize) -> Result<Process> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([FLAG, role])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut process = Process { child, input, output };
        process.say(task)?;
        Ok(process)
    }

    /// What it is to do next, for a role that asks for more.
    pub(crate) fn say(&mut self, task: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(task)?;
        line.push('\n');
        Ok(self.input.as_mut().ok_or("no input")?.write_all(line.as_bytes())?)
    }

    /// What the process says next.
    pub(crate) fn heard<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(format!("the process ended: {}", self.child.wait()?).into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// Starts `role` with `task` and answers with the one thing it says.
pub(crate) async fn done<T: DeserializeOwned + Send + 'static>(
    role: &'static str,
    task: impl Serialize + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(move || Process::start(role, &task)?.heard()).await?
}
