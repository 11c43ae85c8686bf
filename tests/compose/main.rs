//! The cluster in containers, broken by commands to Docker while clients work on it: `make compose-test`.
//!
//! ```text
//! compose            all of it: images, `up`, faults under load, the judgement, a rolling restart without a failed
//!                    request, the end-to-end tests, a backup restored in another project, `down`
//! compose short      the same with fewer faults, and an image of the binary that the tests have built: `make test`
//! compose up         images and `up`; says how to reach it, and leaves it there
//! ```
//!
//! Clients, histories and the judgement are those of the program `chaos`; only the faults are others. Without a Docker
//! engine or Compose it says so and is skipped. Variables: `HYGEIA_IMAGE` (an image to use instead of building one),
//! `BUILD_IMAGE`, `RUNTIME_IMAGE`, `POSTGRES_IMAGE`, `KAFKA_IMAGE`, `HAPROXY_IMAGE`, `HYGEIA_COMPOSE_KEEP` (leave the
//! cluster there after a failure).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program, and says what it does")]

#[path = "../chaos/act.rs"]
mod act;
#[path = "../chaos/api.rs"]
#[allow(dead_code, reason = "`chaos` uses more of it")]
mod api;
mod backup;
mod cluster;
mod docker;
#[path = "../chaos/driver.rs"]
#[allow(dead_code, reason = "`chaos` uses more of it")]
mod driver;
mod faults;
mod images;
#[path = "../chaos/invariants.rs"]
mod invariants;
#[path = "../chaos/judgement.rs"]
#[allow(dead_code, reason = "`chaos` uses more of it")]
mod judgement;
#[path = "../chaos/machinery.rs"]
#[allow(dead_code, reason = "`chaos` uses more of it")]
mod machinery;
#[path = "../harness/process.rs"]
mod process;
mod roll;
#[path = "../chaos/topic.rs"]
mod topic;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::cluster::{ADMIN, Cluster};
use crate::docker::{Compose, docker, top, work};
use crate::driver::Driver;
use crate::faults::{Fault, LONG, SHORT};
use crate::images::Binary;
use crate::judgement::{explained, settle, summed};
use crate::machinery::histories::{self, History};
use crate::machinery::ledger::versions;
use crate::process::within;

/// The project's name: a cluster of somebody's own is left alone.
const PROJECT: &str = "hygeia-compose-test";
/// How long a request's way may take until all nodes have logged it.
const TRACE_PATIENCE: Duration = Duration::from_secs(60);
/// Logs of the whole run, and of the time in which a request is traced.
const ALL: &str = "2h";
const TRACED_WITHIN: &str = "90s";
/// The end-to-end tests that need nothing but an address and somebody who may log in.
const END_TO_END: [&str; 3] = ["http_patients::", "grpc_billing::", "flow::on_the_defaults"];

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let subcommand = std::env::args().nth(1).unwrap_or_default();
    runtime.block_on(async {
        let compose = match found().await {
            Ok(compose) => compose,
            Err(missing) => {
                println!("the cluster in containers: SKIPPED: {missing}");
                return ExitCode::SUCCESS;
            }
        };
        println!("the cluster in containers, with {}, and these images:", compose.name());
        let ended = match subcommand.as_str() {
            "up" => up(compose).await,
            "short" => whole(compose, Binary::OfTheTests, &SHORT).await,
            _ => whole(compose, Binary::Release, &LONG).await,
        };
        match ended {
            Ok(()) => {
                println!("test result: ok. 1 passed; 0 failed; 0 ignored");
                ExitCode::SUCCESS
            }
            Err(problem) => {
                println!("{problem}\ntest result: FAILED. 0 passed; 1 failed; 0 ignored");
                ExitCode::FAILURE
            }
        }
    })
}

/// What is needed; or what is missing, in one line.
async fn found() -> Result<Compose, String> {
    if let Err(problem) = docker(&["version", "--format", "{{.Server.Version}}"]).await {
        let last = problem.lines().last().unwrap_or_default().to_owned();
        return Err(format!("no Docker engine answers ({last})"));
    }
    Compose::find(PROJECT)
        .await
        .ok_or_else(|| "neither `docker compose` nor `docker-compose` is there".into())
}

async fn up(mut compose: Compose) -> Result<(), String> {
    images::prepare(&mut compose, Binary::Release).await?;
    let cluster = Cluster::start(compose).await?;
    println!("REST {}, gRPC {}, {ADMIN}", cluster.http, cluster.grpc);
    println!("remove it with: {} -p {PROJECT} down -v", cluster.compose.name());
    Ok(())
}

