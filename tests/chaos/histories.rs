//! Histories as files, and the second judge of them.
//!
//! A history is a file of JSON lines, one for each operation, and one for each version that the event table holds, if it
//! is to help the search: it tells which changes of unknown outcome took effect. The program in `tests/porcupine` judges such files with
//! Porcupine, by a model of its own. It must come to the same verdicts as the checker: a difference means that one of
//! the two is wrong, and is a failure like a violation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use uuid::Uuid;

use super::checker::{Verdict, Versions, check_address, check_patient};
use super::history::{Operation, Outcome, Record, Tag, by_address, by_patient};

/// How long the second judge may take for its files.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(300);
/// The size that the second judge's memory should keep to. Its limit of steps is what bounds it.
const JUDGE_MEMORY: &str = "512MiB";
/// Differences that are told.
const TOLD_MAX: usize = 5;

/// The verdicts of one judge by the name of the window: a patient, a contested address, or all answers, of which it is
/// asked whether they came in time.
pub(crate) type Verdicts = BTreeMap<String, Verdict>;

/// What is judged.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History {
    /// Everything that the clients did.
    pub(crate) operations: Vec<Operation>,
    /// The versions of each patient by the event table; none if it is not to help.
    pub(crate) tables: BTreeMap<Uuid, Versions>,
}

/// A line of a file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Operation(Operation),
    Version(Version),
}

/// A version of a patient; that of a deletion has no record.
#[derive(Serialize, Deserialize)]
struct Version {
    patient: Uuid,
    version: i64,
    record: Option<Record>,
}

/// The program of the second judge, where `tests/setup.sh` puts it: beside what cargo builds.
///
/// # Errors
/// Why there is none.
pub(crate) fn second_judge() -> Result<PathBuf, String> {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let target = built.parent().ok_or("no target directory")?;
    let program = std::env::var_os("HYGEIA_TEST_PORCUPINE")
        .map_or_else(|| target.join("porcupine/porcupine"), PathBuf::from);
    match program.exists() {
        true => Ok(program),
        false => Err(format!(
            "{} does not exist: `tests/setup.sh porcupine` builds it where there is Go",
            program.display()
        )),
    }
}

/// Whether the second judge may be missing: not where everything is to be run.
pub(crate) fn must_be_there() -> bool {
    std::env::var_os("CI").is_some() || std::env::var_os("HYGEIA_TEST_PORCUPINE").is_some()
}

/// Writes the history of the run `name`, and has the second judge look at it: everything that it does not
/// find right, and every difference between the two judges. The file is kept if there is any, or if
/// `HYGEIA_CHAOS_HISTORIES` names a directory for it.
pub(crate) async fn second_opinion(history: &History, name: &str) -> Vec<String> {
    let program = match second_judge() {
        Ok(program) => program,
        Err(missing) if must_be_there() => return vec![format!("no second judge: {missing}")],
        Err(missing) => {
            println!("  skipped: the second judge ({missing})");
            return Vec::new();
        }
    };
    let kept = std::env::var_os("HYGEIA_CHAOS_HISTORIES").map(PathBuf::from);
    let folder = kept.clone().unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("histories"));
    let path = folder.join(format!("{name}.jsonl"));
    let judged = async {
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        write(history, &path)?;
        verdicts_of(&program, &path).await
    };
    let mut wrong = match judged.await {
        Ok(second) => differences(&verdicts(history), &second),
        Err(problem) => vec![format!("the second judge failed: {problem}")],
    };
    if wrong.is_empty() {
        if kept.is_none() {
            let _ = std::fs::remove_file(&path);
        }
        return wrong;
    }
    let more = wrong.len().saturating_sub(TOLD_MAX);
    wrong.truncate(TOLD_MAX);
    vec![format!("{} ({more} more); the history: {}", wrong.join("\n"), path.display())]
}

