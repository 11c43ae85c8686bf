//! Which living patients a list shows, in what order, and where a page of it begins.

use std::sync::Arc;

use ::time::Date;

use super::event::{EventType, RecordedEvent};
use super::ids::{PatientId, Version};
use super::patient::{Patient, PatientEvent};
use super::text::search_key;
use super::time::Timestamp;

/// What a list shows.
#[derive(Clone, PartialEq, Eq)]
pub enum Filter {
    /// Every living patient.
    All,
    /// Whose name or e-mail address begins with this, in the form of `search_key`. The order is that of what
    /// begins with it: the name, or else the address.
    Begins(Box<str>),
    /// Whose name begins with this, in the form of `search_key`: for callers who are shown names alone.
    NameBegins(Box<str>),
    /// Who has this e-mail address, in its unique form.
    Email(Box<str>),
    /// Who was born after the one day and before the other.
    Born {
        /// Not on this day, and not before.
        after: Option<Date>,
        /// Not on this day, and not after.
        before: Option<Date>,
    },
    /// Whom the clinic took on after this day.
    RegisteredAfter(Date),
}

/// Never prints what is looked for: it is a part of a record.
impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Filter::All => "All",
            Filter::Begins(_) => "Begins(..)",
            Filter::NameBegins(_) => "NameBegins(..)",
            Filter::Email(_) => "Email(..)",
            Filter::Born { .. } => "Born(..)",
            Filter::RegisteredAfter(_) => "RegisteredAfter(..)",
        })
    }
}

/// What a list is sorted by; the id decides between equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// When the record was made.
    Created,
    /// The name, in the form of `search_key`; of `Filter::Begins` what begins with it.
    Name,
    /// The date of birth.
    Born,
    /// The registered date.
    Registered,
}

/// A place in an order: after the patient with this key and id.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    /// What the order goes by.
    pub key: Key,
    /// Decides between equal keys.
    pub id: PatientId,
}

/// Never prints the key: it is a part of a record.
impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Never prints the key.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What an order goes by.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    /// `Sort::Created`
    Time(Timestamp),
    /// `Sort::Name`
    Text(Box<str>),
    /// `Sort::Born`, `Sort::Registered`
    Day(Date),
}

/// A page of a list, asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatientSearch {
    /// Which patients.
    pub filter: Filter,
    /// In what order. Every filter goes with the orders of `Filter::sorts` alone.
    pub sort: Sort,
    /// The other way round.
    pub descending: bool,
    /// Where the page begins.
    pub after: Option<Place>,
    /// The most patients on it.
    pub limit_rows: u32,
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatientPage<P = Patient> {
    /// In order, as many as there are up to the limit, unless `resume` says that there may be more.
    pub patients: Vec<P>,
    /// The search was ended before the page was full: it goes on after this place.
    pub resume: Option<Place>,
}

impl Filter {
    /// The orders in which an index has what the filter shows, the usual one first.
    pub const fn sorts(&self) -> &'static [Sort] {
        match self {
            Filter::All | Filter::Email(_) => &[Sort::Created, Sort::Name, Sort::Born, Sort::Registered],
            Filter::Begins(_) | Filter::NameBegins(_) => &[Sort::Name],
            Filter::Born { .. } => &[Sort::Born],
            Filter::RegisteredAfter(_) => &[Sort::Registered],
        }
    }
}

impl PatientSearch {
    /// All living patients, the oldest record first.
    pub const fn all(after: Option<Place>, limit_rows: u32) -> Self {
        PatientSearch { filter: Filter::All, sort: Sort::Created, descending: false, after, limit_rows }
    }

    /// Where `patient` stands in the order.
    pub fn place_of(&self, patient: &Patient) -> Place {
        let details = &patient.details;
        let key = match (self.sort, &self.filter) {
            (Sort::Created, _) => Key::Time(patient.created_at),
            (Sort::Name, Filter::Begins(prefix)) => {
                let name = search_key(&details.name);
                Key::Text(if name.starts_with(&**prefix) { name.into() } else { details.email_key().into() })
            }
            (Sort::Name, _) => Key::Text(search_key(&details.name).into()),
            (Sort::Born, _) => Key::Day(details.date_of_birth),
            (Sort::Registered, _) => Key::Day(details.registered_date),
        };
        Place { key, id: patient.id }
    }
}

/// One version of a record, and how it came about.
#[derive(Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// What happened, with the record after it.
    pub event: PatientEvent,
    /// When it was decided.
    pub at: Timestamp,
    /// Who caused it.
    pub subject: Arc<str>,
}

/// Never prints the subject.
impl std::fmt::Debug for HistoryEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HistoryEntry")
            .field("event", &self.event)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl From<RecordedEvent> for HistoryEntry {
    fn from(recorded: RecordedEvent) -> Self {
        HistoryEntry { event: recorded.event, at: recorded.at, subject: recorded.subject }
    }
}

impl HistoryEntry {
    /// The version that the record has after it.
    pub fn version(&self) -> Version {
        self.event.version()
    }

    /// The type of what happened.
    pub fn event_type(&self) -> EventType {
        EventType::of(&self.event)
    }
}
