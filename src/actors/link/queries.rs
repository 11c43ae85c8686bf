//! The wire form of requests about many patients and of their answers. As in `wire`, a value that cannot be
//! read becomes `None`.

use std::sync::Arc;

use super::wire::{self, Answer, id, uuid};
use crate::actors::patients::{PatientAnswer, PatientQuery};
use crate::domain::event::EventType;
use crate::domain::ids::PatientId;
use crate::domain::search::{Filter, HistoryEntry, Key, PatientPage, PatientSearch, Place, Sort};
use crate::domain::time::Timestamp;
use crate::proto::cluster as pb;
use crate::proto::cluster::reply::Outcome;
use crate::proto::cluster::request::Body;

/// Returns the wire form of a query. A list of all patients in the default order is sent as `ListPatients`,
/// which every version understands.
pub(super) fn body(query: &PatientQuery) -> Body {
    let search = match query {
        PatientQuery::Search(search) => search,
        PatientQuery::History { id: patient, after, limit_rows } => {
            let (id, after_version, limit_rows) = (id(patient.0), *after, *limit_rows);
            return Body::PatientHistory(pb::PatientHistory { id, after_version, limit_rows });
        }
    };
    let PatientSearch { filter, sort, descending, after, limit_rows } = search;
    let plain = *filter == Filter::All && *sort == Sort::Created && !descending;
    match after.as_ref().map(|place| (&place.key, place)) {
        None if plain => Body::ListPatients(pb::ListPatients { after: None, limit_rows: *limit_rows }),
        Some((Key::Time(time), place)) if plain => {
            let after = Some(pb::ListPosition { created_at_us: time.0, id: id(place.id.0) });
            Body::ListPatients(pb::ListPatients { after, limit_rows: *limit_rows })
        }
        _ => Body::SearchPatients(pb::SearchPatients {
            filter: said_filter(filter),
            sort: said_sort(filter, *sort).into(),
            descending: *descending,
            after: after.as_ref().map(said_place),
            limit_rows: *limit_rows,
        }),
    }
}

/// Reads a `ListPatients` request.
pub(super) fn read_list(list: pb::ListPatients) -> Option<PatientQuery> {
    let after = match list.after {
        Some(after) => {
            let (key, id) = (Key::Time(Timestamp(after.created_at_us)), PatientId(uuid(after.id)?));
            Some(Place { key, id })
        }
        None => None,
    };
    Some(PatientQuery::Search(PatientSearch::all(after, list.limit_rows)))
}

/// Reads a `SearchPatients` request.
pub(super) fn read_search(search: pb::SearchPatients) -> Option<PatientQuery> {
    use pb::search_patients::Filter as Said;
    let names_alone = search.sort() == pb::Sort::NameAlone;
    let sort = match search.sort() {
        pb::Sort::Created => Sort::Created,
        pb::Sort::Name | pb::Sort::NameAlone => Sort::Name,
        pb::Sort::Born => Sort::Born,
        pb::Sort::Registered => Sort::Registered,
        pb::Sort::Unspecified => return None,
    };
    let filter = match search.filter {
        None => Filter::All,
        Some(Said::Begins(prefix)) if names_alone => Filter::NameBegins(prefix.into()),
        _ if names_alone => return None,
        Some(Said::Begins(prefix)) => Filter::Begins(prefix.into()),
        Some(Said::Email(key)) => Filter::Email(key.into()),
        Some(Said::Born(born)) => {
            Filter::Born { after: wire::day(born.after)?, before: wire::day(born.before)? }
        }
        Some(Said::RegisteredAfter(day)) => Filter::RegisteredAfter(wire::date(day)?),
    };
    let after = match search.after {
        Some(place) => Some(read_place(place)?),
        None => None,
    };
    let (descending, limit_rows) = (search.descending, search.limit_rows);
    Some(PatientQuery::Search(PatientSearch { filter, sort, descending, after, limit_rows }))
}

