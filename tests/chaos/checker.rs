//! Decides whether a history is linearizable (Herlihy and Wing, 1990): whether the operations on one patient, or on one
//! e-mail address, could have happened one after the other, each at one moment between its invocation and its answer.
//!
//! The search is that of Wing, Gong and Lowe, by `todc_utils`. An operation of unknown outcome gets an answer after all
//! others. The history has a close, a step after everything that was answered. Before the close the search places an
//! unknown operation only where it has an effect; after the close it has none. An operation that never took effect, or
//! so late that nobody saw it, is placed there. So the search tries no orders of operations that change nothing.
//!
//! A window is the whole life of one patient, or of one address; the driver bounds both. The search has a budget of
//! steps. A history that exhausts it counts as not shown to be right.
//!
//! What the event table holds of a patient may help: it tells which of the unknown changes took effect, and which version
//! each made. An order that agrees with the table is an order; that there is none is a violation in itself.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

use super::history::{Call, Email, Look, Operation, Outcome, Part, Record, Tag};

/// Steps of one search at most. An ordinary history of a few hundred operations takes some thousands.
const STEPS_MAX: u64 = 2_000_000;

/// After everything that was answered.
const CLOSE: Duration = Duration::from_secs(u64::MAX - 1);
/// After the close.
const NEVER: Duration = Duration::MAX;

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    Violated,
    /// None was found within the budget.
    Undecided,
}

/// The versions of one patient by the event table; none if the table is not to help. That of a deletion has no record.
pub(crate) type Versions = BTreeMap<i64, Option<Record>>;

/// Judges the operations on one patient.
pub(crate) fn check_patient(operations: &[Operation], versions: &Versions) -> Verdict {
    check_life(operations, versions, STEPS_MAX)
}

fn check_life(operations: &[Operation], versions: &Versions, steps_max: u64) -> Verdict {
    let seen = Arc::new(Seen::of(operations, versions));
    // An account changes nothing of the record.
    let concerns = |operation: &Operation| operation.call != Call::OpenAccount;
    let step = |operation: &Operation| concerns(operation).then(|| (*operation, Arc::clone(&seen)));
    search::<Patient>(operations, step, steps_max)
}

/// Judges the operations of all patients that ever asked for the contested address `number`: one living patient has
/// it at a time.
pub(crate) fn check_address(number: u32, operations: &[Operation]) -> Verdict {
    let step = |operation: &Operation| Some((*operation, Claim::of(number, operation)?));
    search::<Address>(operations, step, STEPS_MAX)
}

/// The beginning of a history up to the first answer that cannot be explained; what had no answer by then is of
/// unknown outcome. None if every answer can be.
pub(crate) fn first_wrong(
    operations: &[Operation],
    check: impl Fn(&[Operation]) -> Verdict,
) -> Option<Vec<Operation>> {
    let mut answers: Vec<_> = operations.iter().map(|operation| operation.returned).collect();
    answers.sort_unstable();
    let until = |end: Duration| -> Vec<Operation> {
        let begun = operations.iter().filter(|operation| operation.invoked <= end).copied();
        begun
            .map(|operation| match operation.returned <= end {
                true => operation,
                false => Operation { outcome: Outcome::Unknown, ..operation },
            })
            .collect()
    };
    // What begins a history that can be explained can be explained.
    let first = answers.partition_point(|end| check(&until(*end)) == Verdict::Linearizable);
    answers.get(first).map(|end| until(*end))
}

thread_local! {
    static STEPS_LEFT: Cell<u64> = const { Cell::new(0) };
}

/// Thrown out of a search that exhausts its budget: the library has no other way out.
struct OutOfBudget;

fn count_step() {
    STEPS_LEFT.with(|left| match left.get() {
        0 => resume_unwind(Box::new(OutOfBudget)),
        n => left.set(n - 1),
    });
}

/// One step of an order.
#[derive(Clone, Debug)]
enum Step<T> {
    Operation(T),
    /// Everything that was answered is over.
    Close,
}

