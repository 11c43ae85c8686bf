//! Rows as both databases return them, and their conversion to domain types.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use time::Date;
use uuid::Uuid;

use super::{Attempts, ChangedBy, Error, Hash, Result, Rotation};
use crate::domain::account::{Account, AccountStatus};
use crate::domain::event::{EventType, OutboxEvent, RecordedEvent};
use crate::domain::ids::{AccountId, CommandId, EventId, Fingerprint, PatientId, SessionId};
use crate::domain::patient::{Patient, PatientDetails};
use crate::domain::time::Timestamp;
use crate::domain::validate::{format_date, parse_date};

/// The record that an event carries, as JSON. Fields are only ever added, with a default.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    created_at: i64,
    #[serde(borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    email: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    address: std::borrow::Cow<'a, str>,
    date_of_birth: String,
    registered_date: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    restricted: bool,
}

/// Encodes the record that an event carries as JSON.
///
/// # Errors
/// `Broken`, if the record cannot be encoded as JSON. This does not happen for any valid record.
pub(super) fn body_of(patient: &Patient) -> Result<String> {
    // No `..` here, nor wherever else a record is encoded: a new field must not compile until its place is
    // decided.
    let Patient { id: _, version: _, created_at, restricted, details } = patient;
    let PatientDetails { name, email, address, date_of_birth, registered_date } = details;
    let body = Body {
        created_at: created_at.0,
        name: (&**name).into(),
        email: (&**email).into(),
        address: (&**address).into(),
        date_of_birth: format_date(*date_of_birth),
        registered_date: format_date(*registered_date),
        restricted: *restricted,
    };
    serde_json::to_string(&body).map_err(|_| Error::Broken("a record cannot be written as JSON".to_owned()))
}

/// An event row.
#[derive(FromRow)]
pub(super) struct EventRow {
    patient_id: Uuid,
    version: i64,
    event_id: Uuid,
    command_id: Uuid,
    kind: i16,
    at: i64,
    subject: String,
    traceparent: String,
    body: String,
    /// Selected only by queries that look a command up.
    #[sqlx(default)]
    fingerprint: Option<Uuid>,
}

impl EventRow {
    /// # Errors
    /// `Broken`: the row cannot be decoded; neither this version of the program nor an older one wrote it.
    pub(super) fn into_event(self) -> Result<RecordedEvent> {
        let (id, version) = (self.patient_id, self.version);
        self.decode().ok_or_else(|| {
            Error::Broken(format!("the event of version {version} of patient {id} cannot be read"))
        })
    }

    fn decode(self) -> Option<RecordedEvent> {
        let body: Body<'_> = serde_json::from_str(&self.body).ok()?;
        let patient = Patient {
            id: PatientId(self.patient_id),
            version: self.version,
            created_at: Timestamp(body.created_at),
            restricted: body.restricted,
            details: PatientDetails {
                name: body.name.into(),
                email: body.email.into(),
                address: body.address.into(),
                date_of_birth: parse_date(&body.date_of_birth).ok()?,
                registered_date: parse_date(&body.registered_date).ok()?,
            },
        };
        Some(RecordedEvent {
            event_id: EventId(self.event_id),
            command_id: CommandId(self.command_id),
            event: EventType::from_code(self.kind)?.event(Arc::new(patient)),
            at: Timestamp(self.at),
            subject: self.subject.into(),
            traceparent: self.traceparent.into(),
            fingerprint: self.fingerprint.map(Fingerprint),
        })
    }
}

/// An event row with its place in the outbox.
#[derive(FromRow)]
pub(super) struct OutboxRow {
    seq: i64,
    shard: i32,
    /// Selected only by the query for unpublished events.
    #[sqlx(default)]
    replay: bool,
    #[sqlx(default)]
    parks: i32,
    #[sqlx(flatten)]
    event: EventRow,
}

impl OutboxRow {
    /// # Errors
    /// As `EventRow::into_event`.
    pub(super) fn into_event(self) -> Result<OutboxEvent> {
        let shard = shard_of_column(self.shard)?;
        let parks = u32::try_from(self.parks).unwrap_or_default();
        let recorded = self.event.into_event()?;
        Ok(OutboxEvent { seq: self.seq, shard, recorded, replay: self.replay, parks })
    }
}

/// The row of a patient that is not deleted.
#[derive(FromRow)]
pub(super) struct PatientRow {
    id: Uuid,
    version: i64,
    created_at: i64,
    name: String,
    email: String,
    address: String,
    date_of_birth: Date,
    registered_date: Date,
    restricted: bool,
}

