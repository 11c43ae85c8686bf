//! Both judges on histories whose verdict is known, and on random ones, where they must agree.

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::super::checker::{Verdict, Versions};
use super::super::history::{Call, Email, Look, Operation, Outcome, Part, Record};
use super::{
    History, Verdicts, differences, must_be_there, read, second_judge, verdicts, verdicts_of, write,
};

/// Histories that are right. All others in the directory have a violation, which their last operation brings in.
const RIGHT: &str = "right";

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/histories");
    let found = std::fs::read_dir(folder).expect("the directory of histories");
    let mut paths: Vec<_> = found.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// The second judge, or a line that says that it is skipped.
fn judge() -> Option<PathBuf> {
    match second_judge() {
        Ok(program) => Some(program),
        Err(missing) => {
            assert!(!must_be_there(), "{missing}");
            println!("skipped: the second judge ({missing})");
            None
        }
    }
}

fn right(verdicts: &Verdicts) -> bool {
    verdicts.values().all(|verdict| *verdict == Verdict::Linearizable)
}

fn violated(verdicts: &Verdicts) -> bool {
    verdicts.values().any(|verdict| *verdict == Verdict::Violated)
}

/// The verdicts of the checker and, where it is there, of the second judge, which must be the same.
async fn both(history: &History, name: &str) -> Verdicts {
    let first = verdicts(history);
    let Some(program) = judge() else { return first };
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("history.jsonl");
    write(history, &path).expect("written");
    assert_eq!(read(&path).expect("read"), *history, "{name}");
    let second = verdicts_of(&program, &path).await.expect("verdicts");
    if first != second {
        let mut differ = differences(&first, &second);
        differ.retain(|line| line.contains("DIFFER"));
        panic!("{name}: {differ:?}; the history: {}", folder.keep().join("history.jsonl").display());
    }
    first
}

#[tokio::test]
async fn both_judges_find_what_is_planted_and_nothing_else() {
    let mut kinds = std::collections::BTreeSet::new();
    for path in fixtures() {
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        let history = read(&path).expect("a history");
        let kind = name.split('-').next().expect("a kind").to_owned();
        if kind == RIGHT {
            assert!(right(&both(&history, &name).await), "{name}");
        } else {
            assert!(violated(&both(&history, &name).await), "{name}");
            let mut without = history.clone();
            without.operations.pop();
            assert!(right(&both(&without, &name).await), "{name} without its last operation");
        }
        kinds.insert(kind);
    }
    let wanted = ["doubled", "late", "lost", "resurrected", RIGHT, "stale"];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), wanted);
}

#[test]
fn verdicts_that_differ_are_told() {
    let of = |verdict| Verdicts::from([("address 1".to_owned(), verdict)]);
    let (good, bad) = (of(Verdict::Linearizable), of(Verdict::Violated));
    assert!(differences(&good, &good).is_empty());
    for (first, second) in
        [(&good, &bad), (&bad, &good), (&good, &Verdicts::new()), (&Verdicts::new(), &good)]
    {
        assert!(differences(first, second)[0].contains("DIFFER"), "{first:?} {second:?}");
    }
    assert!(differences(&bad, &bad)[0].contains("too"));
    let undecided = of(Verdict::Undecided);
    assert_eq!(differences(&undecided, &undecided).len(), 1, "not shown right is not right");
}

#[tokio::test]
async fn a_file_that_is_no_history_is_refused_by_both() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("history.jsonl");
    for text in ["{}\n", "nonsense\n", "{\"client\": 0"] {
        std::fs::write(&path, text).expect("written");
        assert!(read(&path).is_err(), "{text}");
        if let Some(program) = judge() {
            assert!(verdicts_of(&program, &path).await.is_err(), "{text}");
        }
    }
}