fn search<S: Rules>(
    operations: &[Operation],
    step_of: impl Fn(&Operation) -> Option<S::Operation>,
    steps_max: u64,
) -> Verdict {
    // Of two things at the same time neither is known to be first: invocations come before answers.
    let mut moments = Vec::new();
    let says_something = |o: &&Operation| match o.outcome {
        Outcome::NotDone => false,
        Outcome::Unknown => o.call.is_change(),
        _ => true,
    };
    let meant = operations.iter().filter(says_something);
    for (number, (operation, step)) in meant.filter_map(|o| Some((o, step_of(o)?))).enumerate() {
        let answered = if operation.outcome == Outcome::Unknown { NEVER } else { operation.returned };
        moments.push(((operation.invoked, false), number, Step::Operation(step.clone())));
        moments.push(((answered, true), number, Step::Operation(step)));
    }
    let close = moments.len();
    moments.push(((CLOSE, false), close, Step::Close));
    moments.push(((CLOSE, true), close, Step::Close));
    moments.sort_by_key(|(moment, ..)| *moment);
    let actions = moments.into_iter().map(|((_, answer), number, step)| {
        (number, if answer { Action::Response(step) } else { Action::Call(step) })
    });
    let history = History::from_actions(actions.collect());
    STEPS_LEFT.with(|left| left.set(steps_max));
    match catch_unwind(AssertUnwindSafe(|| WGLChecker::<Story<S>>::is_linearizable(history))) {
        Ok(true) => Verdict::Linearizable,
        Ok(false) => Verdict::Violated,
        Err(thrown) if thrown.is::<OutOfBudget>() => Verdict::Undecided,
        Err(thrown) => resume_unwind(thrown),
    }
}

/// The sequential rules of one object.
trait Rules {
    type State: Clone + Copy + Eq + std::hash::Hash + std::fmt::Debug;
    type Operation: Clone + std::fmt::Debug;

    const FIRST: Self::State;

    /// The state after the operation, if it can be answered as it was in this state. One of unknown outcome
    /// must have an effect.
    fn next(operation: &Self::Operation, state: Self::State) -> Option<Self::State>;

    /// Whether its outcome is unknown.
    fn is_unknown(operation: &Self::Operation) -> bool;
}

/// An object and the close of its history: the state is none after the close.
struct Story<S>(PhantomData<S>);

impl<S: Rules> Specification for Story<S> {
    type State = Option<S::State>;
    type Operation = Step<S::Operation>;

    fn init() -> Self::State {
        Some(S::FIRST)
    }

    fn apply(step: &Self::Operation, state: &Self::State) -> (bool, Self::State) {
        count_step();
        match (step, *state) {
            (Step::Close, _) => (true, None),
            (Step::Operation(operation), None) => (S::is_unknown(operation), None),
            (Step::Operation(operation), Some(before)) => match S::next(operation, before) {
                Some(after) => (true, Some(after)),
                None => (false, *state),
            },
        }
    }
}

/// What the whole history tells of its parts, so that the search need not try what cannot be.
///
/// Each version is made once, so a change of unknown outcome is tried at a version only if nobody saw that version, or
/// if it makes exactly the record that was seen. A change whose tag nobody saw is tried only at versions that nobody
/// saw. Of such changes of the same kind the one that was invoked first is tried first: it may stand wherever a later
/// one may.
#[derive(Debug, Default)]
struct Seen {
    records: BTreeMap<i64, Record>,
    /// The newest version that anybody saw.
    latest: i64,
    /// Some condition names the newest version that anybody saw, or a later one: whether it holds tells of versions that
    /// nobody saw.
    conditions: bool,
    /// The first version at which each tag was seen.
    tags: BTreeMap<Tag, i64>,
    /// Unconditional changes of unknown outcome that are alike but for the time of their invocation: which kind of
    /// them, and the number within the kind.
    alike: BTreeMap<(Tag, Duration, u32), (usize, u16)>,
}

/// Stands for the tag of any change whose result nobody saw.
const UNSEEN: Tag = 0;
/// Kinds of changes that are counted; changes of further kinds are tried in any order.
const KINDS_MAX: usize = 8;

/// How many changes of each kind took effect so far.
type Used = [u16; KINDS_MAX];

impl Seen {
    fn of(operations: &[Operation], versions: &Versions) -> Self {
        let mut seen = Seen::default();
        versions.iter().for_each(|(version, record)| seen.note(*version, *record));
        for operation in operations {
            match operation.outcome {
                Outcome::Record(record) => seen.note(record.version, Some(record)),
                Outcome::At { version, .. } => seen.note(version, None),
                _ => {}
            }
        }
        let is_late = |o: &Operation| o.call.expected().is_some_and(|expected| expected >= seen.latest);
        seen.conditions = operations.iter().any(|o| o.outcome != Outcome::NotDone && is_late(o));
        let mut unknown: Vec<_> = operations.iter().filter(|o| seen.is_countable(o)).collect();
        unknown.sort_by_key(|operation| operation.invoked);
        let mut kinds: Vec<(Call, u16)> = Vec::new();
        for operation in unknown {
            let kind = kind_of(operation.call);
            let place = kinds.iter().position(|(known, _)| *known == kind).unwrap_or_else(|| {
                kinds.push((kind, 0));
                kinds.len() - 1
            });
            if place < KINDS_MAX {
                seen.alike.insert(key_of(operation), (place, kinds[place].1));
                kinds[place].1 += 1;
            }
        }
        seen
    }

