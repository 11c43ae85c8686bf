//! `/api/patients`: operations on records.

use std::sync::Arc;

use axum::response::Response;
use http::header::{ETAG, LOCATION};
use http::{HeaderValue, StatusCode};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::conditions::Conditions;
use crate::domain::ids::{PatientId, Version};
use crate::domain::patient::Patient;
use crate::domain::validate::{FieldErrors, PatientInput, registration};

use super::fields::Fields;
use super::idempotency::{Keyed, Turn};
use super::pipeline::{Call, tail};
use super::problem::Failure;
use super::query::Query;
use super::shown::{PatientBody, Shown};
use super::{AppState, conditional, history, replace, reply};

/// The body of a registration. Other fields are refused.
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
    #[schema(format = Date)]
    registered_date: String,
}

/// The body of a replacement: a form, or the record as it was read.
#[derive(ToSchema)]
#[schema(as = PatientReplacement, rename_all = "camelCase", example = json!({
    "name": "John Doe", "email": "john.doe@example.com", "address": "123 Main St, Springfield",
    "dateOfBirth": "1985-06-15"
}))]
#[allow(
    dead_code,
    reason = "describes the body; `replace::read` reads it, so that all mistakes are told at once"
)]
pub(super) struct PatientReplacementForm {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    #[schema(format = "email", max_length = 254)]
    email: String,
    #[schema(min_length = 1, max_length = 500)]
    address: String,
    /// Not in the future, not before 1850.
    #[schema(format = Date)]
    date_of_birth: String,
    /// Unchanged if absent.
    #[schema(format = Date, nullable = false)]
    registered_date: Option<String>,
    /// Must be the id in the path.
    #[schema(format = Uuid, nullable = false)]
    id: Option<String>,
    /// The version that the record must have, as with `If-Match`. Otherwise the response is 412, and nothing
    /// is changed.
    #[schema(minimum = 1, nullable = false)]
    version: Option<i64>,
}

/// The body of a change: any of the fields, or none.
#[derive(ToSchema)]
#[schema(as = PatientPatch, rename_all = "camelCase", example = json!({"address": "2 Harbour Road, Kingsport"}))]
#[allow(
    dead_code,
    reason = "describes the body; `patch::read` reads it, so that all mistakes are told at once"
)]
pub(super) struct PatientPatchForm {
    #[schema(min_length = 1, max_length = 100, nullable = false)]
    name: Option<String>,
    #[schema(format = "email", max_length = 254, nullable = false)]
    email: Option<String>,
    #[schema(min_length = 1, max_length = 500, nullable = false)]
    address: Option<String>,
    /// Not in the future, not before 1850.
    #[schema(format = Date, nullable = false)]
    date_of_birth: Option<String>,
    #[schema(format = Date, nullable = false)]
    registered_date: Option<String>,
}

pub(super) const FIELDS: [&str; 5] = ["name", "email", "address", "dateOfBirth", "registeredDate"];

/// Reads a form and applies `rules` to it.
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

/// Returns the id at the end of the path, which must have the usual form of 36 characters (RFC 9562, section
/// 4).
pub(super) fn id_of(call: &Call, field: &'static str) -> Result<PatientId, Failure> {
    patient_id(tail(&call.parts, call.path)).ok_or_else(|| Failure::field(field, "Should be a UUID"))
}

fn patient_id(text: &str) -> Option<PatientId> {
    let id = if text.len() == 36 { Uuid::try_parse(text).ok() } else { None };
    id.map(PatientId)
}

/// Returns the record as a response with its entity tag.
fn record(status: StatusCode, patient: &Patient) -> Result<Response, Failure> {
    let mut response = reply::json(status, &PatientBody::from(patient))?;
    response.headers_mut().extend(conditional::etag(patient.version).map(|tag| (ETAG, tag)));
    Ok(response)
}

/// Registers a patient.
///
/// The e-mail address must not belong to another living patient. A taken address is refused (409), even if
/// the patient who has it is restricted.
///
/// Under an `Idempotency-Key`, the same request can be repeated until it is answered: the patient is
/// registered once. Within 24 hours a repetition returns the first answer. The same key with another body is
/// refused (422). A key belongs to its caller. After 24 hours it can be used again, up to eight times in all.
/// A refused request is not remembered.
///
/// If the outcome is not known (504, `OUTCOME_UNKNOWN`), repeat the request under its key. Without a key,
/// look for the `patientId` of the problem. Once the id is found, the patient is registered; until then a
/// transaction may still be in progress. Repeating the same form cannot register the patient twice, because
/// the address is then taken.
#[utoipa::path(post, path = "/api/patients", operation_id = "registerPatient", tag = "patients",
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes the request safe to repeat: a \
        text that no other request has, such as `\"8e03978e-40d5-43dd-bc93-6894a57f9324\"`.", max_length = 257)),
    request_body = PatientForm,
    responses(
        (status = 201, description = "Registered.", body = PatientBody, headers(
            ("Location", description = "The path of the record."),
            ("ETag", description = "The version, as a strong entity tag."),
        )),
    ))]
