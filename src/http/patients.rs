//! `/api/patients`: what a caller may do with records.

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

/// What a caller sends to replace the details of a record: a form, or the record as it was read.
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
    /// If it is left out, it stays as it is.
    #[schema(format = Date, nullable = false)]
    registered_date: Option<String>,
    /// The id in the path, and no other.
    #[schema(format = Uuid, nullable = false)]
    id: Option<String>,
    /// The version that the record must have, as with `If-Match`: else 412, and nothing is changed.
    #[schema(minimum = 1, nullable = false)]
    version: Option<i64>,
}

/// What a caller sends to change some of a record: at least nothing.
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

/// The record with its entity tag.
fn record(status: StatusCode, patient: &Patient) -> Result<Response, Failure> {
    let mut response = reply::json(status, &PatientBody::from(patient))?;
    response.headers_mut().extend(conditional::etag(patient.version).map(|tag| (ETAG, tag)));
    Ok(response)
}

/// Registers a patient.
///
/// The e-mail address must be no other living patient's. Under an `Idempotency-Key` the same request may be sent
/// again until it is answered: it registers once, and within 24 hours of that it is answered as it was then. The
/// same key with another body is refused (422). A key is its caller's own; after 24 hours it may be used anew, up to
/// eight times in all. What was refused is not remembered.
///
/// That an address is taken (409) is told even if the patient who has it is restricted.
///
/// If the outcome is not known (504, `OUTCOME_UNKNOWN`), send it again under its key. Without one, the problem's
/// `patientId` is the id to look for: once it is found, the patient is registered; while it is not, a transaction
/// still under way may yet make it. Sending the same form again cannot register twice: the address is taken then.
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

/// Shows a patient.
///
/// Never older than any answer given before the request. With `version` it is shown as it was then, even if it has
/// ended since. A caller of the role BILLING is shown `id` and `name` alone. A restricted record is shown, in all its
/// versions, to a CLINICIAN alone, who says why in `X-Break-Glass`; the audit keeps it.
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

/// What can be asked of a record.
pub(super) const PARAMETERS: [&str; 1] = ["version"];

/// The version asked for, if one is.
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
/// A record as it was read may be sent back: its `id` must be the one in the path, and its `version` the record's. What
/// changes nothing is answered with the record as it is, and makes no version. A restricted record is changed
/// by a CLINICIAN alone, who says why in `X-Break-Glass`.
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
/// A JSON Merge Patch (RFC 7396): fields that are not given stay as they are. No field can be taken away, so null
/// is refused. Under an `Idempotency-Key` it may be sent again, as a registration may. A patch that changes nothing is
/// answered with the record as it is, and makes no version. It is not remembered either: sent again under its key, it is
/// judged anew. What was done under a key is answered as it was then, whatever `If-Match` says when it is sent again: the
/// condition held when the change was made. A restricted record is changed by a CLINICIAN alone, who says why in `X-Break-Glass`.
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

/// Marks a patient's record restricted.
///
/// It is left out of lists from then on. Only a CLINICIAN may read, change or end it, by saying why in
/// `X-Break-Glass`.
#[utoipa::path(put, path = "/api/patients/{id}/restriction", operation_id = "restrictPatient", tag = "patients",
    params(("id" = Uuid, Path, description = "The patient's id.")),
    responses((status = 204, description = "It is restricted.")))]
pub(super) async fn restrict(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    set_restricted(&app, &call, true).await
}

/// Ends the restriction of a patient's record.
///
/// Whoever ends it says why in `X-Break-Glass`, whatever the role: from then on the record can be read. The audit keeps
/// the reason.
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
/// The id is never used again; the e-mail address is free again. A restricted record is ended by a CLINICIAN alone, who
/// says why in `X-Break-Glass`.
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