    fn note(&mut self, version: i64, record: Option<Record>) {
        self.latest = self.latest.max(version);
        let Some(record) = record else { return };
        self.records.entry(version).or_insert(record);
        for tag in [record.name, record.address] {
            let first = self.tags.entry(tag).or_insert(version);
            *first = version.min(*first);
        }
    }

    fn is_countable(&self, operation: &Operation) -> bool {
        let unseen = operation.call.tag().is_none_or(|tag| !self.tags.contains_key(&tag));
        let counted = matches!(operation.call, Call::Put { .. } | Call::Patch { .. } | Call::Restrict { .. });
        operation.outcome == Outcome::Unknown && counted && unseen && operation.call.expected().is_none()
    }

    /// The state after a change of unknown outcome makes `record` of a state, if that may be.
    fn may_make(&self, operation: &Operation, record: Record, mut used: Used) -> Option<Life> {
        let mut record = record;
        if let Some((kind, number)) = self.alike.get(&key_of(operation)) {
            if used[*kind] != *number {
                return None;
            }
            used[*kind] += 1;
        }
        // A change of the address or of the restriction also shows in what cannot be found any more.
        let shows_otherwise =
            matches!(operation.call, Call::Restrict { .. }) || operation.call.email().is_some();
        let may_be = match (self.records.get(&record.version), operation.call.tag()) {
            (Some(seen), _) => *seen == record,
            (None, Some(tag)) => match self.tags.get(&tag) {
                Some(first) => record.version <= *first,
                None => record.version <= self.latest || shows_otherwise || self.conditions,
            },
            (None, None) => true,
        };
        if let Some(tag) = operation.call.tag().filter(|tag| !self.tags.contains_key(tag)) {
            let hidden = |shown: Tag| if shown == tag { UNSEEN } else { shown };
            (record.name, record.address) = (hidden(record.name), hidden(record.address));
        }
        may_be.then_some(Life::Active(record, used))
    }
}

fn key_of(operation: &Operation) -> (Tag, Duration, u32) {
    (operation.call.tag().unwrap_or(UNSEEN), operation.invoked, operation.client)
}

/// The call without its tag.
fn kind_of(call: Call) -> Call {
    match call {
        Call::Put { email, expected, .. } => Call::Put { tag: UNSEEN, email, expected },
        Call::Patch { part, expected, .. } => Call::Patch { tag: UNSEEN, part, expected },
        other => other,
    }
}

/// The rules of one patient.
struct Patient;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Absent,
    Active(Record, Used),
    /// The record ended with this version.
    Ended(i64),
}

impl Rules for Patient {
    type State = Life;
    type Operation = (Operation, Arc<Seen>);

    const FIRST: Life = Life::Absent;

    fn next((operation, seen): &Self::Operation, life: Life) -> Option<Life> {
        match life {
            Life::Active(before, used) => living(operation, seen, before, used),
            Life::Absent => match (operation.call, operation.outcome) {
                (Call::Register { tag, email }, outcome) => {
                    let made = Record { version: 1, name: tag, address: tag, email, restricted: false };
                    match outcome {
                        Outcome::Record(told) if told == made => Some(Life::Active(made, Used::default())),
                        Outcome::Unknown => Some(Life::Active(made, Used::default())),
                        // Another patient has the address, so this one was not made.
                        Outcome::Taken => Some(life),
                        _ => None,
                    }
                }
                (_, outcome) => (outcome == Outcome::Missing).then_some(life),
            },
            Life::Ended(end) => match (operation.call, operation.outcome) {
                (Call::Look(Look::History), outcome) => {
                    (outcome == Outcome::At { version: end, ended: true }).then_some(life)
                }
                (Call::Register { .. }, _) => None,
                (_, outcome) => (outcome == Outcome::Missing).then_some(life),
            },
        }
    }

    fn is_unknown((operation, _): &Self::Operation) -> bool {
        operation.outcome == Outcome::Unknown
    }
}