pub(super) async fn register(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let today = app.clock.now().date();
    let details = ruled(&call.body, |input| registration(input, today))?;
    let keyed = Keyed::of(&call)?;
    let register = |turn: Turn| {
        call.registers.set(turn.id);
        let (details, conditions) = (details.clone(), unconditional(&keyed));
        let app = &app;
        async move { app.patients.register(&turn.ctx, turn.id, details, conditions).await }
    };
    let changed = keyed.carry_out(&call.ctx, None, register).await?;
    let patient = call.open(call.done(changed));
    let mut response = record(StatusCode::CREATED, &patient)?;
    if let Ok(location) = HeaderValue::try_from(format!("/api/patients/{}", patient.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

fn unconditional(keyed: &Keyed) -> Conditions {
    Conditions { expected: None, fingerprint: keyed.fingerprint() }
}

/// Returns a patient.
///
/// The record is never older than in any response given before the request. With `version`, the record is
/// returned as it was then, even if it has ended since. The role BILLING is shown only `id` and `name`. A
/// restricted record, in any version, is shown only to a CLINICIAN who states the reason in `X-Break-Glass`.
/// The audit records the reason.
#[utoipa::path(get, path = "/api/patients/{id}", operation_id = "getPatient", tag = "patients",
    params(
        ("id" = Uuid, Path, description = "The patient's id."),
        ("version" = Option<i64>, Query, description = "Which version; the newest if none is named.", minimum = 1),
        ("If-None-Match" = Option<String>, Header, description = "Entity tags, such as `\"3\"`: answered with 304 if one \
            is the record's."),
        ("If-Match" = Option<String>, Header, description = "Entity tags, one of which must be the record's."),
        ("X-Break-Glass" = Option<String>, Header, description = "Why a restricted record is needed: 2 to 500 characters."),
    ),
    responses(
        (status = 200, description = "The record.", body = Shown,
            headers(("ETag", description = "The version, as a strong entity tag."))),
        (status = 304, description = "The record is as the caller knows it.",
            headers(("ETag", description = "The version, as a strong entity tag."))),
    ))]
pub(super) async fn get(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let id = id_of(&call, "id")?;
    let patient = match version_of(&call)? {
        None => call.open(app.patients.get(&call.ctx, id).await?),
        Some(version) => Box::pin(history::as_of(&app, &call, id, version)).await?,
    };
    let tag = conditional::etag(patient.version).map(|tag| (ETAG, tag));
    let mut response = if conditional::has_it(&call.parts.headers, patient.version)? {
        reply::empty(StatusCode::NOT_MODIFIED)
    } else {
        reply::json(StatusCode::OK, &Shown::to(&call, &patient))?
    };
    response.headers_mut().extend(tag);
    Ok(response)
}

/// Query parameters of a record.
pub(super) const PARAMETERS: [&str; 1] = ["version"];

/// Returns the requested version, if any.
fn version_of(call: &Call) -> Result<Option<Version>, Failure> {
    let query = Query::read(call.parts.uri.query(), &PARAMETERS)?;
    let Some(text) = query.get("version") else { return Ok(None) };
    match text.parse() {
        Ok(version) if version > 0 => Ok(Some(version)),
        _ => Err(Failure::field("version", "Should be one number from 1 on")),
    }
}

/// Replaces the details of a patient.
///
/// A record can be sent back as it was read: its `id` must be the one in the path, and its `version` the
/// current one. A request that changes nothing returns the record and creates no version. Only a CLINICIAN
/// who states the reason in `X-Break-Glass` can change a restricted record.
#[utoipa::path(put, path = "/api/patients/{id}", operation_id = "updatePatient", tag = "patients",
    params(
        ("id" = Uuid, Path, description = "The patient's id."),
        ("If-Match" = Option<String>, Header, description = "Entity tags, such as `\"3\"`, one of which must be the \
            record's: else 412, and nothing is changed."),
        ("X-Break-Glass" = Option<String>, Header, description = "Why a restricted record is needed: 2 to 500 characters."),
    ),
    request_body = PatientReplacementForm,
    responses((status = 200, description = "The record as it is now.", body = PatientBody,
        headers(("ETag", description = "The version, as a strong entity tag.")))))]
pub(super) async fn update(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let id = id_of(&call, "id")?;
    let today = app.clock.now().date();
    let expected = conditional::expected(&call.parts.headers)?;
    let (changed, version) = replace::read(&call.body, id, today)?;
    let expected = replace::both(expected, version);
    let conditions = Conditions { expected, fingerprint: None };
    let changed = app.patients.update(&call.ctx, id, changed, conditions).await?;
    let patient = call.open(call.done(changed));
    record(StatusCode::OK, &patient)
}

