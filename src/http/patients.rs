//! `/api/patients`: what a caller may do with records.

use std::sync::Arc;

use axum::extract::Query;
use axum::response::Response;
use http::header::{LINK, LOCATION};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use time::Date;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::access::View;
use crate::domain::ids::PatientId;
use crate::domain::patient::Patient;
use crate::domain::validate::{FieldErrors, PatientInput, change, registration};
use crate::error::{Error, ErrorCode};
use crate::store::ListPosition;

use super::fields::Fields;
use super::pipeline::{Call, tail};
use super::problem::Failure;
use super::{AppState, cursor, reply};

/// Records on one page if the caller does not say how many.
const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1000;

/// A patient's record.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Patient, example = json!({
    "id": "123e4567-e89b-12d3-a456-426614174000", "name": "John Doe", "email": "john.doe@example.com",
    "address": "123 Main St, Springfield", "dateOfBirth": "1985-06-15", "registeredDate": "2024-01-10",
    "version": 1
}))]
pub(super) struct PatientBody<'a> {
    /// Given by the server.
    #[schema(value_type = String, format = Uuid)]
    id: Uuid,
    name: &'a str,
    /// Unique over living patients, without regard to case.
    #[schema(format = "email")]
    email: &'a str,
    address: &'a str,
    #[serde(serialize_with = "reply::day")]
    #[schema(value_type = String, format = Date)]
    date_of_birth: Date,
    #[serde(serialize_with = "reply::day")]
    #[schema(value_type = String, format = Date)]
    registered_date: Date,
    /// 1 after registration, one more after each change.
    version: i64,
    /// There, and true, if the record is restricted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    restricted: bool,
}

impl<'a> From<&'a Patient> for PatientBody<'a> {
    fn from(patient: &'a Patient) -> Self {
        let details = &patient.details;
        PatientBody {
            id: patient.id.0,
            name: &details.name,
            email: &details.email,
            address: &details.address,
            date_of_birth: details.date_of_birth,
            registered_date: details.registered_date,
            version: patient.version,
            restricted: patient.restricted,
        }
    }
}

/// What a role that is shown names alone gets of a record.
#[derive(Serialize, ToSchema)]
#[schema(as = PatientName, example = json!({
    "id": "123e4567-e89b-12d3-a456-426614174000", "name": "John Doe"
}))]
pub(super) struct NameBody<'a> {
    #[schema(value_type = String, format = Uuid)]
    id: Uuid,
    name: &'a str,
}

/// A record as far as a role is shown it.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = PatientShown, example = json!({
    "id": "123e4567-e89b-12d3-a456-426614174000", "name": "John Doe"
}))]
pub(super) enum Shown<'a> {
    /// To all roles but BILLING.
    Whole(PatientBody<'a>),
    /// To BILLING.
    Name(NameBody<'a>),
}

impl<'a> Shown<'a> {
    /// What `call`'s caller is shown of `patient`.
    pub(super) fn to(call: &Call, patient: &'a Patient) -> Self {
        match call.ctx.caller.role.sees() {
            View::Whole => Shown::Whole(PatientBody::from(patient)),
            View::NameOnly => Shown::Name(NameBody { id: patient.id.0, name: &patient.details.name }),
        }
    }
}

/// What a caller sends to register or change a patient. No other fields may be there.
#[derive(ToSchema)]
#[schema(as = PatientForm, rename_all = "camelCase", example = json!({
    "name": "John Doe", "email": "john.doe@example.com", "address": "123 Main St, Springfield",
    "dateOfBirth": "1985-06-15", "registeredDate": "2024-01-10"
}))]
#[allow(dead_code, reason = "describes the body; `Fields` reads it, so that all mistakes are told at once")]
pub(super) struct PatientForm {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    #[schema(format = "email", max_length = 254)]
    email: String,
    #[schema(min_length = 1, max_length = 500)]
    address: String,
    /// Not in the future, not before 1850.
    #[schema(format = Date)]
    date_of_birth: String,
    /// May be left out of a change: it then stays as it is.
    #[schema(format = Date)]
    registered_date: Option<String>,
}

