//! Whether what clients saw of one patient, or of one e-mail address, could have happened one after the other,
//! each operation at one moment between its invocation and its answer (linearizability: Herlihy and Wing, 1990).
//!
//! The search is that of Wing, Gong and Lowe, by `todc_utils`. An operation of unknown outcome is given an
//! answer after all others. Before the history's close, a step after everything that was answered, it may be put
//! only where it has an effect; after the close it has none: what takes effect never, or so late that nobody saw
//! it, goes there. So the search tries no orders of operations that change nothing.
//!
//! A window is the whole life of one patient, or of one address; the driver bounds both. The search has a budget:
//! a history that uses it up counts as not shown to be right.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

use super::history::{Call, Operation, Outcome, Tag};

/// Steps of one search at most; ordinary histories of a few hundred operations take some thousands.
const STEPS_MAX: u64 = 1_000_000;

/// After everything that was answered.
const CLOSE: Duration = Duration::from_secs(u64::MAX - 1);
/// After the close.
const NEVER: Duration = Duration::MAX;

/// What a search comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none.
    Violated,
    /// None was found within the budget.
    Undecided,
}

/// Whether this can be the life of one patient.
pub(crate) fn check_patient(operations: &[Operation]) -> Verdict {
    check_life(operations, STEPS_MAX)
}

fn check_life(operations: &[Operation], steps_max: u64) -> Verdict {
    let seen = Arc::new(Seen::of(operations));
    let step = |operation: &Operation| Some((*operation, Arc::clone(&seen)));
    search::<Patient>(operations, step, steps_max)
}

/// Whether this can be the story of one e-mail address: one living patient has it at a time.
pub(crate) fn check_address(operations: &[Operation]) -> Verdict {
    let concerns = |operation: &Operation| match operation.call {
        Call::Register(_) | Call::Delete => Some(*operation),
        Call::Read { .. } | Call::Update(_) | Call::UpdateIf(..) => None,
    };
    search::<Address>(operations, concerns, STEPS_MAX)
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

/// Thrown out of a search that takes too long: the library has no other way out.
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
        Outcome::Unknown => !matches!(o.call, Call::Read { .. }),
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

/// What one thing may do.
trait Rules {
    type State: Clone + Copy + Eq + std::hash::Hash + std::fmt::Debug;
    type Operation: Clone + std::fmt::Debug;

    const FIRST: Self::State;

    /// The state after the operation, if it can be answered as it was in this state. One of unknown outcome
    /// must have an effect.
    fn next(operation: &Self::Operation, state: Self::State) -> Option<Self::State>;

    /// Whether nobody knows what became of it.
    fn is_unknown(operation: &Self::Operation) -> bool;
}

/// A thing with its close: the state is none after it.
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
/// A version is made once: whoever says otherwise makes the history wrong, and a change of unknown outcome need not
/// be tried where another one is known to be, or later than anybody looked. Changes whose result nobody saw are
/// alike but for the time of their invocation: if some of them took effect, the first ones may have been it.
#[derive(Debug, Default)]
struct Seen {
    tags: BTreeMap<i64, Tag>,
    versions: BTreeMap<Tag, i64>,
    /// Changes of unknown outcome whose result nobody saw, numbered in the order of their invocations.
    unseen: BTreeMap<Tag, u32>,
}

/// Stands for any change whose result nobody saw.
const UNSEEN: Tag = 0;

impl Seen {
    fn of(operations: &[Operation]) -> Self {
        let mut seen = Seen::default();
        for operation in operations {
            if let Outcome::Record { version, tag } = operation.outcome {
                seen.tags.entry(version).or_insert(tag);
                seen.versions.entry(tag).or_insert(version);
            }
        }
        let unknown = operations.iter().filter(|o| o.outcome == Outcome::Unknown);
        let mut unseen: Vec<_> = unknown
            .filter_map(|o| match o.call {
                Call::Update(tag) if !seen.versions.contains_key(&tag) => Some((o.invoked, tag)),
                _ => None,
            })
            .collect();
        unseen.sort_unstable();
        seen.unseen = unseen.into_iter().map(|(_, tag)| tag).zip(0..).collect();
        seen
    }

    /// As `may_make`, for a change that can make this version alone.
    fn may_make_if(&self, version: i64, tag: Tag) -> Option<Tag> {
        match self.versions.get(&tag) {
            Some(known) => (*known == version).then_some(tag),
            None => self.is_gap(version).then_some(UNSEEN),
        }
    }

    /// Whether nobody saw this version, and somebody a later one.
    fn is_gap(&self, version: i64) -> bool {
        let latest = self.tags.last_key_value().map_or(0, |(latest, _)| *latest);
        version < latest && !self.tags.contains_key(&version)
    }

    /// The record that a change of unknown outcome may make of `version`, after so many unseen ones.
    fn may_make(&self, version: i64, tag: Tag, used: u32) -> Option<(Tag, u32)> {
        match (self.versions.get(&tag), self.unseen.get(&tag)) {
            (Some(known), _) => (*known == version).then_some((tag, used)),
            (None, Some(number)) => (self.is_gap(version) && *number == used).then_some((UNSEEN, used + 1)),
            (None, None) => None,
        }
    }
}

/// The rules of one patient.
struct Patient;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Absent,
    Active {
        version: i64,
        tag: Tag,
        /// Unseen changes that took effect so far.
        used: u32,
    },
    Deleted,
}