/// Reads a `PatientHistory` request.
pub(super) fn read_history(history: pb::PatientHistory) -> Option<PatientQuery> {
    let (after, limit_rows) = (history.after_version, history.limit_rows);
    Some(PatientQuery::History { id: PatientId(uuid(history.id)?), after, limit_rows })
}

fn said_filter(filter: &Filter) -> Option<pb::search_patients::Filter> {
    use pb::search_patients::Filter as Said;
    match filter {
        Filter::All => None,
        Filter::Begins(prefix) | Filter::NameBegins(prefix) => Some(Said::Begins(prefix.as_ref().into())),
        Filter::Email(key) => Some(Said::Email(key.as_ref().into())),
        Filter::Born { after, before } => {
            let (after, before) =
                (after.map(|day| day.to_julian_day()), before.map(|day| day.to_julian_day()));
            Some(Said::Born(pb::Born { after, before }))
        }
        Filter::RegisteredAfter(day) => Some(Said::RegisteredAfter(day.to_julian_day())),
    }
}

const fn said_sort(filter: &Filter, sort: Sort) -> pb::Sort {
    match sort {
        Sort::Name if matches!(filter, Filter::NameBegins(_)) => pb::Sort::NameAlone,
        Sort::Created => pb::Sort::Created,
        Sort::Name => pb::Sort::Name,
        Sort::Born => pb::Sort::Born,
        Sort::Registered => pb::Sort::Registered,
    }
}

fn said_place(place: &Place) -> pb::Place {
    use pb::place::Key as Said;
    let key = match &place.key {
        Key::Time(time) => Said::TimeUs(time.0),
        Key::Text(text) => Said::Text(text.as_ref().into()),
        Key::Day(day) => Said::Day(day.to_julian_day()),
    };
    pb::Place { key: Some(key), id: id(place.id.0) }
}

fn read_place(place: pb::Place) -> Option<Place> {
    use pb::place::Key as Said;
    let key = match place.key? {
        Said::TimeUs(time) => Key::Time(Timestamp(time)),
        Said::Text(text) => Key::Text(text.into()),
        Said::Day(day) => Key::Day(wire::date(day)?),
    };
    Some(Place { key, id: PatientId(uuid(place.id)?) })
}

impl Answer for PatientAnswer {
    fn outcome(&self) -> Outcome {
        match self {
            PatientAnswer::Page(page) => Outcome::Patients(pb::Patients {
                patients: page.patients.iter().map(wire::patient).collect(),
                resume: page.resume.as_ref().map(said_place),
            }),
            PatientAnswer::History(entries) => {
                Outcome::History(pb::History { entries: entries.iter().map(said_entry).collect() })
            }
        }
    }

    fn read(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::Patients(page) => {
                let resume = match page.resume {
                    Some(place) => Some(read_place(place)?),
                    None => None,
                };
                let patients = page.patients.into_iter().map(wire::read_patient).collect::<Option<_>>()?;
                Some(PatientAnswer::Page(PatientPage { patients, resume }))
            }
            Outcome::History(history) => {
                let entries = history.entries.into_iter().map(read_entry).collect::<Option<_>>()?;
                Some(PatientAnswer::History(entries))
            }
            _ => None,
        }
    }
}

fn said_entry(entry: &HistoryEntry) -> pb::HistoryEntry {
    pb::HistoryEntry {
        patient: Some(wire::patient(entry.event.patient())),
        event_type: entry.event_type().as_str().to_owned(),
        at_us: entry.at.0,
        subject: entry.subject.as_ref().to_owned(),
    }
}

fn read_entry(entry: pb::HistoryEntry) -> Option<HistoryEntry> {
    let patient = Arc::new(wire::read_patient(entry.patient?)?);
    Some(HistoryEntry {
        event: EventType::parse(&entry.event_type)?.event(patient),
        at: Timestamp(entry.at_us),
        subject: entry.subject.into(),
    })
}