/// The verdicts of the checker of this program.
pub(crate) fn verdicts(history: &History) -> Verdicts {
    let (effective, none) = (effective(history), Versions::new());
    let patients = by_patient(&effective).into_iter().map(|(id, window)| {
        let versions = history.tables.get(&id).unwrap_or(&none);
        (format!("patient {id}"), check_patient(&window, versions))
    });
    let addresses = by_address(&effective).into_iter();
    let addresses =
        addresses.map(|(number, window)| (format!("address {number}"), check_address(number, &window)));
    let answers = [("answers".to_owned(), promptness(&history.operations))];
    patients.chain(addresses).chain(answers).collect()
}

/// Operations that may have had an effect: not those of unknown outcome whose tag the table does not know.
fn effective(history: &History) -> Vec<Operation> {
    let records = history.tables.values().flat_map(|versions| versions.values().flatten());
    let tags: BTreeSet<Tag> = records.flat_map(|record| [record.name, record.address]).collect();
    let may_be = |operation: &&Operation| {
        history.tables.is_empty()
            || operation.outcome != Outcome::Unknown
            || operation.call.tag().is_none_or(|tag| tags.contains(&tag))
    };
    history.operations.iter().filter(may_be).copied().collect()
}

/// Whether every operation ended by the moment at which it was due.
fn promptness(operations: &[Operation]) -> Verdict {
    match operations.iter().all(|operation| operation.returned <= operation.due) {
        true => Verdict::Linearizable,
        false => Verdict::Violated,
    }
}

/// In words, what the second judge does not find right, and where the two judges differ.
pub(crate) fn differences(first: &Verdicts, second: &Verdicts) -> Vec<String> {
    let windows: BTreeSet<_> = first.keys().chain(second.keys()).collect();
    let told = windows.into_iter().filter_map(|window| match (first.get(window), second.get(window)) {
        (Some(Verdict::Linearizable), Some(Verdict::Linearizable)) => None,
        (Some(one), Some(two)) if one == two => Some(format!("{window}: Porcupine finds it {two:?} too")),
        (one, two) => Some(format!("{window}: THE JUDGES DIFFER: the checker {one:?}, Porcupine {two:?}")),
    });
    told.collect()
}

/// Writes a history.
pub(crate) fn write(history: &History, path: &Path) -> Result<(), String> {
    let operations = history.operations.iter().copied().map(Line::Operation);
    let versions = history.tables.iter().flat_map(|(patient, versions)| {
        let line = |(version, record): (&i64, &Option<Record>)| {
            Line::Version(Version { patient: *patient, version: *version, record: *record })
        };
        versions.iter().map(line)
    });
    let written = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for line in operations.chain(versions) {
            serde_json::to_writer(&mut file, &line)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    written().map_err(|error| format!("{}: {error}", path.display()))
}

/// Reads a history.
pub(crate) fn read(path: &Path) -> Result<History, String> {
    let problem = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| problem(&error))?;
    let mut history = History::default();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|error| problem(&error))?;
        match serde_json::from_str(&line).map_err(|error| problem(&error))? {
            Line::Operation(operation) => history.operations.push(operation),
            Line::Version(Version { patient, version, record }) => {
                history.tables.entry(patient).or_default().insert(version, record);
            }
        }
    }
    Ok(history)
}

/// What the second judge says of a history.
pub(crate) async fn verdicts_of(program: &Path, history: &Path) -> Result<Verdicts, String> {
    #[derive(Deserialize)]
    struct Finding {
        window: String,
        verdict: Verdict,
    }
    let mut judge = Command::new(program);
    judge.arg(history).env("GOMEMLIMIT", JUDGE_MEMORY).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(JUDGE_TIMEOUT, judge.output())
        .await
        .map_err(|_| format!("no verdicts within {JUDGE_TIMEOUT:?}"))?
        .map_err(|error| format!("{}: {error}", program.display()))?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let finding = |line| serde_json::from_slice::<Finding>(line).map_err(|error| error.to_string());
    lines.map(|line| finding(line).map(|found| (found.window, found.verdict))).collect()
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests;