/// Many changes of unknown outcome may have made the many versions that nobody saw, and in the end nothing fits.
#[tokio::test]
async fn a_search_that_exhausts_its_steps_is_undecided() {
    let Some(program) = judge() else { return };
    let patient = Some(Uuid::from_u128(1));
    let put = |tag, at: u64, outcome| {
        let call = Call::Put { tag, email: Email::Own, expected: None };
        operation(patient, call, at, at + 18, outcome)
    };
    let shown = |version, tag| {
        Outcome::Record(Record { version, name: tag, address: tag, email: Email::Own, restricted: false })
    };
    let registers = Call::Register { tag: 1, email: Email::Own };
    let mut operations = vec![operation(patient, registers, 0, 1, shown(1, 1))];
    operations.extend((0..40).map(|n| put(100 + n, 20 + n, Outcome::Unknown)));
    let mut version = 1;
    for n in 0..100 {
        version += if n % 4 == 0 { 2 } else { 1 };
        operations.push(put(1_000 + n, 100 + 10 * n, shown(version, 1_000 + n)));
    }
    operations.push(operation(patient, Call::Look(Look::Get), 3_000, 3_001, shown(3, 1_000)));
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("history.jsonl");
    write(&History { operations, ..History::default() }, &path).expect("written");
    let verdicts = verdicts_of(&program, &path).await.expect("verdicts");
    assert!(verdicts.values().any(|verdict| *verdict == Verdict::Undecided), "{verdicts:?}");
}