/// The state after an operation on a living record, if it can be answered as it was.
fn living(operation: &Operation, seen: &Seen, before: Record, used: Used) -> Option<Life> {
    let (unchanged, outcome) = (Life::Active(before, used), operation.outcome);
    if let Call::Look(look) = operation.call {
        return sees(look, before, outcome).then_some(unchanged);
    }
    if operation.call.expected().is_some_and(|expected| expected != before.version) {
        return (outcome == Outcome::Stale).then_some(unchanged);
    }
    let version = before.version + 1;
    let after = match operation.call {
        Call::Delete { .. } => {
            // Nothing follows the end of a record.
            let may_end = outcome == Outcome::Ended || outcome == Outcome::Unknown && version >= seen.latest;
            return may_end.then_some(Life::Ended(version));
        }
        Call::Restrict { on } if on == before.restricted => {
            return (outcome == Outcome::Done).then_some(unchanged);
        }
        Call::Restrict { on } => Record { version, restricted: on, ..before },
        Call::Put { tag, email, .. } => Record { version, name: tag, address: tag, email, ..before },
        Call::Patch { tag, part, .. } => match part {
            Part::Name => Record { version, name: tag, ..before },
            Part::Address => Record { version, address: tag, ..before },
            Part::Email(email) => Record { version, address: tag, email, ..before },
        },
        Call::Register { .. } | Call::Look(_) | Call::OpenAccount => return None,
    };
    match outcome {
        Outcome::Record(told) => (told == after).then_some(Life::Active(after, used)),
        Outcome::Done => operation.call.tag().is_none().then_some(Life::Active(after, used)),
        Outcome::Unknown => seen.may_make(operation, after, used),
        Outcome::Taken => {
            let wanted = operation.call.email();
            let may_be = matches!(wanted, Some(Email::Contested(_))) && wanted != Some(before.email);
            may_be.then_some(unchanged)
        }
        _ => None,
    }
}

/// Whether a look at a living record can be answered like that.
fn sees(look: Look, record: Record, outcome: Outcome) -> bool {
    let found = match look {
        Look::Get => true,
        Look::Listed => !record.restricted,
        Look::Searched(email) => !record.restricted && record.email == email,
        Look::History => return outcome == Outcome::At { version: record.version, ended: false },
    };
    outcome == if found { Outcome::Record(record) } else { Outcome::Missing }
}

/// What an operation says of one contested address.
#[derive(Clone, Copy, Debug)]
enum Claim {
    /// The patient takes it, or has it already.
    Takes,
    /// Another patient has it.
    IsTaken,
    /// The patient gives it up, if it has it.
    GivesUp,
    /// The patient has it.
    Has,
    /// The patient does not have it.
    HasNot,
}

impl Claim {
    fn of(number: u32, operation: &Operation) -> Option<Self> {
        let wanted = Email::Contested(number);
        let asked = operation.call.email().map(|email| email == wanted);
        match (operation.call, operation.outcome) {
            (Call::Delete { .. }, Outcome::Ended | Outcome::Unknown) => Some(Claim::GivesUp),
            (_, Outcome::Taken) => (asked == Some(true)).then_some(Claim::IsTaken),
            (_, Outcome::Unknown) => asked.map(|asked| if asked { Claim::Takes } else { Claim::GivesUp }),
            (Call::Look(Look::Get), Outcome::Missing) => Some(Claim::HasNot),
            (Call::Delete { .. } | Call::Put { .. } | Call::Patch { .. }, Outcome::Missing) => {
                Some(Claim::HasNot)
            }
            (_, Outcome::Record(record)) => Some(match asked {
                Some(true) => Claim::Takes,
                Some(false) => Claim::GivesUp,
                None if record.email == wanted => Claim::Has,
                None => Claim::HasNot,
            }),
            _ => None,
        }
    }
}

/// The rules of one address: its state is the registration of the patient that has it.
struct Address;

impl Rules for Address {
    type State = Option<Tag>;
    type Operation = (Operation, Claim);

    const FIRST: Option<Tag> = None;

    fn next((operation, claim): &Self::Operation, holder: Option<Tag>) -> Option<Option<Tag>> {
        let patient = operation.made_by;
        let has = holder == Some(patient);
        let unknown = operation.outcome == Outcome::Unknown;
        let (after, may_be) = match claim {
            Claim::Takes => (Some(patient), holder.is_none() || has && !unknown),
            Claim::IsTaken => (holder, holder.is_some() && !has),
            Claim::GivesUp => (if has { None } else { holder }, has || !unknown),
            Claim::Has => (holder, has),
            Claim::HasNot => (holder, !has),
        };
        may_be.then_some(after)
    }

    fn is_unknown((operation, _): &Self::Operation) -> bool {
        operation.outcome == Outcome::Unknown
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests;
