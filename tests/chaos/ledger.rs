//! What the event table, the topic and the counts must say once everything has come to rest. Each function
//! tells in words what is wrong.

use std::collections::BTreeMap;

use hygeia::proto::patient::events::PatientEvent;
use serde_json::Value;
use uuid::Uuid;

use super::history::{Call, Operation, Outcome, Tag};

/// An event as the table has it.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) version: i64,
    /// As the table numbers kinds.
    pub(crate) kind: i16,
    pub(crate) event_id: Uuid,
    /// Of the details it carries.
    pub(crate) tag: Option<Tag>,
}

/// The events of each patient, by version.
pub(crate) type Events = BTreeMap<Uuid, Vec<Recorded>>;

const CREATED: i16 = 1;
const DELETED: i16 = 3;

/// Versions are 1 to n; the first is the registration, and nothing follows a deletion.
pub(crate) fn numbered(events: &Events) -> Vec<String> {
    let right = |life: &Vec<Recorded>| {
        life.iter().zip(1..).all(|(event, n)| {
            let last = life.len() as i64 == n;
            event.version == n && (event.kind == CREATED) == (n == 1) && (event.kind != DELETED || last)
        })
    };
    let wrong = events.iter().filter(|(_, life)| !right(life));
    wrong.map(|(id, _)| format!("the events of {id} are not a life")).collect()
}

/// What was acknowledged is there as it was told, what was refused is not, and nothing is there twice.
pub(crate) fn effects(events: &Events, operations: &[Operation]) -> Vec<String> {
    let mut made: BTreeMap<Tag, Vec<(Uuid, i64)>> = BTreeMap::new();
    for (id, life) in events {
        for event in life.iter().filter(|event| event.kind != DELETED) {
            match event.tag {
                Some(tag) => made.entry(tag).or_default().push((*id, event.version)),
                None => return vec![format!("an event of {id} is from nobody")],
            }
        }
    }
    let mut wrong = Vec::new();
    for operation in operations {
        let ended =
            operation.patient.and_then(|id| events.get(&id)?.last()).is_some_and(|e| e.kind == DELETED);
        let (Call::Register(tag) | Call::Update(tag) | Call::UpdateIf(tag, _)) = operation.call else {
            if operation.call == Call::Delete && operation.outcome == Outcome::Ended && !ended {
                wrong.push(format!("acknowledged as ended, and lives: {operation:?}"));
            }
            continue;
        };
        let made = made.get(&tag).map_or(&[][..], Vec::as_slice);
        let right = match operation.outcome {
            Outcome::Record { version, .. } => made == [(operation.patient.unwrap_or_default(), version)],
            Outcome::Unknown => made.len() <= 1,
            _ => made.is_empty(),
        };
        if !right {
            wrong.push(format!("{operation:?} made {made:?}"));
        }
    }
    wrong
}

/// First appearances in the topic are 1 to n per patient, repeats are exact, and nothing is missing.
pub(crate) fn published(events: &Events, topic: &[PatientEvent]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    for event in topic {
        let (Ok(patient), Ok(event_id)) = (event.patient_id.parse(), event.event_id.parse()) else {
            return vec!["the topic holds what is no event".into()];
        };
        let of_patient = seen.entry(patient).or_default();
        match usize::try_from(event.version).ok().and_then(|version| version.checked_sub(1)) {
            Some(place) if place == of_patient.len() => of_patient.push(event_id),
            Some(place) if of_patient.get(place) == Some(&event_id) => {}
            _ => wrong.push(format!(
                "version {} of {patient} is in the topic after {} others",
                event.version,
                of_patient.len()
            )),
        }
    }
    for (id, life) in events {
        let told: Vec<_> = life.iter().map(|event| event.event_id).collect();
        if seen.get(id) != Some(&told) {
            let published = seen.get(id).map_or(0, Vec::len);
            wrong.push(format!("{published} of {} events of {id} are in the topic, or others", told.len()));
        }
    }
    if let Some(stranger) = seen.keys().find(|id| !events.contains_key(id)) {
        wrong.push(format!("the topic tells of {stranger}, whom the table does not know"));
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
    for (name, kind) in [("PATIENT_CREATED", 1), ("PATIENT_UPDATED", 2), ("PATIENT_DELETED", 3)] {
        compare(name, &summary["byEventType"][name], of_kind(kind));
    }
    wrong
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests;