impl From<PatientRow> for Patient {
    fn from(row: PatientRow) -> Self {
        Patient {
            id: PatientId(row.id),
            version: row.version,
            created_at: Timestamp(row.created_at),
            restricted: row.restricted,
            details: PatientDetails {
                name: row.name.into(),
                email: row.email.into(),
                address: row.address.into(),
                date_of_birth: row.date_of_birth,
                registered_date: row.registered_date,
            },
        }
    }
}

/// An account row.
#[derive(FromRow)]
pub(super) struct AccountRow {
    id: Uuid,
    patient_id: Uuid,
    status: String,
    opened_at: i64,
    name: String,
    email: String,
}

impl AccountRow {
    /// # Errors
    /// `Broken`: the status is unknown to this version of the program.
    pub(super) fn into_account(self) -> Result<Arc<Account>> {
        let status = AccountStatus::parse(&self.status)
            .ok_or_else(|| Error::Broken(format!("account {} has an unknown status", self.id)))?;
        Ok(Arc::new(Account {
            id: AccountId(self.id),
            patient_id: PatientId(self.patient_id),
            name: self.name.into(),
            email: self.email.into(),
            status,
            opened_at: Timestamp(self.opened_at),
        }))
    }
}

/// A user row.
#[derive(FromRow)]
pub(super) struct UserColumns {
    email: String,
    password_hash: String,
    role: String,
    disabled: bool,
    created_at: i64,
    sessions_not_before: i64,
}

impl From<UserColumns> for super::UserRow {
    fn from(row: UserColumns) -> Self {
        super::UserRow {
            email: row.email,
            password_hash: row.password_hash,
            role: row.role,
            disabled: row.disabled,
            created_at: Timestamp(row.created_at),
            sessions_not_before: Timestamp(row.sessions_not_before),
        }
    }
}

/// Returns the e-mail address and the checked role of a `ChangedBy::User`; `None` for other originators.
pub(super) fn changer(by: &ChangedBy) -> (Option<&str>, Option<&str>) {
    match by {
        ChangedBy::User { email, role } => (Some(email), Some(role)),
        ChangedBy::Operator | ChangedBy::SetUp => (None, None),
    }
}

/// The row of a key that signs tokens.
#[derive(FromRow)]
pub(super) struct SigningKeyColumns {
    generation: i64,
    created_at: i64,
    signs_from: i64,
    verifies_until: Option<i64>,
    sealed: bool,
    kid: String,
    public_key: Vec<u8>,
    private_key: Vec<u8>,
}

impl From<SigningKeyColumns> for super::SigningKeyRow {
    fn from(row: SigningKeyColumns) -> Self {
        super::SigningKeyRow {
            generation: row.generation,
            created_at: Timestamp(row.created_at),
            signs_from: Timestamp(row.signs_from),
            verifies_until: row.verifies_until.map(Timestamp),
            kid: row.kid,
            public_key: row.public_key,
            private_key: row.private_key,
            sealed: row.sealed,
        }
    }
}

/// The row of a shared secret.
#[derive(FromRow)]
pub(super) struct SecretColumns {
    sealed: bool,
    value: Vec<u8>,
}

impl From<SecretColumns> for super::SharedSecret {
    fn from(SecretColumns { sealed, value }: SecretColumns) -> Self {
        super::SharedSecret { value, sealed }
    }
}

/// A refresh token that a client presented, with its session.
#[derive(FromRow)]
pub(super) struct ShownToken {
    pub(super) session_id: Uuid,
    subject: String,
    role: String,
    /// The user's present generation.
    user_generation: i64,
    ends_at: i64,
    /// Whether the session still holds and its user is enabled.
    live: bool,
    /// Whether the token was used before.
    used: bool,
    /// Whether the token was issued too long ago.
    stale: bool,
}

impl ShownToken {
    /// Converts the row to the result of the rotation.
    pub(super) fn into_rotation(self) -> Rotation {
        let session = SessionId(self.session_id);
        match (self.live, self.used, self.stale) {
            (false, _, _) | (true, false, true) => Rotation::Refused,
            (true, true, _) => Rotation::Reused { session },
            (true, false, false) => {
                let (generation, ends_at) = (Timestamp(self.user_generation), Timestamp(self.ends_at));
                let ShownToken { subject, role, .. } = self;
                Rotation::Done { session, subject, role, generation, ends_at }
            }
        }
    }
}

/// The row of a revoked session.
#[derive(FromRow)]
pub(super) struct RevokedColumns {
    id: Uuid,
    revoked_at: i64,
    keep_until: i64,
}

impl From<RevokedColumns> for super::RevokedSession {
    fn from(row: RevokedColumns) -> Self {
        super::RevokedSession {
            id: SessionId(row.id),
            revoked_at: Timestamp(row.revoked_at),
            keep_until: Timestamp(row.keep_until),
        }
    }
}

