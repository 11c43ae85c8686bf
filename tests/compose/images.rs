//! The images of a run: the originals, or stand-ins where they cannot be pulled; and ours, built from the Dockerfile.

use std::time::Duration;

use tokio::process::Command;

use crate::docker::{Compose, docker, top, work};

/// The largest that our image may be.
const IMAGE_BYTES_MAX: u64 = 80 * 1000 * 1000;
/// How long a registry may take to say that it has an image.
const PULL_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Our image.
pub(crate) const IMAGE: &str = "hygeia:compose-test";

/// A base image: the variable that names another one, where its default stands, and what stands in for it.
struct Base {
    variable: &'static str,
    file: &'static str,
    stand_in: &'static str,
}

const BASES: [Base; 4] = [
    Base { variable: "BUILD_IMAGE", file: "Dockerfile", stand_in: "hygeia-standin/build:1.95" },
    Base { variable: "RUNTIME_IMAGE", file: "Dockerfile", stand_in: "hygeia-standin/runtime:12" },
    Base { variable: "POSTGRES_IMAGE", file: "docker-compose.yml", stand_in: "hygeia-standin/postgres:15" },
    Base {
        variable: "KAFKA_IMAGE",
        file: "docker-compose.yml",
        stand_in: "hygeia-standin/kafka:tansu-0.6.0",
    },
];

impl Base {
    /// The default, as its file has it.
    fn default(&self) -> Result<String, String> {
        let text =
            std::fs::read_to_string(top().join(self.file)).map_err(|e| format!("{}: {e}", self.file))?;
        let found = text.lines().find_map(|line| match self.file {
            "Dockerfile" => line.strip_prefix(&format!("ARG {}=", self.variable)).map(str::to_owned),
            _ => {
                let (_, rest) = line.split_once(&format!("${{{}:-", self.variable))?;
                rest.split_once('}').map(|(image, _)| image.to_owned())
            }
        });
        found.ok_or_else(|| format!("{} does not say what {} is", self.file, self.variable))
    }

    /// The original, if it is here or can be had.
    async fn original(&self) -> Result<Option<String>, String> {
        if let Some(named) = std::env::var(self.variable).ok().filter(|named| !named.is_empty()) {
            return Ok(Some(named));
        }
        let image = self.default()?;
        if docker(&["image", "inspect", &image]).await.is_ok() {
            return Ok(Some(image));
        }
        let mut pull = Command::new("docker");
        pull.args(["pull", "-q", &image]).kill_on_drop(true);
        let pulled = tokio::time::timeout(PULL_TIMEOUT, pull.output()).await;
        Ok(matches!(pulled, Ok(Ok(output)) if output.status.success()).then_some(image))
    }
}

/// Finds or makes all of them, says which, and sets the variables. Ours is built last.
pub(crate) async fn prepare(compose: &mut Compose) -> Result<(), String> {
    let named = std::env::var("HYGEIA_IMAGE").ok().filter(|named| !named.is_empty());
    let mut chosen = Vec::new();
    for base in BASES.iter().filter(|base| named.is_none() || base.file != "Dockerfile") {
        let original = base.original().await?;
        chosen.push((base, original));
    }
    if chosen.iter().any(|(_, original)| original.is_none()) {
        let directory = std::env::var_os("HYGEIA_STANDINS").map(std::path::PathBuf::from);
        let mut make = Command::new("tests/compose/standins.sh");
        make.arg(directory.unwrap_or_else(|| std::env::temp_dir().join("hygeia-standins")));
        work(make).await?;
    }
    let mut build = Command::new("docker");
    build.args(["build", "-t", IMAGE]);
    for (base, original) in chosen {
        let (image, what) = match original {
            Some(image) => (image, ""),
            None => (base.stand_in.to_owned(), "  (a stand-in: the original cannot be pulled)"),
        };
        println!("  {:<14} {image}{what}", base.variable);
        if base.file == "Dockerfile" {
            build.args(["--build-arg", &format!("{}={image}", base.variable)]);
        } else {
            compose.set(base.variable, image);
        }
    }
    match named {
        Some(named) => {
            println!("  {:<14} {named}  (not built: it is named)", "HYGEIA_IMAGE");
            compose.set("HYGEIA_IMAGE", named.clone());
            look_at(&named).await
        }
        None => {
            build.args(["-q", "."]);
            work(build).await?;
            compose.set("HYGEIA_IMAGE", IMAGE);
            look_at(IMAGE).await
        }
    }
}

/// Our image is small, has a user without rights and a health check, and no shell.
async fn look_at(image: &str) -> Result<(), String> {
    let format = "{{.Size}} {{.Config.User}} {{json .Config.Healthcheck.Test}} {{json .Config.Labels}}";
    let said = docker(&["image", "inspect", "-f", format, image]).await?;
    let mut words = said.split_whitespace();
    let bytes: u64 = words.next().and_then(|size| size.parse().ok()).ok_or("no size")?;
    let user = words.next().unwrap_or_default().to_owned();
    println!("  {image}: {:.1} MB, user {user}", bytes as f64 / 1e6);
    if bytes > IMAGE_BYTES_MAX {
        return Err(format!("{image} has {bytes} bytes; allowed: {IMAGE_BYTES_MAX}"));
    }
    if user.split(':').next().and_then(|uid| uid.parse::<u32>().ok()).is_none_or(|uid| uid == 0) {
        return Err(format!("{image} runs as {user:?}, which must be the number of a user other than root"));
    }
    if !said.contains("healthcheck") || !said.contains("org.opencontainers.image.version") {
        return Err(format!("{image} has no health check, or no labels: {said}"));
    }
    let shell =
        docker(&["run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", image, "-c", "true"]).await;
    if shell.is_ok() { Err(format!("{image} has a shell")) } else { Ok(()) }
}