async fn whole(mut compose: Compose, binary: Binary, faults: &[Fault]) -> Result<(), String> {
    let begun = Instant::now();
    images::prepare(&mut compose, binary).await?;
    println!("  they are there after {:.1} s", begun.elapsed().as_secs_f64());
    // What a run that was cut off has left.
    compose.run(&["down", "-v", "--remove-orphans"]).await.ok();
    let cluster = Cluster::start(compose).await?;
    let tried = tried(&cluster, faults).await;
    if tried.is_err() && std::env::var_os("HYGEIA_COMPOSE_KEEP").is_some() {
        return tried;
    }
    if tried.is_err() {
        let file = std::env::temp_dir().join("hygeia-compose-test.log");
        let kept = cluster.logs(ALL).await.is_ok_and(|logs| std::fs::write(&file, logs).is_ok());
        println!("logs: {}", if kept { file.display().to_string() } else { "none".into() });
    }
    cluster.remove().await?;
    tried
}

async fn tried(cluster: &Cluster, faults: &[Fault]) -> Result<(), String> {
    broken_under_load(cluster, faults).await?;
    roll::every_node(cluster).await?;
    end_to_end(cluster).await?;
    traced(cluster).await?;
    backup::restored(cluster).await
}

/// Clients work while one thing after the other is broken; then everything is judged.
async fn broken_under_load(cluster: &Cluster, faults: &[Fault]) -> Result<(), String> {
    let seed = std::env::var("HYGEIA_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("faults under load; the clients' seed is {seed}");
    let driver = Driver::new(cluster.api().await?, true);
    let clients = driver.start(seed);
    let begun = Instant::now();
    let broken = faults::all(cluster, faults).await;
    driver.stop(clients).await;
    broken?;
    cluster.all_healthy().await?;
    let healed = Instant::now();
    let topic = || crate::topic::events(&cluster.broker, "patient");
    let mut wrong = settle(&driver, &cluster.database, topic).await.unwrap_or_else(|problem| vec![problem]);
    let events = invariants::events(&cluster.database).await?;
    // Written before it is judged: a search that finds no order takes minutes, and the file outlives a run that is ended.
    let file = std::env::temp_dir().join("hygeia-compose-test.jsonl");
    let tables = events.keys().map(|id| (*id, versions(&events, *id))).collect();
    histories::write(&History { operations: driver.recorder.operations(), tables }, &file)?;
    wrong.extend(explained(&driver, &events).into_iter().map(|finding| finding.text));
    let line = summed(&driver.recorder.operations());
    if !wrong.is_empty() {
        return Err(format!("{}\n{line}\nthe history: {}", wrong.join("\n"), file.display()));
    }
    std::fs::remove_file(&file).map_err(|error| error.to_string())?;
    println!("  holds after {:.1} s: {line}", begun.elapsed().as_secs_f64());
    println!("  at rest {:.1} s after the last fault", healed.elapsed().as_secs_f64());
    Ok(())
}

/// The tests of this package that need only an edge, through the front of the cluster.
async fn end_to_end(cluster: &Cluster) -> Result<(), String> {
    println!("end-to-end tests through the front");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--locked", "-q", "--test", "it", "--"]).args(END_TO_END).arg("--test-threads=1");
    cargo.env("HYGEIA_TEST_FRONT", &cluster.http).env("HYGEIA_TEST_BILLING", &cluster.grpc);
    cargo.env("HYGEIA_TEST_USER", ADMIN).env("HYGEIA_TEST_PASSWORD", &cluster.password);
    work(cargo).await
}

/// One request's way through the containers is drawn from their logs.
async fn traced(cluster: &Cluster) -> Result<(), String> {
    let trace = format!("{:032x}", fastrand::u128(1..));
    let made = cluster.register_within(&trace).await?;
    println!("one request's way: trace {trace}, patient {made}");
    let wanted = ["analytics", "billing", "bridge", "front"];
    let all = || async {
        let logs = cluster.logs(TRACED_WITHIN).await.ok()?;
        let lines: Vec<_> = logs.lines().filter(|line| line.contains(&trace)).collect();
        let logged = |node: &&str| lines.iter().any(|line| line.starts_with(*node));
        wanted.iter().all(logged).then_some(logs)
    };
    let logged = within(TRACE_PATIENCE, all).await.ok_or("the logs do not show the way over all nodes")?;
    let logs = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    std::fs::write(logs.path(), logged).map_err(|e| e.to_string())?;
    let mut draw = process::command(top());
    draw.arg("trace").arg(&trace).arg(logs.path());
    let drawn = draw.output().map_err(|e| e.to_string())?;
    let drawn_text = String::from_utf8_lossy(&drawn.stdout);
    println!("{drawn_text}");
    let hops = ["analytics Count", "billing-relay OpenAccount", "kafka-bridge Publish", "journal Append"];
    match hops.iter().find(|hop| !drawn_text.contains(**hop)) {
        None => Ok(()),
        Some(missing) => Err(format!("{missing} is not in the picture")),
    }
}