/// Lives on a simulated server, of which most get one answer that was not given. Whether that can be explained is for
/// the judges to say; what counts is that they say the same, and that they say both often.
#[tokio::test]
async fn both_judges_agree_on_random_histories() {
    let seed =
        std::env::var("HYGEIA_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("replay with HYGEIA_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut history = History::default();
    for number in 1..=LIVES {
        let patient = Uuid::from_u128(number);
        let (mut life, versions) = simulated(&mut rng, patient);
        // In one history of two the table helps.
        if seed.is_multiple_of(2) {
            history.tables.insert(patient, versions);
        }
        if rng.u8(0..4) > 0 {
            let changed = rng.usize(0..life.len());
            falsify(&mut rng, &mut life, changed);
        }
        history.operations.extend(life);
    }
    let verdicts = both(&history, &format!("HYGEIA_SEED={seed}")).await;
    let count = |verdict| verdicts.values().filter(|found| **found == verdict).count();
    let (good, bad) = (count(Verdict::Linearizable), count(Verdict::Violated));
    assert_eq!(good + bad, LIVES as usize + 1, "all lives, and all answers, are decided");
    assert!(good > 20 && bad > 20, "{good} right, {bad} violated");
}

const LIVES: u128 = 200;
const OPERATIONS: u64 = 40;

/// The life of a patient, and its versions, on a server that does everything at one moment. Many operations overlap; of some the answer
/// is lost, and of some of these the effect comes late or never.
fn simulated(rng: &mut fastrand::Rng, patient: Uuid) -> (Vec<Operation>, Versions) {
    let mut moments = Vec::new();
    for tag in 1..=OPERATIONS {
        let at = tag * 10 + rng.u64(0..15);
        let lost = tag > 1 && rng.u8(0..8) == 0;
        let delay = if lost && rng.bool() { rng.u64(0..400) } else { 0 };
        let happens = !(lost && rng.u8(0..3) == 0);
        moments.push((at + delay, at, tag, lost, happens));
    }
    moments.sort_unstable();
    let mut server = Server::default();
    let mut life = Vec::new();
    for (at, seen, tag, lost, happens) in moments {
        let call =
            if tag == 1 { Call::Register { tag, email: Email::Own } } else { server.some_call(rng, tag) };
        let outcome = if happens { server.carry_out(call) } else { Outcome::NotDone };
        let outcome = if lost { Outcome::Unknown } else { outcome };
        let from = seen.saturating_sub(rng.u64(1..25));
        let to = if lost { seen + 1 } else { at + rng.u64(1..25) };
        life.push(operation(Some(patient), call, from, to.max(from), outcome));
    }
    (life, server.versions)
}

/// An operation from one moment to another, both in milliseconds.
fn operation(patient: Option<Uuid>, call: Call, from: u64, to: u64, outcome: Outcome) -> Operation {
    let (invoked, returned) = (Duration::from_millis(from), Duration::from_millis(to));
    Operation {
        client: 0,
        front: 0,
        patient,
        made_by: 1,
        call,
        invoked,
        sent: invoked,
        returned,
        due: returned,
        tries: 1,
        outcome,
    }
}

/// What a server without faults does.
#[derive(Default)]
struct Server {
    record: Option<Record>,
    /// The version with which the record ended.
    end: Option<i64>,
    /// What the event table holds.
    versions: Versions,
}

impl Server {
    fn some_call(&self, rng: &mut fastrand::Rng, tag: u64) -> Call {
        let email = if rng.bool() { Email::Own } else { Email::Second };
        // Mostly the version that there is, or was a moment ago.
        let version = self.record.map_or(1, |record| record.version);
        let expected = rng.bool().then(|| (version - i64::from(rng.u8(0..3) == 0)).max(1));
        match rng.u8(0..40) {
            0..8 => Call::Look(Look::Get),
            8..10 => Call::Look(Look::Listed),
            10..12 => Call::Look(Look::Searched(email)),
            12..14 => Call::Look(Look::History),
            14..24 => Call::Put { tag, email, expected },
            24..34 => {
                let part = [Part::Name, Part::Address, Part::Email(email)][rng.usize(0..3)];
                Call::Patch { tag, part, expected }
            }
            34..38 => Call::Restrict { on: rng.bool() },
            _ => Call::Delete { expected },
        }
    }

    fn carry_out(&mut self, call: Call) -> Outcome {
        let outcome = self.answer(call);
        let newest = self.record.map(|record| (record.version, Some(record)));
        self.versions.extend(newest.or(self.end.map(|end| (end, None))));
        outcome
    }

    fn answer(&mut self, call: Call) -> Outcome {
        if let Call::Register { tag, email } = call {
            let made = Record { version: 1, name: tag, address: tag, email, restricted: false };
            self.record = Some(made);
            return Outcome::Record(made);
        }
        let Some(before) = self.record else {
            return match (call, self.end) {
                (Call::Look(Look::History), Some(version)) => Outcome::At { version, ended: true },
                _ => Outcome::Missing,
            };
        };
        if call.expected().is_some_and(|expected| expected != before.version) {
            return Outcome::Stale;
        }
        let version = before.version + 1;
        let found = |found: bool| if found { Outcome::Record(before) } else { Outcome::Missing };
        let after = match call {
            Call::Look(Look::Get) | Call::Register { .. } | Call::OpenAccount => return found(true),
            Call::Look(Look::Listed) => return found(!before.restricted),
            Call::Look(Look::Searched(email)) => return found(!before.restricted && before.email == email),
            Call::Look(Look::History) => return Outcome::At { version: before.version, ended: false },
            Call::Delete { .. } => {
                (self.record, self.end) = (None, Some(version));
                return Outcome::Ended;
            }
            Call::Restrict { on } => {
                let version = if on == before.restricted { before.version } else { version };
                self.record = Some(Record { version, restricted: on, ..before });
                return Outcome::Done;
            }
            Call::Put { tag, email, .. } => Record { version, name: tag, address: tag, email, ..before },
            Call::Patch { tag, part: Part::Name, .. } => Record { version, name: tag, ..before },
            Call::Patch { tag, part: Part::Address, .. } => Record { version, address: tag, ..before },
            Call::Patch { tag, part: Part::Email(email), .. } => {
                Record { version, address: tag, email, ..before }
            }
        };
        self.record = Some(after);
        Outcome::Record(after)
    }
}

/// Gives one operation an answer that it did not get.
fn falsify(rng: &mut fastrand::Rng, life: &mut [Operation], changed: usize) {
    // One that another operation of the same kind got, or one that nobody got.
    let alike = |other: &&Operation| {
        std::mem::discriminant(&other.call) == std::mem::discriminant(&life[changed].call)
    };
    let alike: Vec<_> = life.iter().filter(alike).collect();
    let other = alike[rng.usize(0..alike.len())].outcome;
    let operation = &mut life[changed];
    operation.outcome = match (rng.u8(0..6), operation.outcome) {
        (0, Outcome::Record(shown)) => Outcome::Record(Record { version: shown.version + 1, ..shown }),
        (1, Outcome::Record(shown)) => Outcome::Record(Record { version: shown.version - 1, ..shown }),
        (2, Outcome::Record(shown)) => Outcome::Record(Record { restricted: !shown.restricted, ..shown }),
        (3, _) => Outcome::NotDone,
        (4, _) => Outcome::Unknown,
        _ => other,
    };
}
