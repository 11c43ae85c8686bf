//! The images of a run: the originals, or stand-ins where they cannot be pulled; and ours, by the Dockerfile.

use std::time::Duration;

use tokio::process::Command;

use crate::docker::{Compose, docker, top, work};

/// The largest that our image may be.
const IMAGE_BYTES_MAX: u64 = 80 * 1000 * 1000;
/// How long a registry may take to say that it has an image.
const PULL_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Our image.
pub(crate) const IMAGE: &str = "hygeia:compose-test";

/// A base image: the variable of docker-compose.yml that names another one, and what stands in for it.
struct Base {
    variable: &'static str,
    stand_in: &'static str,
    /// What `standins.sh` calls it.
    name: &'static str,
}

const BUILD: Base = Base { variable: "BUILD_IMAGE", stand_in: "hygeia-standin/build:1.95", name: "build" };
const RUNTIME: Base =
    Base { variable: "RUNTIME_IMAGE", stand_in: "hygeia-standin/runtime:12", name: "runtime" };
const POSTGRES: Base =
    Base { variable: "POSTGRES_IMAGE", stand_in: "hygeia-standin/postgres:debian-2", name: "postgres" };
const KAFKA: Base = Base { variable: "KAFKA_IMAGE", stand_in: "hygeia-standin/kafka:4", name: "kafka" };

const HAPROXY: Base =
    Base { variable: "HAPROXY_IMAGE", stand_in: "hygeia-standin/haproxy:debian", name: "haproxy" };

/// Where the binary of our image comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    /// The Dockerfile builds it for release: takes as long as that takes.
    Release,
    /// It is the one that the tests have built, without its debug information, in the last stage of the Dockerfile.
    OfTheTests,
}

impl Base {
    /// The default, as docker-compose.yml has it; and as the Dockerfile has it, for those who build without Compose.
    fn default(&self) -> Result<String, String> {
        let read = |file: &str| std::fs::read_to_string(top().join(file)).map_err(|e| format!("{file}: {e}"));
        let (compose, dockerfile) = (read("docker-compose.yml")?, read("Dockerfile")?);
        let of_compose = compose.lines().find_map(|line| {
            let (_, rest) = line.split_once(&format!("${{{}:-", self.variable))?;
            rest.split_once('}').map(|(image, _)| image)
        });
        let of_compose =
            of_compose.ok_or_else(|| format!("docker-compose.yml does not say what {} is", self.variable))?;
        let of_dockerfile =
            dockerfile.lines().find_map(|line| line.strip_prefix(&format!("ARG {}=", self.variable)));
        match of_dockerfile.filter(|image| *image != of_compose) {
            None => Ok(of_compose.to_owned()),
            Some(other) => Err(format!(
                "{}: {of_compose} in docker-compose.yml, {other} in the Dockerfile",
                self.variable
            )),
        }
    }

    /// The original, or else a stand-in; says which.
    async fn find_or_make(&self) -> Result<String, String> {
        let (image, what) = match self.original().await? {
            Some(image) => (image, ""),
            None => {
                let mut make = Command::new("tests/compose/standins.sh");
                make.arg(self.name);
                work(make).await?;
                (self.stand_in.to_owned(), "  (a stand-in: the original cannot be pulled)")
            }
        };
        println!("  {:<14} {image}{what}", self.variable);
        Ok(image)
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
pub(crate) async fn prepare(compose: &mut Compose, binary: Binary) -> Result<(), String> {
    for base in [POSTGRES, KAFKA, HAPROXY] {
        let image = base.find_or_make().await?;
        compose.set(base.variable, image);
    }
    let ours = match std::env::var("HYGEIA_IMAGE").ok().filter(|named| !named.is_empty()) {
        Some(named) => {
            println!("  {:<14} {named}  (not built: it is named)", "HYGEIA_IMAGE");
            look_at(&named, Some(IMAGE_BYTES_MAX)).await?;
            named
        }
        None => {
            compose.set(RUNTIME.variable, RUNTIME.find_or_make().await?);
            compose.set("HYGEIA_IMAGE", IMAGE);
            if binary == Binary::Release || !built_of_the_tests(compose).await? {
                built_for_release(compose).await?;
            }
            return Ok(());
        }
    };
    compose.set("HYGEIA_IMAGE", ours);
    Ok(())
}

/// As `docker compose build` does it for anybody.
async fn built_for_release(compose: &mut Compose) -> Result<(), String> {
    compose.set(BUILD.variable, BUILD.find_or_make().await?);
    compose.run(&["build", "provision"]).await?;
    look_at(IMAGE, Some(IMAGE_BYTES_MAX)).await
}

/// Builds our image from the binary of the tests. Whether it runs in there: a base of another system may have an older
/// C library than this machine.
async fn built_of_the_tests(compose: &Compose) -> Result<bool, String> {
    let context = tempfile::tempdir().map_err(|e| e.to_string())?;
    let binary = context.path().join("hygeia");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&binary).arg(env!("CARGO_BIN_EXE_hygeia"));
    work(strip).await?;
    let dockerfile = std::fs::read_to_string(top().join("Dockerfile")).map_err(|e| e.to_string())?;
    let stage = last_stage(&dockerfile)?;
    std::fs::write(context.path().join("Dockerfile"), stage).map_err(|e| e.to_string())?;
    let of_the_tests = compose.with("HYGEIA_TEST_BUILD_CONTEXT", context.path().display().to_string());
    of_the_tests.run(&["build", "provision"]).await?;
    if let Err(problem) = docker(&["run", "--rm", "--network", "none", IMAGE, "--version"]).await {
        let last = problem.lines().last().unwrap_or_default();
        println!(
            "  the binary of the tests does not run in there, so another one is built for release ({last})"
        );
        return Ok(false);
    }
    // How large a binary is that is not optimised says nothing.
    look_at(IMAGE, None).await.map(|()| true)
}

/// The last stage of the Dockerfile, with a binary beside it instead of the one of the stage before.
fn last_stage(dockerfile: &str) -> Result<String, String> {
    const BUILT: &str = "COPY --from=build /build/target/release/hygeia ";
    let (_, stage) =
        dockerfile.rsplit_once("FROM ${RUNTIME_IMAGE}").ok_or("the Dockerfile has no last stage")?;
    if stage.matches(BUILT).count() != 1 {
        return Err(format!("the last stage of the Dockerfile does not have one line {BUILT:?}"));
    }
    Ok(format!("ARG RUNTIME_IMAGE\nFROM ${{RUNTIME_IMAGE}}{}", stage.replace(BUILT, "COPY hygeia ")))
}

/// Our image is not larger than it may be, has a user without rights and a health check, and no shell.
async fn look_at(image: &str, bytes_max: Option<u64>) -> Result<(), String> {
    let format = "{{.Size}} {{.Config.User}} {{json .Config.Healthcheck.Test}} {{json .Config.Labels}}";
    let said = docker(&["image", "inspect", "-f", format, image]).await?;
    let mut words = said.split_whitespace();
    let bytes: u64 = words.next().and_then(|size| size.parse().ok()).ok_or("no size")?;
    let user = words.next().unwrap_or_default().to_owned();
    println!("  {image}: {:.1} MB, user {user}", bytes as f64 / 1e6);
    if let Some(bytes_max) = bytes_max.filter(|bytes_max| bytes > *bytes_max) {
        return Err(format!("{image} has {bytes} bytes; allowed: {bytes_max}"));
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
