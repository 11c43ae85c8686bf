//! The form in which each role is shown a record. The handles of the actors return what their caller may see
//! (`Seen`). `Call::open` unwraps it and notes for the audit whether a reason was required.

use std::borrow::Cow;

use serde::Serialize;
use time::Date;
use utoipa::openapi::schema::{AnyOfBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::actors::patients::Changed;
use crate::domain::access::View;
use crate::domain::patient::{Patient, PatientDetails};
use crate::domain::sight::{Glass, Seen};

use super::pipeline::Call;
use super::reply;

impl Call {
    /// Returns what the caller is shown. If that required a reason, the audit records it.
    pub(super) fn open<T>(&self, seen: Seen<T>) -> T {
        let (what, glass) = seen.open();
        if glass == Glass::Broken {
            self.accessed.breaks_glass();
        }
        what
    }

    /// Returns the result of a change. If no transaction has recorded the access, the edge does.
    pub(super) fn done<T>(&self, changed: Changed<T>) -> T {
        if changed.recorded {
            self.accessed.is_recorded();
        }
        changed.what
    }
}

/// A patient's record.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Patient, example = json!({
    "id": "123e4567-e89b-12d3-a456-426614174000", "name": "John Doe", "email": "john.doe@example.com",
    "address": "123 Main St, Springfield", "dateOfBirth": "1985-06-15", "registeredDate": "2024-01-10",
    "version": 1
}))]
pub(super) struct PatientBody<'a> {
    /// Assigned by the server.
    #[schema(value_type = String, format = Uuid)]
    id: Uuid,
    name: &'a str,
    /// Unique among living patients, case-insensitive.
    #[schema(format = "email")]
    email: &'a str,
    address: &'a str,
    #[serde(serialize_with = "reply::day")]
    #[schema(value_type = String, format = Date)]
    date_of_birth: Date,
    #[serde(serialize_with = "reply::day")]
    #[schema(value_type = String, format = Date)]
    registered_date: Date,
    /// 1 after registration, then incremented by each change.
    version: i64,
    /// Present, and true, if the record is restricted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    restricted: bool,
}

impl<'a> From<&'a Patient> for PatientBody<'a> {
    fn from(patient: &'a Patient) -> Self {
        // The pattern has no `..`, so that a new field does not compile until it is decided whether it is
        // shown.
        let Patient { id, version, created_at: _, restricted, details } = patient;
        let PatientDetails { name, email, address, date_of_birth, registered_date } = details;
        PatientBody {
            id: id.0,
            name,
            email,
            address,
            date_of_birth: *date_of_birth,
            registered_date: *registered_date,
            version: *version,
            restricted: *restricted,
        }
    }
}

/// A record as shown to a role that sees only names.
#[derive(Serialize, ToSchema)]
// The schema allows no other fields. Otherwise a whole record would match this schema too.
#[serde(deny_unknown_fields)]
#[schema(as = PatientName, example = json!({
    "id": "123e4567-e89b-12d3-a456-426614174000", "name": "John Doe"
}))]
pub(super) struct NameBody<'a> {
    #[schema(value_type = String, format = Uuid)]
    id: Uuid,
    name: &'a str,
}

/// A record as shown to the role of the caller.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Shown<'a> {
    /// For all roles except BILLING.
    Whole(PatientBody<'a>),
    /// For BILLING.
    Name(NameBody<'a>),
}

/// The schema is `anyOf` rather than `oneOf`: some generated clients accept a whole record as a name with
/// additional fields, and fail if more than one alternative matches. The first match is the right one.
impl PartialSchema for Shown<'_> {
    fn schema() -> RefOr<Schema> {
        let of = |name: Cow<'static, str>| Ref::from_schema_name(name);
        let shown = AnyOfBuilder::new().item(of(PatientBody::name())).item(of(NameBody::name()));
        let says =
            "A record as far as a role is shown it: the name alone to BILLING, all of it to the others.";
        RefOr::T(Schema::AnyOf(shown.description(Some(says)).build()))
    }
}

impl ToSchema for Shown<'_> {
    fn name() -> Cow<'static, str> {
        "PatientShown".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((PatientBody::name().into(), PatientBody::schema()));
        schemas.push((NameBody::name().into(), NameBody::schema()));
    }
}

impl<'a> Shown<'a> {
    /// Returns `patient` in the form for the caller of `call`.
    pub(super) fn to(call: &Call, patient: &'a Patient) -> Self {
        match call.ctx.caller.role.sees() {
            View::Whole => Shown::Whole(PatientBody::from(patient)),
            View::NameOnly => Shown::Name(NameBody { id: patient.id.0, name: &patient.details.name }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::date;

    use super::*;
    use crate::domain::ids::PatientId;
    use crate::domain::time::Timestamp;

    #[test]
    fn a_record_reads_as_documented() {
        let patient = Patient {
            restricted: false,
            id: PatientId(Uuid::from_u128(0x123e4567_e89b_12d3_a456_426614174000)),
            version: 3,
            created_at: Timestamp(0),
            details: PatientDetails {
                name: "Ada \"Countess\" Lovelace".into(),
                email: "Ada@Example.com".into(),
                address: "12 St James's Square\nLondon".into(),
                date_of_birth: date!(1915 - 12 - 01),
                registered_date: date!(2026 - 01 - 02),
            },
        };
        assert_eq!(
            serde_json::to_value(PatientBody::from(&patient)).expect("JSON"),
            json!({
                "id": "123e4567-e89b-12d3-a456-426614174000",
                "name": "Ada \"Countess\" Lovelace",
                "email": "Ada@Example.com",
                "address": "12 St James's Square\nLondon",
                "dateOfBirth": "1915-12-01",
                "registeredDate": "2026-01-02",
                "version": 3
            })
        );
    }
}
