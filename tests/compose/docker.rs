//! Docker and Compose as programs: whichever Compose is there, with a limit on everything that is asked.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use tokio::process::Command;

/// How long a command may take that only asks or signals.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one may take that builds or starts things.
const WORK_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// How much of what a command said is told when it fails, in lines.
const TOLD_LINES: usize = 30;

/// The directory of the package.
pub(crate) fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `docker …`, which must succeed; what it wrote on standard output.
pub(crate) async fn docker(arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("docker");
    command.args(arguments);
    succeed(command, top(), ASK_TIMEOUT).await
}

/// Runs a program that works for a while and tells on this terminal how it goes.
pub(crate) async fn work(mut command: Command) -> Result<(), String> {
    let what = format!("{command:?}");
    let mut child =
        command.current_dir(top()).kill_on_drop(true).spawn().map_err(|e| format!("{what}: {e}"))?;
    match tokio::time::timeout(WORK_TIMEOUT, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(ended) => Err(format!("{what} ended with {ended:?}")),
        Err(_) => Err(format!("{what} took more than {WORK_TIMEOUT:?}")),
    }
}

async fn succeed(mut command: Command, directory: &Path, limit: Duration) -> Result<String, String> {
    let what = format!("{:?}", command.as_std());
    command.current_dir(directory).stdin(std::process::Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(limit, command.output()).await {
        Ok(Ok(Output { status, stdout, .. })) if status.success() => {
            Ok(String::from_utf8_lossy(&stdout).into_owned())
        }
        Ok(Ok(Output { status, stdout, stderr })) => {
            let said = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            let lines: Vec<_> = said.lines().collect();
            let last = &lines[lines.len().saturating_sub(TOLD_LINES)..];
            Err(format!("{what} ended with {status}:\n{}", last.join("\n")))
        }
        Ok(Err(error)) => Err(format!("{what}: {error}")),
        Err(_) => Err(format!("{what} took more than {limit:?}")),
    }
}

/// Compose for one project.
#[derive(Clone)]
pub(crate) struct Compose {
    /// `docker compose` or `docker-compose`.
    program: Vec<&'static str>,
    project: String,
    environment: Vec<(String, String)>,
}

impl Compose {
    /// The one that is there, if one is.
    pub(crate) async fn find(project: &str) -> Option<Self> {
        for program in [vec!["docker", "compose"], vec!["docker-compose"]] {
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).arg("version");
            if succeed(command, top(), ASK_TIMEOUT).await.is_ok() {
                return Some(Compose { program, project: project.to_owned(), environment: Vec::new() });
            }
        }
        None
    }

    /// How it is called.
    pub(crate) fn name(&self) -> String {
        self.program.join(" ")
    }

    /// Sets a variable of docker-compose.yml.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.push((name.to_owned(), value.into()));
    }

    /// The same with one more variable.
    pub(crate) fn with(&self, name: &str, value: impl Into<String>) -> Self {
        let mut with = self.clone();
        with.set(name, value);
        with
    }

    /// The same images in another project.
    pub(crate) fn beside(&self, project: &str) -> Self {
        Compose { project: project.to_owned(), ..self.clone() }
    }

    /// What stands for `docker compose` on a command line.
    fn words(&self) -> Vec<String> {
        let file = |path: &str| top().join(path).display().to_string();
        let project = ["-p".to_owned(), self.project.clone()];
        let files =
            ["docker-compose.yml", "tests/compose/override.yml"].map(|path| ["-f".to_owned(), file(path)]);
        self.program
            .iter()
            .map(|&word| word.to_owned())
            .chain(files.into_iter().flatten())
            .chain(project)
            .collect()
    }

    /// Runs lines of the handbook in a directory, with this project for its `docker compose`, until one fails.
    pub(crate) async fn script(&self, lines: &str, directory: &Path) -> Result<(), String> {
        let lines =
            lines.replace("docker compose", &self.words().join(" ")).replace("up -d", "up -d --no-build");
        let mut command = Command::new("sh");
        command.args(["-eu", "-c", &lines]);
        succeed(self.prepared(command), directory, WORK_TIMEOUT).await.map(drop)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments);
        self.prepared(command)
    }

    fn prepared(&self, mut command: Command) -> Command {
        // One that is slow to answer on a busy machine is no failure; Compose 1 gives up after a minute.
        command
            .env("COMPOSE_HTTP_TIMEOUT", "300")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it to its end, which must be good; what it wrote on standard output.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String, String> {
        succeed(self.command(arguments), top(), WORK_TIMEOUT).await
    }

    /// The containers of a service.
    pub(crate) async fn containers(&self, service: &str) -> Result<Vec<String>, String> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let service = format!("label=com.docker.compose.service={service}");
        let listed = docker(&["ps", "-aq", "--filter", &project, "--filter", &service]).await?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// The only container of a service.
    pub(crate) async fn container(&self, service: &str) -> Result<String, String> {
        let found = self.containers(service).await?;
        match found.as_slice() {
            [one] => Ok(one.clone()),
            _ => Err(format!("{} containers of {service}", found.len())),
        }
    }

    /// The network's whole name.
    pub(crate) fn network(&self, name: &str) -> String {
        format!("{}_{name}", self.project)
    }
}

/// Whether a container runs and its health check says that it is well.
pub(crate) async fn is_healthy(container: &str) -> bool {
    let state = docker(&["inspect", "-f", "{{.State.Running}} {{.State.Health.Status}}", container]).await;
    state.is_ok_and(|state| state.trim() == "true healthy")
}

/// The address of a container in a network.
pub(crate) async fn address(container: &str, network: &str) -> Result<String, String> {
    let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
    let address = docker(&["inspect", "-f", &format, container]).await?.trim().to_owned();
    if address.is_empty() { Err(format!("{container} has no address in {network}")) } else { Ok(address) }
}
