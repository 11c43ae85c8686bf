//! What the clients of a run did and were told.
//!
//! The rules that a history must obey are in `checker`. In short: a patient is `Absent`, then living, then ended.
//! A change takes effect at one moment between `invoked` and `returned`; one of outcome `Unknown` takes effect at one
//! moment after `invoked`, or never; one of outcome `NotDone`, `Missing`, `Taken` or `Stale` has no effect. Each change
//! that has an effect adds 1 to the version.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::prompt::Try;

/// Identifies one change. A change writes its tag into each field that it sets, so that a record shows which changes
/// its fields come from. No two operations of a run have the same tag.
pub(crate) type Tag = u64;

/// The e-mail address of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Email {
    /// The first address of this patient alone, derived from the tag of its registration.
    Own,
    /// The second address of this patient alone.
    Second,
    /// A contested address: at any moment at most one living patient has it.
    Contested(u32),
}

/// A record as an answer shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Record {
    /// 1 after registration; each change that changes something adds 1.
    pub(crate) version: i64,
    /// The change that set the name.
    pub(crate) name: Tag,
    /// The change that set the postal address.
    pub(crate) address: Tag,
    pub(crate) email: Email,
    pub(crate) restricted: bool,
}

/// How a client looks at a record. Every look is linearizable with all changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Look {
    /// `GET /api/patients/{id}`: answered with `Record`, or `Missing` if no living record has the id.
    Get,
    /// On a page of all records: `Record`, or `Missing` if it is not there. A restricted record is not listed.
    Listed,
    /// Among the records that have this address: answered as `Listed`.
    Searched(Email),
    /// The history, which outlives the record: answered with `At`, or `Missing` if there never was such a record.
    History,
}

/// The fields that a patch sets. Each of them also carries the tag of the patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// The name: `Record::name`.
    Name,
    /// The postal address: `Record::address`.
    Address,
    /// The postal address and the e-mail address.
    Email(Email),
}

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    /// `POST /api/patients`: a new record whose name and postal address carry the tag.
    Register { tag: Tag, email: Email },
    /// Any read.
    Look(Look),
    /// `PUT`: sets name, postal address and e-mail address; only if the record has the version `expected`, if given.
    Put { tag: Tag, email: Email, expected: Option<i64> },
    /// `PATCH`: sets `part`; only if the record has the version `expected`, if given.
    Patch { tag: Tag, part: Part, expected: Option<i64> },
    /// Sets or clears the restriction. Where it is as wanted already, nothing changes, and the version stays.
    Restrict { on: bool },
    /// Ends the record; only if it has the version `expected`, if given.
    Delete { expected: Option<i64> },
    /// gRPC `CreateBillingAccount`: answered with `Account`, always the same one for the same patient. It changes
    /// nothing of the record.
    OpenAccount,
}

impl Call {
    /// The tag that this change writes, if it writes one.
    pub(crate) const fn tag(self) -> Option<Tag> {
        match self {
            Call::Register { tag, .. } | Call::Put { tag, .. } | Call::Patch { tag, .. } => Some(tag),
            Call::Look(_) | Call::Restrict { .. } | Call::Delete { .. } | Call::OpenAccount => None,
        }
    }

    /// The e-mail address that this change asks for, if it asks for one.
    pub(crate) const fn email(self) -> Option<Email> {
        match self {
            Call::Register { email, .. } | Call::Put { email, .. } => Some(email),
            Call::Patch { part: Part::Email(email), .. } => Some(email),
            Call::Patch { .. }
            | Call::Look(_)
            | Call::Restrict { .. }
            | Call::Delete { .. }
            | Call::OpenAccount => None,
        }
    }

    /// Whether this asks for a change of a record.
    pub(crate) const fn is_change(self) -> bool {
        !matches!(self, Call::Look(_) | Call::OpenAccount)
    }

    /// The version that the record must have for the change to be made, if there is a condition.
    pub(crate) const fn expected(self) -> Option<i64> {
        match self {
            Call::Put { expected, .. } | Call::Patch { expected, .. } | Call::Delete { expected } => expected,
            _ => None,
        }
    }
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The record as it was, or as the change made it.
    Record(Record),
    /// By a history: the newest version, and whether that version is the end of the record.
    At { version: i64, ended: bool },
    /// The restriction is as wanted.
    Done,
    /// The record was ended by this operation.
    Ended,
    /// No living record has this id (of a look: nothing is to be seen); nothing was changed.
    Missing,
    /// Another living patient has the e-mail address; nothing was changed.
    Taken,
    /// The record has another version than expected; nothing was changed.
    Stale,
    /// The id of the account.
    Account(Uuid),
    /// Nothing was done: the answer says so, or nothing was sent.
    NotDone,
    /// The change may have been made, may be made later, or never: no answer, or an answer that says so.
    Unknown,
}