/// Replaces some of the details of a patient.
///
/// The body is a JSON Merge Patch (RFC 7396): absent fields stay as they are. No field can be removed, so
/// null is refused.
///
/// Under an `Idempotency-Key` the request can be repeated, as a registration can. A patch that changes
/// nothing returns the record and creates no version. It is not remembered, so a repetition under its key is
/// judged anew. The repetition of a change that was made returns the first answer, whatever its `If-Match`:
/// the condition was met when the change was made.
///
/// Only a CLINICIAN who states the reason in `X-Break-Glass` can change a restricted record.
#[utoipa::path(patch, path = "/api/patients/{id}", operation_id = "patchPatient", tag = "patients",
    params(
        ("id" = Uuid, Path, description = "The patient's id."),
        ("If-Match" = Option<String>, Header, description = "Entity tags, such as `\"3\"`, one of which must be the \
            record's: else 412, and nothing is changed."),
        ("X-Break-Glass" = Option<String>, Header, description = "Why a restricted record is needed: 2 to 500 characters."),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request safe to repeat: a \
            text that no other request has, such as `\"8e03978e-40d5-43dd-bc93-6894a57f9324\"`.", max_length = 257),
    ),
    request_body(content = PatientPatchForm, content_type = "application/merge-patch+json"),
    responses((status = 200, description = "The record as it is now.", body = PatientBody,
        headers(("ETag", description = "The version, as a strong entity tag.")))))]
pub(super) async fn patch(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let id = id_of(&call, "id")?;
    let today = app.clock.now().date();
    let keyed = Keyed::of(&call)?;
    let expected = conditional::expected(&call.parts.headers)?;
    let patch = super::patch::read(&call.body, today)?;
    let conditions = Conditions { expected, ..unconditional(&keyed) };
    let change = |turn: Turn| {
        let (patch, conditions, app) = (patch.clone(), conditions.clone(), &app);
        async move { app.patients.patch(&turn.ctx, id, patch, conditions).await }
    };
    let changed = keyed.carry_out(&call.ctx, Some(id), change).await?;
    let patient = call.open(call.done(changed));
    record(StatusCode::OK, &patient)
}

/// Marks a patient's record as restricted.
///
/// A restricted record is not listed. Only a CLINICIAN who states the reason in `X-Break-Glass` can read,
/// change or end it.
#[utoipa::path(put, path = "/api/patients/{id}/restriction", operation_id = "restrictPatient", tag = "patients",
    params(("id" = Uuid, Path, description = "The patient's id.")),
    responses((status = 204, description = "It is restricted.")))]
pub(super) async fn restrict(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    set_restricted(&app, &call, true).await
}

/// Removes the restriction of a patient's record.
///
/// Every role must state the reason in `X-Break-Glass`, because the record is readable from then on. The
/// audit records the reason.
#[utoipa::path(delete, path = "/api/patients/{id}/restriction", operation_id = "unrestrictPatient", tag = "patients",
    params(
        ("id" = Uuid, Path, description = "The patient's id."),
        ("X-Break-Glass" = Option<String>, Header, description = "Why the restriction ends: 2 to 500 characters."),
    ),
    responses((status = 204, description = "It is not restricted.")))]
pub(super) async fn unrestrict(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    set_restricted(&app, &call, false).await
}

async fn set_restricted(app: &AppState, call: &Call, restricted: bool) -> Result<Response, Failure> {
    let path = tail(&call.parts, call.path).trim_end_matches("/restriction");
    let id = patient_id(path).ok_or_else(|| Failure::field("id", "Should be a UUID"))?;
    call.done(app.patients.restrict(&call.ctx, id, restricted).await?);
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// Ends the record of a patient.
///
/// The id is never used again; the e-mail address becomes available. Only a CLINICIAN who states the reason
/// in `X-Break-Glass` can end a restricted record.
#[utoipa::path(delete, path = "/api/patients/{id}", operation_id = "deletePatient", tag = "patients",
    params(
        ("id" = Uuid, Path, description = "The patient's id."),
        ("If-Match" = Option<String>, Header, description = "Entity tags, such as `\"3\"`, one of which must be the \
            record's: else 412, and nothing is changed."),
        ("X-Break-Glass" = Option<String>, Header, description = "Why a restricted record is needed: 2 to 500 characters."),
    ),
    responses((status = 204, description = "Ended.")))]
pub(super) async fn delete(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let id = id_of(&call, "id")?;
    let expected = conditional::expected(&call.parts.headers)?;
    let conditions = Conditions { expected, fingerprint: None };
    call.done(app.patients.delete(&call.ctx, id, conditions).await?);
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::date;

    use crate::domain::validate::change;

    use super::*;

    const TODAY: time::Date = date!(2026 - 03 - 31);

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
}