const FIELDS: [&str; 5] = ["name", "email", "address", "dateOfBirth", "registeredDate"];

/// Reads a form and lets `rules` make something of it.
pub(super) fn ruled<T>(
    body: &[u8],
    rules: impl FnOnce(&PatientInput<'_>) -> Result<T, FieldErrors>,
) -> Result<T, Failure> {
    let fields = Fields::read(body, FIELDS)?;
    let [name, email, address, date_of_birth, registered_date] = &fields.values;
    let input = PatientInput {
        name: name.as_deref(),
        email: email.as_deref(),
        address: address.as_deref(),
        date_of_birth: date_of_birth.as_deref(),
        registered_date: registered_date.as_deref(),
    };
    let made = rules(&input);
    fields.checked(made)
}

/// The id that the end of the path names: in the usual form of 36 characters (RFC 9562, section 4).
pub(super) fn id_of(call: &Call, field: &'static str) -> Result<PatientId, Failure> {
    patient_id(tail(&call.parts, call.path)).ok_or_else(|| Failure::field(field, "Should be a UUID"))
}

fn patient_id(text: &str) -> Option<PatientId> {
    let id = if text.len() == 36 { Uuid::try_parse(text).ok() } else { None };
    id.map(PatientId)
}

/// What a caller says who needs to see a restricted record: why.
const BREAK_GLASS: &str = "x-break-glass";
const REASON_MAX_CHARS: usize = 500;

/// Lets `call` see `patient`, unless the record is restricted and its caller does not break the glass.
pub(super) fn may_see(call: &Call, patient: &Patient) -> Result<(), Failure> {
    if !patient.restricted {
        return Ok(());
    }
    let refused = |said| Err(Failure::new(ErrorCode::Forbidden, said));
    if !call.ctx.caller.role.breaks_glass() {
        return refused("The record is restricted");
    }
    let given = call.parts.headers.get(BREAK_GLASS).map(HeaderValue::as_bytes).map(std::str::from_utf8);
    match given.and_then(Result::ok).map(str::trim) {
        Some(reason) if (1..=REASON_MAX_CHARS).contains(&reason.chars().count()) => {
            call.accessed.because(reason);
            Ok(())
        }
        _ => refused(
            "The record is restricted: the header X-Break-Glass has to say why it is needed, in 1 to 500 characters",
        ),
    }
}

/// Registers a patient.
///
/// The e-mail address must be no other living patient's. If the outcome is not known (504, `OUTCOME_UNKNOWN`), the
/// problem's `patientId` is the id to look for: once it is found, the patient is registered; while it is not, a
/// transaction still under way may yet make it. Sending the same form again cannot register twice: the address is
/// taken then.
#[utoipa::path(post, path = "/api/patients", operation_id = "registerPatient", tag = "patients",
    request_body = PatientForm,
    responses(
        (status = 201, description = "Registered.", body = PatientBody,
            headers(("Location", description = "The path of the record."))),
    ))]
pub(super) async fn register(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let today = app.clock.now().date();
    let details = ruled(&call.body, |input| registration(input, today))?;
    let id = *call.registers.get_or_init(|| PatientId(Uuid::now_v7()));
    let patient = app.patients.register(&call.ctx, id, details).await?;
    let mut response = reply::json(StatusCode::CREATED, &PatientBody::from(&*patient))?;
    if let Ok(location) = HeaderValue::try_from(format!("/api/patients/{}", patient.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// Shows a patient.
///
/// Never older than any answer given before the request. A caller of the role BILLING is shown `id` and `name` alone.
/// A restricted record is shown to a CLINICIAN alone, who says why in `X-Break-Glass`; the audit keeps it.
#[utoipa::path(get, path = "/api/patients/{id}", operation_id = "getPatient", tag = "patients",
    params(("id" = Uuid, Path, description = "The patient's id."),
        ("X-Break-Glass" = Option<String>, Header, description = "Why a restricted record is needed: 1 to 500 characters.")),
    responses((status = 200, description = "The record.", body = Shown)))]
pub(super) async fn get(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let id = id_of(&call, "id")?;
    let patient = app.patients.get(&call.ctx, id).await?;
    may_see(&call, &patient)?;
    reply::json(StatusCode::OK, &Shown::to(&call, &patient))
}

/// Replaces the details of a patient.
#[utoipa::path(put, path = "/api/patients/{id}", operation_id = "updatePatient", tag = "patients",
    params(("id" = Uuid, Path, description = "The patient's id.")),
    request_body = PatientForm,
    responses((status = 200, description = "The record as it is now.", body = PatientBody)))]
