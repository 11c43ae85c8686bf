//! A consumer in another language: the one that `docs/EVENTS.md` shows, run as it stands there.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const PAGE: &str = include_str!("../../../docs/EVENTS.md");
/// How long the consumer may take to read everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What stands on the page between the line "```language" and the next "```".
fn block(language: &str) -> &'static str {
    let (_, rest) = PAGE.split_once(&format!("```{language}\n")).expect("the page has such a block");
    rest.split_once("```").expect("the block ends").0
}

fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    let python = target.join("kafka-client/bin/python");
    assert!(python.exists(), "{} is missing: run `make setup`, which installs it", python.display());
    python
}

/// The first `count` lines that the consumer prints.
pub(super) async fn lines(bootstrap: &str, topic: &str, count: usize) -> Vec<String> {
    let place = tempfile::tempdir().expect("a directory");
    std::fs::write(place.path().join("consumer.py"), block("python")).expect("written");
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let python = python();
    let arguments = ["-m", "grpc_tools.protoc", "-I", proto, "--python_out=.", "patient_event.proto"];
    let made = Command::new(&python).current_dir(place.path()).args(arguments).status().await;
    assert!(made.expect("it starts").success(), "no Python code was made of the description");
    let mut consumer = Command::new(&python)
        .current_dir(place.path())
        .arg("consumer.py")
        .envs([("BROKERS", bootstrap), ("TOPIC", topic), ("GROUP", &format!("{topic}-reader"))])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut told = BufReader::new(consumer.stdout.take().expect("piped")).lines();
    let mut lines = Vec::new();
    let read = async {
        while lines.len() < count {
            lines.push(told.next_line().await.expect("text").expect("it goes on reading"));
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, read).await.is_ok();
    consumer.kill().await.expect("it ends");
    assert!(in_time, "{} of {count} lines: {:?}", lines.len(), lines.last());
    lines
}
