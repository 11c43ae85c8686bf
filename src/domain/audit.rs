//! An access, as the audit keeps it: who did what, to whose record, when, from where, in which trace, and
//! what came of it.

use std::fmt;

use super::access::{Action, Caller, Role};
use super::email::EMAIL_MAX_CHARS;
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

    /// Those that the interface shows. An entry that was submitted is shown as what came of it.
    pub const SHOWN: [Outcome; 5] =
        [Outcome::Done, Outcome::Denied, Outcome::Refused, Outcome::Failed, Outcome::Unknown];

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

/// The most characters that are kept of a search.
const SEARCH_MAX_CHARS: usize = 1000;

/// What an access was about, beside whose records.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// The user who was made or changed, by the e-mail address.
    pub account: Option<Box<str>>,
    /// The role that the user was to have, or has now.
    pub role: Option<Role>,
    /// Whether the user was to be kept out, or is now.
    pub disabled: Option<bool>,
    /// Whether the record was to be restricted, or is now.
    pub restricted: Option<bool>,
    /// What was searched for: the parameters of the request.
    pub search: Option<Box<str>>,
}

/// Never prints who was changed, nor what was searched for.
impl fmt::Debug for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Detail(..)")
    }
}

impl Detail {
    /// About the user of `email`, of which no more is kept than an address may have.
    pub fn of_account(email: &str) -> Self {
        let account: String = email.chars().take(EMAIL_MAX_CHARS).collect();
        Detail { account: Some(account.into()), ..Detail::default() }
    }

    /// About the mark of a record.
    pub fn of_mark(restricted: bool) -> Self {
        Detail { restricted: Some(restricted), ..Detail::default() }
    }

    /// A search with these parameters, but for those that only say which part of the list is asked for.
    pub fn of_search(parameters: &[(String, String)]) -> Self {
        let kept = parameters.iter().filter(|(name, _)| !matches!(name.as_str(), "limit" | "cursor"));
        let text = kept.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
        let search =
            (!text.is_empty()).then(|| text.chars().take(SEARCH_MAX_CHARS).collect::<String>().into());
        Detail { search, ..Detail::default() }
    }
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
    /// What it was about, if there is more to say.
    pub detail: Option<Box<Detail>>,
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
    fn what_is_kept_of_a_search_has_an_end() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let of = |asked: &[(&str, &str)]| Detail::of_search(&pairs(asked)).search;
        assert_eq!(
            of(&[("q", "ada l"), ("limit", "3"), ("sort", "name"), ("cursor", "x")]).as_deref(),
            Some("q=ada l&sort=name")
        );
        assert_eq!(of(&[("limit", "3")]), None);
        let long = of(&[("q", &"\u{e9}".repeat(5000))]).expect("kept");
        assert_eq!(long.chars().count(), SEARCH_MAX_CHARS);
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
            detail: Some(Box::new(Detail::of_account("canary"))),
        };
        assert!(!format!("{:?}", access.detail).contains("canary"));
        assert!(!format!("{access:?}").contains("canary"));
    }
}
