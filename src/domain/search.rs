//! Lists of patients: their filters, their orders, and where a page begins.

use std::sync::Arc;

use ::time::Date;

use super::event::{EventType, RecordedEvent};
use super::ids::{PatientId, Version};
use super::patient::{Patient, PatientEvent};
use super::text::search_key;
use super::time::Timestamp;

/// Which patients a list shows. Deleted patients are never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Filter {
    /// Every patient.
    All,
    /// Patients whose name or e-mail address begins with this text, in the form of `search_key`. Each patient
    /// is sorted by the field that begins with it: the name, or otherwise the address.
    Begins(Box<str>),
    /// Patients whose name begins with this text, in the form of `search_key`. For callers that are shown
    /// only names.
    NameBegins(Box<str>),
    /// The patient with this e-mail address, in its unique form.
    Email(Box<str>),
    /// Patients born after one day and before another.
    Born {
        /// Born later than this day.
        after: Option<Date>,
        /// Born earlier than this day.
        before: Option<Date>,
    },
    /// Patients whose registered date is later than this day.
    RegisteredAfter(Date),
}

/// Never prints the search text, because it is part of a record.
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

/// The sort order of a list. The id decides between equal keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// By the time the record was created.
    Created,
    /// By the name, in the form of `search_key`. With `Filter::Begins`, by the field that matches.
    Name,
    /// By date of birth.
    Born,
    /// By registered date.
    Registered,
}

/// A position in an order: after the patient with this key and id.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    /// The sort key.
    pub key: Key,
    /// Decides between equal keys.
    pub id: PatientId,
}

/// Never prints the key, because it is part of a record.
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

/// A sort key.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    /// `Sort::Created`
    Time(Timestamp),
    /// `Sort::Name`
    Text(Box<str>),
    /// `Sort::Born`, `Sort::Registered`
    Day(Date),
}

/// A request for a page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatientSearch {
    /// Which patients to show.
    pub filter: Filter,
    /// The sort order. It must be one of `Filter::sorts`.
    pub sort: Sort,
    /// Whether the order is reversed.
    pub descending: bool,
    /// The position after which the page begins.
    pub after: Option<Place>,
    /// The maximum number of patients on the page.
    pub limit_rows: u32,
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatientPage<P = Patient> {
    /// The patients in order. Fewer than the limit if there are no more, or if `resume` is set.
    pub patients: Vec<P>,
    /// Set if the search ended before the page was full. The search continues after this position.
    pub resume: Option<Place>,
}

impl Filter {
    /// Returns the orders in which an index provides the filter's patients, the default first.
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
    /// Returns the search for all patients, oldest record first.
    pub const fn all(after: Option<Place>, limit_rows: u32) -> Self {
        PatientSearch { filter: Filter::All, sort: Sort::Created, descending: false, after, limit_rows }
    }

    /// Returns the position of `patient` in the order.
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

/// One version of a record, and its cause.
#[derive(Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The event, with the record after it.
    pub event: PatientEvent,
    /// When the event was decided.
    pub at: Timestamp,
    /// The caller that caused the event.
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
    /// Returns the version of the record after the event.
    pub fn version(&self) -> Version {
        self.event.version()
    }

    /// Returns the type of the event.
    pub fn event_type(&self) -> EventType {
        EventType::of(&self.event)
    }
}
