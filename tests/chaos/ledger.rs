//! What the tables, the topic and the counts must say once everything has come to rest. Each function tells in words
//! what is wrong.

use std::collections::{BTreeMap, BTreeSet};

use hygeia::proto::patient::events::PatientEvent;
use serde_json::Value;
use uuid::Uuid;

use super::answers::record;
use super::checker::Versions;
use super::history::{Call, Operation, Outcome, Record, Tag};

/// An event as the table has it.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) version: i64,
    /// As the table numbers kinds.
    pub(crate) kind: i16,
    pub(crate) event_id: Uuid,
    /// Microseconds since 1970.
    pub(crate) at_us: i64,
    /// The details that it carries: after the event, or before it if it is a deletion.
    pub(crate) details: Details,
}

/// The details of a record, in the names of the interface: `name`, `email`, `address`, `dateOfBirth`,
/// `registeredDate`, and `restricted` if it is true.
pub(crate) type Details = Value;

/// The events of each patient, by version.
pub(crate) type Events = BTreeMap<Uuid, Vec<Recorded>>;

/// The row of a patient.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) version: i64,
    /// None if the record was ended.
    pub(crate) details: Option<Details>,
    /// The key of the e-mail address that no other patient can have.
    pub(crate) email_keys: Vec<String>,
}

/// An account.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) email: String,
}

const CREATED: i16 = 1;
const UPDATED: i16 = 2;
const DELETED: i16 = 3;
/// Each kind with its name in the topic and in the counts.
const KINDS: [(i16, &str); 3] =
    [(CREATED, "PATIENT_CREATED"), (UPDATED, "PATIENT_UPDATED"), (DELETED, "PATIENT_DELETED")];

impl Recorded {
    /// The record after the event.
    fn record(&self, patient: Uuid) -> Option<Record> {
        let mut body = self.details.clone();
        body["id"] = patient.to_string().into();
        body["version"] = self.version.into();
        record(&body, None).map(|(_, record)| record)
    }

    /// The details that the event leaves.
    fn left(&self) -> Option<&Details> {
        (self.kind != DELETED).then_some(&self.details)
    }

    fn text(&self, field: &str) -> &str {
        self.details[field].as_str().unwrap_or_default()
    }
}

/// The versions of a patient, as the search for an order takes them.
pub(crate) fn versions(events: &Events, patient: Uuid) -> Versions {
    let life = events.get(&patient).map_or(&[][..], Vec::as_slice);
    life.iter()
        .map(|event| (event.version, event.record(patient).filter(|_| event.kind != DELETED)))
        .collect()
}

/// Operations that may have had an effect: not those of unknown outcome whose tag no event carries.
pub(crate) fn effective(events: &Events, operations: &[Operation]) -> Vec<Operation> {
    let records = events.iter().flat_map(|(id, life)| life.iter().filter_map(|event| event.record(*id)));
    let tags: BTreeSet<Tag> = records.flat_map(|record| [record.name, record.address]).collect();
    let may_be =
        |o: &&Operation| o.outcome != Outcome::Unknown || o.call.tag().is_none_or(|tag| tags.contains(&tag));
    operations.iter().filter(may_be).copied().collect()
}

/// Versions are 1 to n; the first is the registration, every change changes something, and nothing follows a deletion.
pub(crate) fn numbered(events: &Events) -> Vec<String> {
    let mut wrong = Vec::new();
    for (id, life) in events {
        let follows = life.iter().zip(1..).all(|(event, n)| {
            let last = life.len() as i64 == n;
            event.version == n && (event.kind == CREATED) == (n == 1) && (event.kind != DELETED || last)
        });
        if !follows {
            wrong.push(format!("the events of {id} are not a life"));
        }
        let idle = life.windows(2).find(|pair| pair[1].kind == UPDATED && pair[0].details == pair[1].details);
        if let Some(pair) = idle {
            wrong.push(format!("version {} of {id} changes nothing", pair[1].version));
        }
    }
    wrong
}

/// The rows of patients are what their last events left, and a living patient has its own e-mail address alone.
pub(crate) fn kept(events: &Events, rows: &BTreeMap<Uuid, Kept>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (id, life) in events {
        let Some(last) = life.last() else { continue };
        let right = rows.get(id).is_some_and(|row| {
            let key = last.left().map(|_| last.text("email").to_lowercase());
            row.version == last.version
                && row.details.as_ref() == last.left()
                && row.email_keys == Vec::from_iter(key)
        });
        if !right {
            wrong.push(format!("the row of {id} is not what its event {} left", last.version));
        }
    }
    if let Some(stranger) = rows.keys().find(|id| !events.contains_key(id)) {
        wrong.push(format!("{stranger} has a row and no event"));
    }
    wrong
}

/// Which versions each tagged change made.
fn made_by_tag(events: &Events) -> Result<BTreeMap<Tag, Vec<(Uuid, Record)>>, String> {
    let mut made: BTreeMap<Tag, Vec<(Uuid, Record)>> = BTreeMap::new();
    for (id, life) in events {
        let mut before: Option<Record> = None;
        for event in life.iter().filter(|event| event.kind != DELETED) {
            let after = event.record(*id).ok_or_else(|| format!("an event of {id} is from nobody"))?;
            let name = Some(after.name).filter(|tag| before.is_none_or(|record| record.name != *tag));
            let address =
                Some(after.address).filter(|tag| before.is_none_or(|record| record.address != *tag));
            for tag in BTreeSet::from_iter([name, address].into_iter().flatten()) {
                made.entry(tag).or_default().push((*id, after));
            }
            before = Some(after);
        }
    }
    Ok(made)
}

