//! The wire format of events: encoding and decoding. No other module knows both forms.
//!
//! A message has the patient id as its key, a `patient.events.PatientEvent` as its value, and the event's
//! context as headers: CloudEvents 1.0 in binary content mode (CloudEvents Kafka Protocol Binding, 3.2) and
//! `traceparent` (W3C Trace Context). Published messages must stay readable: `tests/fixtures/wire` contains
//! messages of every version of the format.
//!
//! Invariant: neither a header nor `Unreadable` contains patient data beyond the id.

use std::sync::Arc;

use prost::Message;
use time::Date;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{Incoming, Outgoing};
use crate::context::TraceContext;
use crate::domain::analytics::Observation;
use crate::domain::event::{EventType, RecordedEvent};
use crate::domain::ids::PatientId;
use crate::domain::patient::{Patient, PatientDetails};
use crate::domain::time::Timestamp;
use crate::domain::validate::{format_date, parse_date};
use crate::proto::patient::events::PatientEvent;

/// The header that carries the trace.
pub const TRACEPARENT: &str = "traceparent";
/// CloudEvents `source` of all events of this system.
pub const SOURCE: &str = "/hygeia/patients";
/// CloudEvents `datacontenttype`.
pub const CONTENT_TYPE: &str = "application/protobuf";
/// The header of a dead letter with the reason.
pub const DEAD_LETTER_REASON: &str = "hygeia_dlq_reason";
/// The header of a dead letter with its origin: `topic/partition/offset`.
pub const DEAD_LETTER_SOURCE: &str = "hygeia_dlq_source";

/// The header of an event that is published again after the topic got a new log: the number of the new log.
pub const REPLAY: &str = "hygeia_replay";
/// CloudEvents `id`: the event id.
pub(super) const EVENT_ID: &str = "ce_id";

/// Encodes like `encode`, for an event that is published again to the log `log_no`.
pub fn encode_replay(topic: &Arc<str>, event: &RecordedEvent, hop: &TraceContext, log_no: i64) -> Outgoing {
    let mut message = encode(topic, event, hop);
    message.headers.push((REPLAY, log_no.to_string()));
    message
}

/// Returns the message that publishes `event` to `topic`. `hop` is the trace hop of the publisher.
pub fn encode(topic: &Arc<str>, event: &RecordedEvent, hop: &TraceContext) -> Outgoing {
    let patient_id = event.patient_id().to_string();
    let event_id = event.event_id.to_string();
    let event_type = event.event_type();
    let headers = vec![
        ("ce_specversion", "1.0".to_owned()),
        (EVENT_ID, event_id.clone()),
        ("ce_source", SOURCE.to_owned()),
        ("ce_type", event_type.as_str().to_owned()),
        ("ce_subject", patient_id.clone()),
        ("ce_time", event.at.to_offset().format(&Rfc3339).unwrap_or_default()),
        ("content-type", CONTENT_TYPE.to_owned()),
        (TRACEPARENT, hop.to_string()),
    ];
    let key = patient_id.clone().into_bytes();
    let value = value(event, event_type, patient_id, event_id).encode_to_vec();
    Outgoing { topic: Arc::clone(topic), key: Some(key), value: Some(value), headers }
}

fn value(event: &RecordedEvent, event_type: EventType, patient_id: String, event_id: String) -> PatientEvent {
    // Destructured without `..`, so that a new field does not compile until somebody decides whether it is
    // published.
    let Patient { id: _, version: _, created_at: _, restricted: _, details } = &**event.event.patient();
    let PatientDetails { name, email, address: _, date_of_birth, registered_date } = details;
    let (date_of_birth, registered_date) = match event_type {
        EventType::Created | EventType::Updated => {
            (format_date(*date_of_birth), format_date(*registered_date))
        }
        EventType::Deleted => (String::new(), String::new()),
    };
    PatientEvent {
        patient_id,
        name: name.to_string(),
        email: email.to_string(),
        event_type: event_type.as_str().to_owned(),
        event_id,
        version: event.version(),
        occurred_at_us: event.at.0,
        date_of_birth,
        registered_date,
    }
}

