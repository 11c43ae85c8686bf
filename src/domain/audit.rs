//! An access, as the audit keeps it: who did what, to whose record, when, from where, in which trace, and
//! what came of it.

use std::fmt;

use super::access::{Action, Caller};
use super::ids::{EventId, PatientId, Version};
use super::time::Timestamp;

/// What came of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done, or shown.
    Done,
    /// The caller may not.
    Denied,
    /// The rules said no: not there, taken, not valid.
    Refused,
    /// It could not be done; nothing was.
    Failed,
    /// Whether it was done is not known.
    Unknown,
    /// A change went to the database, in the same transaction as this entry. It was done if its event is there;
    /// if not, another entry tells what the caller was answered.
    Submitted,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 6] = [
        Outcome::Done,
        Outcome::Denied,
        Outcome::Refused,
        Outcome::Failed,
        Outcome::Unknown,
        Outcome::Submitted,
    ];

    /// The name in the interface.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "DONE",
            Outcome::Denied => "DENIED",
            Outcome::Refused => "REFUSED",
            Outcome::Failed => "FAILED",
            Outcome::Unknown => "UNKNOWN",
            Outcome::Submitted => "SUBMITTED",
        }
    }

    /// The outcome of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }

    /// The number in the audit. Never changes.
    pub const fn code(self) -> u8 {
        match self {
            Outcome::Done => 1,
            Outcome::Denied => 2,
            Outcome::Refused => 3,
            Outcome::Failed => 4,
            Outcome::Unknown => 5,
            Outcome::Submitted => 6,
        }
    }

    /// The outcome of that number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.code() == code)
    }
}

/// The change that a `Submitted` entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// Its event.
    pub event: EventId,
    /// The version that the patient has after it.
    pub version: Version,
}

/// One access.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// When it was decided or answered.
    pub at: Timestamp,
    /// What was wanted.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
    /// Who wanted it, and from where.
    pub caller: Caller,
    /// Whose records: one, those of a list, or none.
    pub patients: Vec<PatientId>,
    /// The trace of the request.
    pub trace_id: u128,
    /// Why, of a break-glass access, in the caller's words.
    pub reason: Option<Box<str>>,
    /// Of a `Submitted` change.
    pub change: Option<Change>,
}

/// Never prints who, nor why.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("at", &self.at)
            .field("action", &self.action)
            .field("outcome", &self.outcome)
            .field("patients", &self.patients.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_read_back() {
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::from_code(outcome.code()), Some(outcome));
            assert_eq!(Outcome::parse(outcome.as_str()), Some(outcome));
        }
        assert_eq!((Outcome::from_code(0), Outcome::parse("done")), (None, None));
    }

    #[test]
    fn debug_tells_neither_who_nor_why() {
        let access = Access {
            at: Timestamp(0),
            action: Action::PatientRead,
            outcome: Outcome::Done,
            caller: Caller { subject: "canary@example.com".into(), ..Caller::system("") },
            patients: Vec::new(),
            trace_id: 1,
            reason: Some("canary".into()),
            change: None,
        };
        assert!(!format!("{access:?}").contains("canary"));
    }
}
