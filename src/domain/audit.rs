//! An entry of the access log: which caller did what to which record, when, from where, in which trace, and
//! with which outcome.

use std::fmt;

use super::access::{Action, Caller, Role};
use super::email::EMAIL_MAX_CHARS;
use super::ids::{EventId, PatientId, Version};
use super::time::Timestamp;

/// The outcome of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The action was carried out, or the record was shown.
    Done,
    /// The caller has no permission.
    Denied,
    /// The rules refused the request: not found, already in use, or invalid.
    Refused,
    /// The request failed, and nothing was done.
    Failed,
    /// The outcome is not known.
    Unknown,
    /// A change was written in the same transaction as this entry. It was made if its event is in the
    /// database. If not, another entry records what the caller was answered.
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

    /// The outcomes that the API shows. A submitted entry is shown with its actual outcome.
    pub const SHOWN: [Outcome; 5] =
        [Outcome::Done, Outcome::Denied, Outcome::Refused, Outcome::Failed, Outcome::Unknown];

    /// Returns the name in the API.
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

    /// Returns the outcome of that name, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }

    /// Returns the number in the access log. It never changes.
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

    /// Returns the outcome of that number, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.code() == code)
    }
}

/// The change to which a `Submitted` entry belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// The event of the change.
    pub event: EventId,
    /// The version of the patient after the change.
    pub version: Version,
}

/// The maximum number of characters kept of a search.
const SEARCH_MAX_CHARS: usize = 1000;

/// Details of an access, besides the patients.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// The e-mail address of the user who was created or changed.
    pub account: Option<Box<str>>,
    /// The requested or current role of that user.
    pub role: Option<Role>,
    /// Whether that user was to be disabled, or is now.
    pub disabled: Option<bool>,
    /// Whether the record was to be restricted, or is now.
    pub restricted: Option<bool>,
    /// The search parameters of the request.
    pub search: Option<Box<str>>,
}

/// Never prints the changed user or the search.
impl fmt::Debug for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Detail(..)")
    }
}

impl Detail {
    /// Returns the detail for the user with this e-mail address, cut to the length of the longest valid
    /// address.
    pub fn of_account(email: &str) -> Self {
        let account: String = email.chars().take(EMAIL_MAX_CHARS).collect();
        Detail { account: Some(account.into()), ..Detail::default() }
    }

    /// Returns the detail for a change of a record's restriction.
    pub fn of_mark(restricted: bool) -> Self {
        Detail { restricted: Some(restricted), ..Detail::default() }
    }

    /// Returns the detail for a search with these parameters. Leaves out the parameters that only select a
    /// page.
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
    /// When the access was decided or answered.
    pub at: Timestamp,
    /// The requested action.
    pub action: Action,
    /// The outcome.
    pub outcome: Outcome,
    /// The caller, with its address.
    pub caller: Caller,
    /// The patients whose records were accessed: one, those of a list, or none.
    pub patients: Vec<PatientId>,
    /// The trace of the request.
    pub trace_id: u128,
    /// The reason of a break-glass access, in the caller's words.
    pub reason: Option<Box<str>>,
    /// The change, for a `Submitted` entry.
    pub change: Option<Change>,
    /// Further details, if there are any.
    pub detail: Option<Box<Detail>>,
}

/// Never prints the caller or the reason.
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