/// Returns the counts of `keys`, in their order, from rows of key, count and window end.
///
/// # Errors
/// `Broken`: a key has no row.
pub(super) fn attempts_of(keys: [&Hash; 2], rows: &[(Vec<u8>, i64, i64)]) -> Result<[Attempts; 2]> {
    let of = |key: &Hash| {
        let row = rows.iter().find(|row| row.0 == key);
        let (_, count, ends) = row.ok_or_else(|| Error::Broken("an attempt was not counted".to_owned()))?;
        let count = u32::try_from(*count).unwrap_or(u32::MAX);
        Ok(Attempts { count, window_ends: Timestamp(*ends) })
    };
    Ok([of(keys[0])?, of(keys[1])?])
}

/// Converts a column to a shard number.
///
/// # Errors
/// `Broken`: the value is out of range.
pub(super) fn shard_of_column(value: i32) -> Result<u16> {
    u16::try_from(value).map_err(|_| Error::Broken(format!("{value} is not the number of a shard")))
}

/// Converts a column to a number of shards.
///
/// # Errors
/// `Broken`: the value is zero or out of range.
pub(super) fn shard_count_of_column(value: i64) -> Result<u16> {
    let count = u16::try_from(value).ok().filter(|count| *count > 0);
    count.ok_or_else(|| Error::Broken(format!("{value} is not a number of shards")))
}

/// Returns the e-mail key that an event claims, and the key that it frees; both are `None` if the address
/// stays the same.
pub(super) fn email_moves(append: &super::PatientAppend) -> (Option<String>, Option<String>) {
    let recorded = &append.recorded;
    let key = recorded.event.patient().details.email_key();
    match recorded.event_type() {
        EventType::Created => (Some(key), None),
        // A deletion frees the address of the record even if the caller named none.
        EventType::Deleted => (None, Some(append.released_email_key.clone().unwrap_or(key))),
        EventType::Updated => match &append.released_email_key {
            Some(released) if *released != key => (Some(key), Some(released.clone())),
            _ => (None, None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_with_escapes_reads_back() {
        let patient = Patient {
            id: PatientId(Uuid::nil()),
            version: 3,
            created_at: Timestamp(-5),
            restricted: true,
            details: PatientDetails {
                name: "Ada \"the\" \\ L\u{f6}velace".into(),
                email: "ada@example.com".into(),
                address: "1 Way\nTown".into(),
                date_of_birth: time::macros::date!(1915 - 12 - 10),
                registered_date: time::macros::date!(2026 - 01 - 02),
            },
        };
        let row = EventRow {
            patient_id: patient.id.0,
            version: 3,
            event_id: Uuid::max(),
            command_id: Uuid::nil(),
            kind: 2,
            at: 7,
            subject: "s".to_owned(),
            traceparent: String::new(),
            body: body_of(&patient).expect("JSON"),
            fingerprint: Some(Uuid::max()),
        };
        let event = row.into_event().expect("an event");
        assert!(**event.event.patient() == patient && event.event_type() == EventType::Updated);
        assert_eq!(event.fingerprint, Some(Fingerprint(Uuid::max())));
    }

    #[test]
    fn debug_of_a_change_does_not_tell_the_address_it_frees() {
        let patient = crate::store::contract::world::patient(1, "canary@example.com");
        let append = crate::store::PatientAppend {
            shard: 7,
            epoch: crate::domain::ids::Epoch(1),
            caller: crate::domain::access::Caller::system("canary"),
            action: crate::domain::access::Action::PatientUpdate,
            recorded: RecordedEvent {
                event_id: EventId(Uuid::nil()),
                command_id: CommandId(Uuid::nil()),
                event: EventType::Deleted.event(Arc::new(patient)),
                at: Timestamp(0),
                subject: "canary@example.com".into(),
                traceparent: String::new().into(),
                fingerprint: None,
            },
            released_email_key: Some("canary@example.com".to_owned()),
        };
        let shown = format!("{append:?}");
        assert!(shown.contains("shard: 7") && !shown.contains("canary"), "{shown}");
    }

    #[test]
    fn an_unreadable_row_is_named_without_its_content() {
        let row = EventRow {
            patient_id: Uuid::nil(),
            version: 3,
            event_id: Uuid::nil(),
            command_id: Uuid::nil(),
            kind: 2,
            at: 7,
            subject: String::new(),
            traceparent: String::new(),
            body: "{\"name\": \"Ada\"".to_owned(),
            fingerprint: None,
        };
        let Err(Error::Broken(said)) = row.into_event() else { panic!("must not be read") };
        assert!(said.contains("version 3") && !said.contains("Ada"), "{said}");
    }
}