pub(super) async fn update(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let id = id_of(&call, "id")?;
    let today = app.clock.now().date();
    let changed = ruled(&call.body, |input| change(input, today))?;
    let patient = app.patients.update(&call.ctx, id, changed).await?;
    reply::json(StatusCode::OK, &PatientBody::from(&*patient))
}

/// Marks a patient's record restricted.
///
/// It is left out of lists from then on. Only a CLINICIAN may read it, by saying why in `X-Break-Glass`; only an ADMIN
/// or a CLINICIAN may change it.
#[utoipa::path(put, path = "/api/patients/{id}/restriction", operation_id = "restrictPatient", tag = "patients",
    params(("id" = Uuid, Path, description = "The patient's id.")),
    responses((status = 204, description = "It is restricted.")))]
pub(super) async fn restrict(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    set_restricted(&app, &call, true).await
}

/// Ends the restriction of a patient's record.
#[utoipa::path(delete, path = "/api/patients/{id}/restriction", operation_id = "unrestrictPatient", tag = "patients",
    params(("id" = Uuid, Path, description = "The patient's id.")),
    responses((status = 204, description = "It is not restricted.")))]
pub(super) async fn unrestrict(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    set_restricted(&app, &call, false).await
}

async fn set_restricted(app: &AppState, call: &Call, restricted: bool) -> Result<Response, Failure> {
    let path = tail(&call.parts, call.path).trim_end_matches("/restriction");
    let id = patient_id(path).ok_or_else(|| Failure::field("id", "Should be a UUID"))?;
    app.patients.restrict(&call.ctx, id, restricted).await?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// Ends the record of a patient.
///
/// The id is never used again; the e-mail address is free again.
#[utoipa::path(delete, path = "/api/patients/{id}", operation_id = "deletePatient", tag = "patients",
    params(("id" = Uuid, Path, description = "The patient's id.")),
    responses((status = 204, description = "Ended.")))]
pub(super) async fn delete(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let id = id_of(&call, "id")?;
    app.patients.delete(&call.ctx, id).await?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// Lists living patients, the oldest record first.
///
/// One page; the `Link` header leads to the next, if there is more. Restricted records are left out. A caller of the role BILLING is shown `id` and
/// `name` alone.
#[utoipa::path(get, path = "/api/patients", operation_id = "listPatients", tag = "patients",
    params(
        ("limit" = Option<u32>, Query, description = "Records on the page.", minimum = 1, maximum = 1000, example = 100),
        ("cursor" = Option<String>, Query, description = "Where the page begins: only as a `Link` gave it out."),
    ),
    responses((status = 200, description = "A page of records.", body = Vec<Shown>,
        headers(("Link", description = "`<path>; rel=\"next\"` (RFC 8288), if there is more.")))))]
pub(super) async fn list(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(&call.parts.uri)
        .map_err(|_| Failure::new(ErrorCode::Invalid, "The query cannot be read"))?;
    let page =
        Page::of(&query.0, |text| cursor::take_back(&app.auth, text)).map_err(Error::invalid_fields)?;
    // One more than asked for tells whether there is more.
    let mut patients = app.patients.list(&call.ctx, page.after, page.limit + 1).await?;
    let more = patients.len() > page.limit as usize;
    patients.truncate(page.limit as usize);
    call.accessed.shows(patients.iter().map(|patient| patient.id).collect());
    let shown: Vec<Shown<'_>> = patients.iter().map(|patient| Shown::to(&call, patient)).collect();
    let mut response = reply::json(StatusCode::OK, &shown)?;
    if let Some(last) = patients.last().filter(|_| more) {
        let next = cursor::give_out(&app.auth, ListPosition { created_at: last.created_at, id: last.id });
        let link = format!("</api/patients?limit={}&cursor={next}>; rel=\"next\"", page.limit);
        if let Ok(link) = HeaderValue::try_from(link) {
            response.headers_mut().insert(LINK, link);
        }
    }
    Ok(response)
}