impl Rules for Patient {
    type State = Life;
    type Operation = (Operation, Arc<Seen>);

    const FIRST: Life = Life::Absent;

    fn next((operation, seen): &Self::Operation, life: Life) -> Option<Life> {
        match (operation.call, life) {
            (Call::Register(tag), Life::Absent) => match operation.outcome {
                Outcome::Record { version: 1, tag: told } if told == tag => Some(made(tag)),
                Outcome::Unknown => Some(made(tag)),
                // The address is another one's: about this patient it says that it was not made.
                Outcome::Taken => Some(life),
                _ => None,
            },
            (Call::Update(tag), Life::Active { version: before, used, .. }) => match operation.outcome {
                Outcome::Record { version, tag: told } => {
                    (told == tag && version == before + 1).then_some(Life::Active { version, tag, used })
                }
                Outcome::Unknown => {
                    let version = before + 1;
                    let (tag, used) = seen.may_make(version, tag, used)?;
                    Some(Life::Active { version, tag, used })
                }
                Outcome::Taken => Some(life),
                _ => None,
            },
            (Call::UpdateIf(_, expected), Life::Active { version, .. }) if version != expected => {
                (operation.outcome == Outcome::Stale).then_some(life)
            }
            (Call::UpdateIf(tag, before), Life::Active { used, .. }) => match operation.outcome {
                Outcome::Record { version, tag: told } => {
                    (told == tag && version == before + 1).then_some(Life::Active { version, tag, used })
                }
                Outcome::Unknown => {
                    let version = before + 1;
                    let tag = seen.may_make_if(version, tag)?;
                    Some(Life::Active { version, tag, used })
                }
                Outcome::Taken => Some(life),
                _ => None,
            },
            (Call::Delete, Life::Active { .. }) => {
                matches!(operation.outcome, Outcome::Ended | Outcome::Unknown).then_some(Life::Deleted)
            }
            (Call::Read { .. }, Life::Active { version, tag, .. }) => {
                (operation.outcome == Outcome::Record { version, tag }).then_some(life)
            }
            (
                Call::Read { .. } | Call::Update(_) | Call::UpdateIf(..) | Call::Delete,
                Life::Absent | Life::Deleted,
            ) => (operation.outcome == Outcome::Missing).then_some(life),
            (Call::Register(_), Life::Active { .. } | Life::Deleted) => None,
        }
    }

    fn is_unknown((operation, _): &Self::Operation) -> bool {
        operation.outcome == Outcome::Unknown
    }
}

fn made(tag: Tag) -> Life {
    Life::Active { version: 1, tag, used: 0 }
}

/// The rules of one address: its state is the registration that holds it.
struct Address;

impl Rules for Address {
    type State = Option<Tag>;
    type Operation = Operation;

    const FIRST: Option<Tag> = None;

    fn next(operation: &Operation, holder: Option<Tag>) -> Option<Option<Tag>> {
        let held = holder == Some(operation.made_by);
        let (after, holds) = match (operation.call, operation.outcome) {
            (Call::Register(tag), Outcome::Record { .. } | Outcome::Unknown) => (Some(tag), holder.is_none()),
            (Call::Register(_), Outcome::Taken) => (holder, holder.is_some()),
            (Call::Delete, Outcome::Ended | Outcome::Unknown) => (None, held),
            (Call::Delete, Outcome::Missing) => (holder, !held),
            _ => (holder, false),
        };
        holds.then_some(after)
    }

    fn is_unknown(operation: &Operation) -> bool {
        operation.outcome == Outcome::Unknown
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests;
