//! An event with all its recorded data, as in the journal, the outbox and the history.

use std::fmt;
use std::sync::Arc;

use super::ids::{CommandId, EventId, Fingerprint, PatientId, ShardNo, Version};
use super::patient::{Patient, PatientEvent};
use super::time::Timestamp;

/// An event of a patient, as it is committed and as it is read back.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordedEvent {
    /// Unique over all events; generated when the event was decided.
    pub event_id: EventId,
    /// The command that caused the event.
    pub command_id: CommandId,
    /// The event, with the record after it.
    pub event: PatientEvent,
    /// When the event was decided.
    pub at: Timestamp,
    /// The caller that caused the event: a user's e-mail address, or a part of the system.
    pub subject: Arc<str>,
    /// The W3C `traceparent` of the request that caused it.
    pub traceparent: Box<str>,
    /// The fingerprint of the request, if it had an idempotency key.
    pub fingerprint: Option<Fingerprint>,
}

/// Never prints the subject.
impl fmt::Debug for RecordedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedEvent")
            .field("event_id", &self.event_id)
            .field("command_id", &self.command_id)
            .field("event", &self.event)
            .field("at", &self.at)
            .field("traceparent", &self.traceparent)
            .finish_non_exhaustive()
    }
}

impl RecordedEvent {
    /// Returns the patient.
    pub fn patient_id(&self) -> PatientId {
        self.event.patient().id
    }

    /// Returns the version of the patient after the event.
    pub fn version(&self) -> Version {
        self.event.version()
    }

    /// Returns the published type.
    pub fn event_type(&self) -> EventType {
        EventType::of(&self.event)
    }
}

/// An event in the outbox, with its position in the order of commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxEvent {
    /// Increases with the versions of one patient. Use it as an order and never as a cursor: a smaller number
    /// may be committed later than a larger number of another patient.
    pub seq: i64,
    /// The patient's shard.
    pub shard: ShardNo,
    /// The event.
    pub recorded: RecordedEvent,
    /// Whether an earlier log had the event already, so that it is published again.
    pub replay: bool,
    /// How often the event was parked after failures.
    pub parks: u32,
}

/// The published type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventType {
    /// `PATIENT_CREATED`
    Created,
    /// `PATIENT_UPDATED`
    Updated,
    /// `PATIENT_DELETED`
    Deleted,
}

impl EventType {
    /// All types, in the order of a record's life.
    pub const ALL: [EventType; 3] = [EventType::Created, EventType::Updated, EventType::Deleted];

    /// Returns the type of `event`.
    pub fn of(event: &PatientEvent) -> Self {
        match event {
            PatientEvent::Registered(_) => EventType::Created,
            PatientEvent::Updated(_) => EventType::Updated,
            PatientEvent::Deleted(_) => EventType::Deleted,
        }
    }

    /// Returns the event of this type that carries `patient`.
    pub fn event(self, patient: Arc<Patient>) -> PatientEvent {
        match self {
            EventType::Created => PatientEvent::Registered(patient),
            EventType::Updated => PatientEvent::Updated(patient),
            EventType::Deleted => PatientEvent::Deleted(patient),
        }
    }

    /// Returns the published name.
    pub const fn as_str(self) -> &'static str {
        match self {
            EventType::Created => "PATIENT_CREATED",
            EventType::Updated => "PATIENT_UPDATED",
            EventType::Deleted => "PATIENT_DELETED",
        }
    }

    /// Returns the type with that published name, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.as_str() == name)
    }

    /// Returns the number in the database. It never changes.
    pub const fn code(self) -> i16 {
        match self {
            EventType::Created => 1,
            EventType::Updated => 2,
            EventType::Deleted => 3,
        }
    }

    /// Returns the type of that number, if there is one.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.code() == code)
    }
}

#[cfg(test)]
mod tests {
    use ::time::macros::date;
    use uuid::Uuid;

    use super::*;
    use crate::domain::patient::PatientDetails;

    #[test]
    fn debug_tells_neither_who_caused_it_nor_what_the_record_holds() {
        let patient = Patient {
            restricted: false,
            id: PatientId(Uuid::nil()),
            version: 7,
            created_at: Timestamp(0),
            details: PatientDetails {
                name: "canary name".into(),
                email: "canary@example.com".into(),
                address: "canary way".into(),
                date_of_birth: date!(1985 - 06 - 15),
                registered_date: date!(2024 - 01 - 10),
            },
        };
        let recorded = RecordedEvent {
            event_id: EventId(Uuid::nil()),
            command_id: CommandId(Uuid::nil()),
            event: EventType::Updated.event(Arc::new(patient)),
            at: Timestamp(0),
            subject: "canary@example.com".into(),
            traceparent: "00-trace".into(),
            fingerprint: None,
        };
        let shown = format!("{:?}", OutboxEvent { seq: 42, shard: 0, recorded, replay: false, parks: 0 });
        assert!(shown.contains("42") && shown.contains("00-trace"), "{shown}");
        assert!(!shown.contains("canary") && !shown.contains("1985"), "{shown}");
    }
}