/// Which part of the list is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    limit: u32,
    after: Option<ListPosition>,
}

impl Page {
    /// Parameters of other names are left alone.
    fn of(
        query: &[(String, String)],
        take_back: impl Fn(&str) -> Option<ListPosition>,
    ) -> Result<Self, FieldErrors> {
        let mut errors = FieldErrors::new();
        let mut one = |name: &'static str| {
            let mut given = query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
            let first = given.next();
            if given.next().is_some() {
                errors.insert(name, "Given more than once");
            }
            first
        };
        let (limit, cursor) = (one("limit"), one("cursor"));
        let limit = limit.map_or(Some(LIMIT_DEFAULT), |text| {
            text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit))
        });
        if limit.is_none() {
            errors.entry("limit").or_insert("Limit should be a number from 1 to 1000");
        }
        let after = cursor.map(take_back);
        if after == Some(None) {
            errors.entry("cursor").or_insert("Cursor should be as it was given out");
        }
        match limit {
            Some(limit) if errors.is_empty() => Ok(Page { limit, after: after.flatten() }),
            _ => Err(errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::date;

    use super::*;
    use crate::domain::patient::PatientDetails;
    use crate::domain::time::Timestamp;

    const TODAY: Date = date!(2026 - 03 - 31);

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

    #[test]
    fn a_form_is_read_by_the_rules() {
        let mut form = json!({
            "name": "Ada", "email": "ada@example.com", "address": "London",
            "dateOfBirth": "1915-12-10", "registeredDate": "2026-01-02"
        });
        let details = ruled(form.to_string().as_bytes(), |input| registration(input, TODAY)).expect("valid");
        assert_eq!((&*details.name, details.registered_date), ("Ada", date!(2026 - 01 - 02)));

        form["version"] = json!(1);
        form["dateOfBirth"] = json!(19151210);
        form["registeredDate"] = json!(null);
        let failure =
            ruled(form.to_string().as_bytes(), |input| registration(input, TODAY)).expect_err("wrong");
        assert_eq!(failure.error.fields["dateOfBirth"], "Should be a text");
        assert_eq!(failure.error.fields["registeredDate"], "Registered date is required");
        assert_eq!(failure.other_fields["version"], "Unknown field");
        let failure = ruled(form.to_string().as_bytes(), |input| change(input, TODAY)).expect_err("wrong");
        assert!(!failure.error.fields.contains_key("registeredDate"));
    }

    #[test]
    fn a_page_has_1_to_1000_records_and_begins_where_it_may() {
        let place = ListPosition { created_at: Timestamp(1), id: PatientId(Uuid::nil()) };
        let page = |query: &str| {
            let uri = format!("/api/patients?{query}").parse().expect("a path");
            let query = Query::<Vec<(String, String)>>::try_from_uri(&uri).expect("a query");
            Page::of(&query.0, |text| (text == "good").then_some(place))
        };
        assert_eq!(page(""), Ok(Page { limit: 100, after: None }));
        assert_eq!(page("limit=1000&cursor=good&x=y"), Ok(Page { limit: 1000, after: Some(place) }));
        for (query, field) in [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=-1", "limit"),
            ("limit=", "limit"),
            ("limit=ten", "limit"),
            ("limit=99999999999", "limit"),
            ("limit=1&limit=2", "limit"),
            ("cursor=bad", "cursor"),
            ("cursor=", "cursor"),
            ("cursor=good&cursor=good", "cursor"),
        ] {
            let errors = page(query).expect_err(query);
            assert_eq!(errors.keys().collect::<Vec<_>>(), [&field], "{query}");
        }
    }
}