/// One operation of one client. If it was sent more than once under one `Idempotency-Key`, all of that is one
/// operation, which acts at most once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) client: u32,
    /// The number of the node that was asked last.
    pub(crate) front: u32,
    /// The patient; unknown for a registration whose answer was lost.
    pub(crate) patient: Option<Uuid>,
    /// The tag of the registration that made the patient.
    pub(crate) made_by: Tag,
    pub(crate) call: Call,
    /// When it was first sent, from the beginning of the run.
    #[serde(rename = "invoked_ns", with = "nanoseconds")]
    pub(crate) invoked: Duration,
    /// When it was sent the last time.
    #[serde(rename = "sent_ns", with = "nanoseconds")]
    pub(crate) sent: Duration,
    /// When the last answer came, or the wait for it ended.
    #[serde(rename = "returned_ns", with = "nanoseconds")]
    pub(crate) returned: Duration,
    /// The latest moment for `returned`: an operation that returns later is late, whatever its outcome is. It counts
    /// from `sent`, and is set when the run is judged: see `prompt`.
    #[serde(rename = "due_ns", with = "nanoseconds")]
    pub(crate) due: Duration,
    /// How often it was sent; more than 1 only under an `Idempotency-Key`.
    pub(crate) tries: u32,
    pub(crate) outcome: Outcome,
}

/// Records what all clients do, on one clock.
#[derive(Debug)]
pub(crate) struct Recorder {
    begun: Instant,
    operations: Mutex<Vec<Operation>>,
    /// Each request by itself.
    tries: Mutex<Vec<Try>>,
    /// Answers that no fault explains, in words.
    surprises: Mutex<Vec<String>>,
}

/// Surprises that are kept: the first ones tell enough.
const SURPRISES_MAX: usize = 20;

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Recorder {
            begun: Instant::now(),
            operations: Mutex::default(),
            tries: Mutex::default(),
            surprises: Mutex::default(),
        })
    }

    /// The time since the beginning of the run.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The time of the run at an instant.
    pub(crate) fn at(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.begun)
    }

    pub(crate) fn tried(&self, asked: Try) {
        self.tries.lock().expect("sane").push(asked);
    }

    pub(crate) fn record(&self, operation: Operation) {
        self.operations.lock().expect("sane").push(operation);
    }

    /// Records an answer that no fault can explain.
    pub(crate) fn surprise(&self, what: String) {
        let mut surprises = self.surprises.lock().expect("sane");
        if surprises.len() < SURPRISES_MAX {
            surprises.push(what);
        }
    }

    /// Every request so far.
    pub(crate) fn tries(&self) -> Vec<Try> {
        self.tries.lock().expect("sane").clone()
    }

    /// Every operation so far.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.operations.lock().expect("sane").clone()
    }

    /// Answers that no fault can explain.
    pub(crate) fn surprises(&self) -> Vec<String> {
        self.surprises.lock().expect("sane").clone()
    }
}

/// The operations of each patient that is known, in the order they were invoked.
pub(crate) fn by_patient(operations: &[Operation]) -> BTreeMap<Uuid, Vec<Operation>> {
    grouped(operations, |operation| operation.patient)
}

/// For each contested address, all operations of all patients that ever asked for it, in the order they were invoked:
/// a patient also gives the address up by taking another one.
pub(crate) fn by_address(operations: &[Operation]) -> BTreeMap<u32, Vec<Operation>> {
    let mut claimants: BTreeMap<u32, BTreeSet<Tag>> = BTreeMap::new();
    for operation in operations {
        if let Some(Email::Contested(number)) = operation.call.email() {
            claimants.entry(number).or_default().insert(operation.made_by);
        }
    }
    let of = |claimants: &BTreeSet<Tag>| {
        let mut concerned: Vec<_> =
            operations.iter().filter(|operation| claimants.contains(&operation.made_by)).copied().collect();
        concerned.sort_by_key(|operation| operation.invoked);
        concerned
    };
    claimants.iter().map(|(number, claimants)| (*number, of(claimants))).collect()
}

fn grouped<K: Ord>(
    operations: &[Operation],
    key: impl Fn(&Operation) -> Option<K>,
) -> BTreeMap<K, Vec<Operation>> {
    let mut groups: BTreeMap<K, Vec<Operation>> = BTreeMap::new();
    for operation in operations {
        if let Some(key) = key(operation) {
            groups.entry(key).or_default().push(*operation);
        }
    }
    for group in groups.values_mut() {
        group.sort_by_key(|operation| operation.invoked);
    }
    groups
}

/// A history for people: who did what when, and with which outcome. It holds no ids.
pub(crate) fn shown(operations: &[Operation]) -> String {
    let mut text = String::new();
    for o in operations {
        let (from, to) = (o.invoked.as_secs_f64() * 1e3, o.returned.as_secs_f64() * 1e3);
        let line = format!(
            "{from:>11.3} ms .. {to:>11.3} ms  client {:>2} front {}  {:?} -> {:?}\n",
            o.client, o.front, o.call, o.outcome
        );
        text.push_str(&line);
    }
    text
}

/// A moment of a run as a number of nanoseconds. The second judge counts with 63 bits.
mod nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(moment: &Duration, to: S) -> Result<S::Ok, S::Error> {
        i64::try_from(moment.as_nanos()).unwrap_or(i64::MAX).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_nanos)
    }
}