/// What was acknowledged is there as it was told, what was refused is not, and nothing is there twice.
pub(crate) fn effects(events: &Events, operations: &[Operation]) -> Vec<String> {
    let made = match made_by_tag(events) {
        Ok(made) => made,
        Err(problem) => return vec![problem],
    };
    let mut wrong = Vec::new();
    for operation in operations {
        let life = operation.patient.and_then(|id| events.get(&id));
        if matches!(operation.call, Call::Delete { .. }) && operation.outcome == Outcome::Ended {
            if life.and_then(|life| life.last()).is_none_or(|last| last.kind != DELETED) {
                wrong.push(format!("acknowledged as ended, and lives: {operation:?}"));
            }
            continue;
        }
        let Some(tag) = operation.call.tag() else { continue };
        let made = made.get(&tag).map_or(&[][..], Vec::as_slice);
        let right = match operation.outcome {
            Outcome::Record(told) => made == [(operation.patient.unwrap_or_default(), told)],
            Outcome::Unknown => made.len() <= 1,
            _ => made.is_empty(),
        };
        if !right {
            wrong.push(format!("{operation:?} made {made:?}"));
        }
    }
    wrong
}

/// First appearances in the topic are 1 to n per patient, say what the table says, repeats are exact, and nothing is
/// missing.
pub(crate) fn published(events: &Events, topic: &[PatientEvent]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<Uuid, usize> = BTreeMap::new();
    for event in topic {
        let Ok(patient) = event.patient_id.parse::<Uuid>() else {
            return vec!["the topic holds what is no event".into()];
        };
        let before = seen.entry(patient).or_default();
        let place = usize::try_from(event.version).ok().and_then(|version| version.checked_sub(1));
        let recorded = place.and_then(|place| events.get(&patient)?.get(place));
        match (place, recorded) {
            (Some(place), Some(recorded)) if place <= *before => {
                if *event != message_of(patient, recorded) {
                    wrong.push(format!("the topic tells version {} of {patient} otherwise", event.version));
                }
                *before = (*before).max(place + 1);
            }
            _ => wrong.push(format!(
                "version {} of {patient} is in the topic after {before} others",
                event.version
            )),
        }
    }
    for (id, life) in events {
        let told = seen.get(id).copied().unwrap_or_default();
        if told != life.len() {
            wrong.push(format!("{told} of {} events of {id} are in the topic", life.len()));
        }
    }
    wrong
}

/// What the topic must hold of an event.
fn message_of(patient: Uuid, event: &Recorded) -> PatientEvent {
    let kind = KINDS.iter().find(|(kind, _)| *kind == event.kind).map_or("", |(_, name)| name);
    let day = |field: &str| if event.kind == DELETED { String::new() } else { event.text(field).to_owned() };
    PatientEvent {
        patient_id: patient.to_string(),
        name: event.text("name").to_owned(),
        email: event.text("email").to_owned(),
        event_type: kind.to_owned(),
        event_id: event.event_id.to_string(),
        version: event.version,
        occurred_at_us: event.at_us,
        date_of_birth: day("dateOfBirth"),
        registered_date: day("registeredDate"),
    }
}

/// Each patient has one account, opened with what the patient was registered with, and every answer named that one.
pub(crate) fn billed(
    events: &Events,
    accounts: &BTreeMap<Uuid, Account>,
    operations: &[Operation],
) -> Vec<String> {
    let mut wrong = Vec::new();
    for (id, life) in events {
        let right = accounts.get(id).zip(life.first()).is_some_and(|(account, registered)| {
            account.name == registered.text("name") && account.email == registered.text("email")
        });
        if !right {
            wrong.push(format!("the account of {id} is missing, or another's"));
        }
    }
    if let Some(stranger) = accounts.keys().find(|id| !events.contains_key(id)) {
        wrong.push(format!("{stranger} has an account and no event"));
    }
    for operation in operations {
        if let Outcome::Account(told) = operation.outcome {
            let account = operation.patient.and_then(|id| accounts.get(&id)).map(|account| account.id);
            if account != Some(told) {
                wrong.push(format!("{operation:?}, and the account is {account:?}"));
            }
        }
    }
    wrong
}

/// Analytics says what the table says.
pub(crate) fn counts(events: &Events, summary: &Value) -> Vec<String> {
    let of_kind = |kind| events.values().flatten().filter(|event| event.kind == kind).count() as i64;
    let living = events.len() as i64 - of_kind(DELETED);
    let mut wrong = Vec::new();
    let mut compare = |what: &str, counted: &Value, table: i64| {
        if counted.as_i64() != Some(table) {
            wrong.push(format!("analytics counts {counted} {what}, the table {table}"));
        }
    };
    compare("patients", &summary["totalPatients"], living);
    for (kind, name) in KINDS {
        compare(name, &summary["byEventType"][name], of_kind(kind));
    }
    wrong
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests;
