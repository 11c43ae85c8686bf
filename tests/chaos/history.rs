//! What the clients of a run did and were told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// What tells one attempt of a change from any other: it stands in the details that the change brings.
pub(crate) type Tag = u64;

/// What a client wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A patient with these details.
    Register(Tag),
    /// The record; `listed` if it was looked for on a page of all.
    Read {
        /// Whether it was looked for on a page of all.
        listed: bool,
    },
    /// These details.
    Update(Tag),
    /// These details, if the record has this version.
    UpdateIf(Tag, i64),
    /// The end of the record.
    Delete,
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The record as it was, or as the change made it.
    Record {
        /// Its version.
        version: i64,
        /// Which change its details are from.
        tag: Tag,
    },
    /// The record was ended.
    Ended,
    /// There is no such record.
    Missing,
    /// The address is taken.
    Taken,
    /// The record has another version.
    Stale,
    /// Nothing was done, as the answer says, or because nothing was sent.
    NotDone,
    /// Nobody knows: no answer, or one that says so.
    Unknown,
}

/// One thing that one client did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    /// Which client.
    pub(crate) client: u32,
    /// Through which front.
    pub(crate) front: u32,
    /// Whom it was about; nobody knows of a registration whose answer was lost.
    pub(crate) patient: Option<Uuid>,
    /// Which contested address it was about, if it was about one.
    pub(crate) address: Option<u32>,
    /// Which registration made that patient.
    pub(crate) made_by: Tag,
    /// What was wanted.
    pub(crate) call: Call,
    /// When, from the beginning of the run.
    pub(crate) invoked: Duration,
    /// When the answer was there, or the wait given up.
    pub(crate) returned: Duration,
    /// What the answer was.
    pub(crate) outcome: Outcome,
}

/// Gathers what all clients do; one clock for all of them.
#[derive(Debug)]
pub(crate) struct Recorder {
    begun: Instant,
    operations: Mutex<Vec<Operation>>,
    /// Answers that no fault explains.
    surprises: Mutex<Vec<String>>,
}

/// Surprises that are kept: the first ones tell what is wrong.
const SURPRISES_MAX: usize = 20;

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Recorder {
            begun: Instant::now(),
            operations: Mutex::default(),
            surprises: Mutex::default(),
        })
    }

    /// The time of the run.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(crate) fn record(&self, operation: Operation) {
        self.operations.lock().expect("sane").push(operation);
    }

    /// An answer that must not be, whatever is broken.
    pub(crate) fn surprise(&self, what: String) {
        let mut surprises = self.surprises.lock().expect("sane");
        if surprises.len() < SURPRISES_MAX {
            surprises.push(what);
        }
    }

    /// Everything recorded so far.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.operations.lock().expect("sane").clone()
    }

    /// Answers that must not be.
    pub(crate) fn surprises(&self) -> Vec<String> {
        self.surprises.lock().expect("sane").clone()
    }
}

/// The operations of each patient that is known, in the order they were invoked.
pub(crate) fn by_patient(operations: &[Operation]) -> BTreeMap<Uuid, Vec<Operation>> {
    grouped(operations, |operation| operation.patient)
}

/// The operations on each contested address, in the order they were invoked.
pub(crate) fn by_address(operations: &[Operation]) -> BTreeMap<u32, Vec<Operation>> {
    grouped(operations, |operation| operation.address)
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

/// A history for people: who did what when, and what came of it. Ids and outcomes only.
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