/// Why a message cannot be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The message has no value.
    #[error("the message has no value")]
    NoValue,
    /// The value is not a `PatientEvent`.
    #[error("the value is no patient.events.PatientEvent")]
    NotProtobuf,
    /// Field 1 is not a UUID.
    #[error("patientId is no UUID")]
    PatientId,
    /// The key is missing or is not the patient id. Messages of one patient could then be in several
    /// partitions, in any order.
    #[error("the key is not patientId")]
    Key,
    /// Field 5 is not a UUID.
    #[error("event_id is no UUID")]
    EventId,
    /// Field 4 names an unknown type.
    #[error("event_type is not known")]
    EventType,
    /// Field 6 is missing, not positive or too large. A duplicate could then not be told from a new event.
    #[error("version is missing, or no version")]
    Version,
    /// Field 7 is missing or outside the possible time range of an event.
    #[error("occurred_at_us is missing, or not between the years 2000 and 2200")]
    Time,
    /// Field 8 is not a date, or not a possible date of birth at the time of the event.
    #[error("date_of_birth is no date of a birth before the event")]
    DateOfBirth,
    /// Field 9 is not a date.
    #[error("registered_date is no date")]
    RegisteredDate,
}

/// The largest plausible version.
const VERSION_MAX: i64 = 1_000_000_000_000;
/// 2000-01-01 to 2200-01-01. No event happened before the range; a time after it comes from a broken clock.
const TIMES_US: std::ops::Range<i64> = 946_684_800_000_000..7_258_118_400_000_000;
/// The earliest plausible year of birth.
const BIRTH_YEAR_MIN: i32 = 1800;

/// Returns the data of `message` that analytics needs.
///
/// # Errors
/// Why the message cannot be counted, without patient data.
pub fn decode(message: &Incoming) -> Result<Observation, Unreadable> {
    let value = message.value.as_deref().ok_or(Unreadable::NoValue)?;
    let event = PatientEvent::decode(value).map_err(|_| Unreadable::NotProtobuf)?;
    let patient_id = PatientId(Uuid::try_parse(&event.patient_id).map_err(|_| Unreadable::PatientId)?);
    if message.key.as_deref() != Some(patient_id.to_string().as_bytes()) {
        return Err(Unreadable::Key);
    }
    let event_type = EventType::parse(&event.event_type).ok_or(Unreadable::EventType)?;
    Uuid::try_parse(&event.event_id).map_err(|_| Unreadable::EventId)?;
    if !(1..=VERSION_MAX).contains(&event.version) {
        return Err(Unreadable::Version);
    }
    if !TIMES_US.contains(&event.occurred_at_us) {
        return Err(Unreadable::Time);
    }
    let at = Timestamp(event.occurred_at_us);
    let date_of_birth = match event_type {
        EventType::Deleted => None,
        EventType::Created | EventType::Updated => {
            parse_date(&event.registered_date).map_err(|_| Unreadable::RegisteredDate)?;
            Some(birth(&event.date_of_birth, at).ok_or(Unreadable::DateOfBirth)?)
        }
    };
    Ok(Observation { patient_id, version: event.version, event_type, at, date_of_birth })
}

/// Parses a date of birth, which must not be later than the event. One day of tolerance is allowed for time
/// zones.
fn birth(text: &str, at: Timestamp) -> Option<Date> {
    let date = parse_date(text).ok()?;
    (date.year() >= BIRTH_YEAR_MIN && date <= at.date().next_day()?).then_some(date)
}

/// Returns `message`, read from `topic`, as a dead letter: key and value unchanged, with the reason.
pub fn dead_letter(
    dead_letter_topic: &Arc<str>,
    topic: &str,
    message: &Incoming,
    reason: Unreadable,
) -> Outgoing {
    let mut headers = vec![
        (DEAD_LETTER_REASON, reason.to_string()),
        (DEAD_LETTER_SOURCE, format!("{topic}/{}/{}", message.partition, message.offset)),
    ];
    // Headers of unknown origin may contain anything, so only a well-formed trace is forwarded.
    if let Some(trace) = message.traceparent.as_deref().and_then(TraceContext::parse) {
        headers.push((TRACEPARENT, trace.to_string()));
    }
    Outgoing {
        topic: Arc::clone(dead_letter_topic),
        key: message.key.clone(),
        value: message.value.clone(),
        headers,
    }
}

#[cfg(test)]
mod tests;
